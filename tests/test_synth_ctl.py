"""ctl files: what they accept, what they refuse and how they explain themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ninep import Dir, ctl
from ninep.answer import settle
from ninep.file import Call, Handle
from ninep.limits import Limits
from ninep.principal import Principal
from ninep.proto import errors as E
from ninep.proto.types import ORDWR, OTRUNC, OWRITE, Change
from ninep.synth import Bytes, Duration, OnOff, join, quote, setting
from ninep.synth_words import show_duration, show_onoff

pytestmark = pytest.mark.feature("synth-ctl")

CALL = Call(Principal("glenda", 1000, 1000, proof="local"))


def even(word: str) -> int:
    if not word.isdigit() or int(word) % 2:
        raise ValueError("not an even number")
    return int(word)


class Machine(Dir):
    """Everything that a ctl can have."""

    limits = Limits(ctl_bytes_max=1000, ctl_line_bytes_max=100, ctl_words_max=8)

    def __init__(self) -> None:
        super().__init__()
        self.done: list[object] = []
        self.size, self.wait, self.is_on, self.title = 4096, 1.5, True, "it's # mine"

    @ctl
    def limit(self, size: Bytes) -> None:
        """most bytes"""
        self.size = size

    @ctl
    def timeout(self, after: Duration) -> None:
        """how long to wait"""
        self.wait = after

    @ctl
    def power(self, state: OnOff) -> None:
        """switch it"""
        self.is_on = state

    @ctl
    def name(self, title: str) -> None:
        """what it is called"""
        self.title = title

    @setting
    def _settings(self) -> Iterable[str]:
        yield f"limit {self.size}"
        yield f"timeout {show_duration(self.wait)}"
        yield f"power {show_onoff(self.is_on)}"

    @setting
    def _title(self) -> str:
        return f"name {quote(self.title)}"

    @ctl
    def paint(self, colour: Literal["red", "blue"], times: int | None = None, share: float = 0.5) -> None:
        self.done.append((colour, times, share))

    @ctl
    def each(self, first: str, *rest: int) -> None:
        self.done.append((first, rest))

    @ctl
    async def slowly(self, count: Annotated[int, even], call: Call) -> None:
        """takes its time"""
        await trio.lowlevel.checkpoint()
        self.done.append((count, call.principal.name))

    @ctl(name="open")
    def open_it(self) -> None:
        """open it"""
        self.done.append("open")

    @ctl
    def fail(self) -> None:
        raise E.Einuse("the machine")


def opened(machine: Dir, omode: int = ORDWR) -> Handle:
    file = machine.walk(CALL, "ctl")
    handle = file.open(CALL, omode)  # type: ignore[union-attr]  # a ctl is here at once
    assert isinstance(handle, Handle)
    return handle


def write(machine: Dir, message: str | bytes) -> int:
    data = message.encode() if isinstance(message, str) else message
    count = opened(machine, OWRITE).write(CALL, 0, data)
    assert isinstance(count, int)
    return count


def shown(machine: Dir) -> str:
    data = opened(machine).read(CALL, 0, 99_999)
    assert isinstance(data, bytes)
    return data.decode()


def state(machine: Machine) -> object:
    return (machine.size, machine.wait, machine.is_on, machine.title, machine.done)


def test_reading_gives_settings_and_then_the_commands_as_comments() -> None:
    assert shown(Machine()) == (
        "limit 4096\n"
        "timeout 1.5s\n"
        "power on\n"
        "name 'it''s # mine'\n"
        "# limit size<bytes>  # most bytes\n"
        "# timeout after<duration>  # how long to wait\n"
        "# power state<on|off>  # switch it\n"
        "# name title<str>  # what it is called\n"
        "# paint colour<red|blue> times[int] share[float]\n"
        "# each first<str> rest[int]...\n"
        "# slowly count<even>  # takes its time\n"
        "# open  # open it\n"
        "# fail\n"
    )


@given(
    st.integers(0, 1 << 50),
    st.integers(0, 10**12),
    st.booleans(),
    st.text(st.characters(exclude_characters="\n\0", codec="utf-8"), max_size=20),
)
def test_writing_back_what_was_read_changes_nothing(size: int, wait_ns: int, is_on: bool, title: str) -> None:
    machine = Machine()
    machine.limits = Limits()
    machine.size, machine.wait, machine.is_on, machine.title = size, wait_ns / 1e9, is_on, title
    write(machine, f"timeout {show_duration(machine.wait)}")  # to the precision that is shown
    before, text = state(machine), shown(machine)
    write(machine, text)
    assert state(machine) == before
    assert shown(machine) == text


def test_arguments_become_values() -> None:
    machine = Machine()
    write(machine, "limit 64k\ntimeout 20ms\npower off\nname 'two words'\n")
    assert (machine.size, machine.wait, machine.is_on, machine.title) == (65_536, 0.02, False, "two words")
    write(machine, "paint red\npaint blue 3 .25\neach a\neach a 1 2\nopen")
    assert machine.done == [("red", None, 0.5), ("blue", 3, 0.25), ("a", ()), ("a", (1, 2)), "open"]


def test_blank_lines_comments_and_carriage_returns_are_ignored() -> None:
    machine = Machine()
    assert write(machine, "\n  \n# power off\n\t# x ' y\nopen\r\n") == 31
    assert machine.done == ["open"]


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ("sub 3", 'line 1: "sub 3": commands are limit'),
        ("open\n\nsub 3\n", 'line 3: "sub 3": commands are'),
        ("limit x", 'line 1: "limit x": size "x": not a size, as 4096 or 64k'),
        ("timeout 5", 'line 1: "timeout 5": after "5": missing unit, as 5s or 20ms'),
        ("power yes", 'line 1: "power yes": state "yes": on or off'),
        ("paint green", 'colour "green": one of red blue'),
        ("paint red 1 2 3", "usage: paint colour<red|blue> times[int]"),
        ("limit", 'line 1: "limit": usage: limit size<bytes>'),
        ("each", "usage: each first<str> rest[int]..."),
        ("each a 1 b", 'rest "b": not an int'),
        ("slowly 3", 'count "3": not an even number'),
        ("name 'open", "unclosed quote"),
        ("name a\0b", "bad character"),
    ],
)
def test_a_refusal_names_line_word_and_what_would_have_been_right(message: str, answer: str) -> None:
    machine = Machine()
    before = state(machine)
    with pytest.raises(E.Ebadctl) as refused:
        write(machine, message)
    assert answer in str(refused.value)
    assert str(refused.value).startswith("bad process or channel control request: line ")
    assert state(machine) == before


def test_all_lines_are_parsed_before_any_is_run() -> None:
    machine = Machine()
    with pytest.raises(E.Ebadctl, match="line 3"):
        write(machine, "open\nlimit 1\nlimit x\n")
    assert machine.done == []
    assert machine.size == 4096


def test_a_failure_stops_there_and_names_its_line() -> None:
    machine = Machine()
    with pytest.raises(E.Einuse, match="line 2: the machine"):
        write(machine, "open\nfail\nopen\n")
    assert machine.done == ["open"]
    with pytest.raises(E.Einuse) as alone:
        write(machine, "fail")
    assert alone.value.about == "the machine"


async def test_a_command_may_be_async_and_know_who_asks_and_the_lines_keep_their_order() -> None:
    machine = Machine()
    assert await settle(opened(machine).write(CALL, 0, b"slowly 2\nopen\nslowly 4")) == 22
    assert machine.done == [(2, "glenda"), "open", (4, "glenda")]


@pytest.mark.parametrize("message", ["#" * 1001, "#" + "x" * 100, "each " + "1 " * 8], ids=["message", "line", "words"])
def test_a_message_past_the_limits_is_refused(message: str) -> None:
    with pytest.raises(E.Elarge):
        write(Machine(), message)


def test_words_past_the_limit_are_refused_before_they_are_converted() -> None:
    machine = Machine()
    with pytest.raises(E.Elarge, match="words"):
        write(machine, join(["each", *"abcdefgh"]))


def test_offsets_and_truncation_mean_nothing() -> None:
    machine = Machine()
    handle = opened(machine, OWRITE | OTRUNC)
    assert handle.write(CALL, 12_345, b"open") == 4
    handle.truncate(CALL, 0)
    assert machine.walk(CALL, "ctl").wstat(CALL, Change(size=0)) is None  # type: ignore[union-attr]  # as above
    with pytest.raises(E.Eperm):
        machine.walk(CALL, "ctl").wstat(CALL, Change(perm=0))  # type: ignore[union-attr]  # as above
    assert machine.done == ["open"]


def test_a_ctl_is_direct_and_its_size_is_that_of_its_text() -> None:
    machine = Machine()
    handle = opened(machine)
    assert handle.direct
    assert handle.iounit == machine.limits.ctl_bytes_max
    stat = machine.walk(CALL, "ctl").stat(CALL)  # type: ignore[union-attr]  # as above
    assert stat.size == len(shown(machine))  # type: ignore[union-attr]  # as above


def test_one_open_reads_one_moment() -> None:
    machine = Machine()
    handle = opened(machine)
    first = handle.read(CALL, 0, 8)
    machine.size = 1
    assert (first, handle.read(CALL, 8, 3)) == (b"limit 40", b"96\n")
    assert handle.read(CALL, 0, 8) == b"limit 1\n"


def test_a_parameter_that_no_word_can_fill_is_refused_at_class_creation() -> None:
    with pytest.raises(TypeError, match="no converter"):

        class Odd(Dir):
            @ctl
            def go(self, where: object) -> None: ...

    with pytest.raises(TypeError, match="positional"):

        class Keyword(Dir):
            @ctl
            def go(self, *, where: int = 1) -> None: ...

    with pytest.raises(TypeError, match="Nowhere"):

        class Unknown(Dir):
            @ctl
            def go(self, where: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821  # the mistake shown


@given(st.binary(max_size=200))
def test_any_bytes_are_run_or_refused_within_the_size_of_an_error(message: bytes) -> None:
    machine = Machine()
    refusal: E.FileError = E.Ebadctl()
    try:
        assert write(machine, message) == len(message)
    except E.FileError as e:
        refusal = e
    assert len(refusal.ename.encode("utf-8", "surrogateescape")) <= E.ENAME_BYTES_MAX
