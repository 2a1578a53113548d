"""Quoting, splitting and the converters of words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ninep import synth_words as words

word = st.text(st.characters(exclude_characters="\n\0", exclude_categories=()), max_size=20)
tricky = st.text(st.sampled_from("' #ab\t\\\"$"), max_size=12)


@pytest.mark.feature("synth-ctl")
@given(st.lists(st.one_of(word, tricky), max_size=8))
def test_splitting_undoes_joining(given_words: list[str]) -> None:
    assert words.split(words.join(given_words)) == given_words


@given(tricky)
def test_a_quoted_word_is_never_a_comment_and_never_blank(text: str) -> None:
    quoted = words.quote(text)
    assert quoted.strip(" \t") == quoted
    assert quoted
    assert not quoted.startswith("#")


@given(st.text(st.sampled_from("'' ab"), max_size=200))
def test_any_line_is_split_or_refused_for_an_open_quote(line: str) -> None:
    if line.count("'") % 2:
        with pytest.raises(ValueError, match="unclosed"):
            words.split(line)
    else:
        assert "".join(words.split(line)).replace("'", "").replace(" ", "") == line.replace("'", "").replace(" ", "")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("", []),
        (" \t ", []),
        ("add 3", ["add", "3"]),
        ("a'b c'd", ["ab cd"]),
        ("'it''s'", ["it's"]),
        ("''", [""]),
        ("'' x ''''", ["", "x", "'"]),
        ("a\tb", ["a", "b"]),
    ],
)
def test_words_are_split_as_tokenize_does(line: str, found: list[str]) -> None:
    assert words.split(line) == found


def test_a_newline_cannot_be_quoted() -> None:
    with pytest.raises(ValueError, match="newline"):
        words.quote("a\nb")


@pytest.mark.parametrize("line", ["'" * 99_999, "'a" * 99_999, "' '" * 33_333 + "'", "a" * 100_000, " " * 100_000])
def test_splitting_takes_time_in_proportion_to_the_line(line: str) -> None:
    # A quadratic tokeniser needs minutes for these; the test's own timeout is the bound.
    try:
        words.split(line)
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (words.parse_int, "12", 12),
        (words.parse_int, "-0x1F", -31),
        (words.parse_float, "1.5e3", 1500.0),
        (words.parse_bytes, "64k", 65_536),
        (words.parse_bytes, "10M", 10 << 20),
        (words.parse_bytes, "7", 7),
        (words.parse_duration, "5s", 5.0),
        (words.parse_duration, "20ms", 0.02),
        (words.parse_duration, "1.5h", 5400.0),
        (words.parse_onoff, "on", True),
        (words.parse_onoff, "off", False),
    ],
)
def test_a_converter_reads(parse: object, text: str, value: object) -> None:
    assert callable(parse)
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "why"),
    [
        (words.parse_int, "x", "not an int"),
        (words.parse_int, "1_0", "not an int"),
        (words.parse_int, "٣", "not an int"),
        (words.parse_int, "9" * 4000, "not an int"),
        (words.parse_float, "nan", "not a number"),
        (words.parse_float, "inf", "not a number"),
        (words.parse_bytes, "1.5k", "whole"),
        (words.parse_bytes, "-1", "not a size"),
        (words.parse_bytes, "1x", "unit is one of"),
        (words.parse_duration, "5", "missing unit"),
        (words.parse_duration, "5y", "unit is one of"),
        (words.parse_duration, "soon", "not a duration"),
        (words.parse_onoff, "yes", "on or off"),
    ],
)
def test_a_converter_refuses_with_what_would_have_been_right(parse: object, text: str, why: str) -> None:
    assert callable(parse)
    with pytest.raises(ValueError, match=why):
        parse(text)


@given(st.integers(0, 10**13))
def test_a_shown_duration_reads_back(ns: int) -> None:
    assert words.parse_duration(words.show_duration(ns / 1e9)) == pytest.approx(ns / 1e9, abs=1e-9)


@pytest.mark.parametrize("value", [True, False])
def test_a_shown_switch_reads_back(value: bool) -> None:
    assert words.parse_onoff(words.show_onoff(value)) is value
