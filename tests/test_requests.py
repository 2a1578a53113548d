"""What a client reads for whatever a handler raises."""

from __future__ import annotations

import errno

from ninep.proto import errors as E
from ninep.requests import answer_for


def test_a_group_of_nothing_but_refusals_is_the_first_of_them() -> None:
    first = E.Enonexist("a")
    assert answer_for(ExceptionGroup("", [ExceptionGroup("", [first]), E.Eperm("b")])) is first


def test_a_group_with_a_bug_in_it_is_a_bug() -> None:
    assert answer_for(ExceptionGroup("", [E.Eperm("a"), ZeroDivisionError()])) is None
    assert answer_for(ZeroDivisionError()) is None


def test_the_hosts_refusal_keeps_its_number() -> None:
    answer = answer_for(OSError(errno.ENOSPC, "no room"))
    assert isinstance(answer, E.FileError)
    assert answer.errno == errno.ENOSPC
