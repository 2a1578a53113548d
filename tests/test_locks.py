"""Byte-range locks against a model that thinks in single bytes; waiting, fairness, deadlock, limits."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from ninep.answer import drop, settle
from ninep.locks import Locks, LockSpace
from ninep.proto import errors as E
from ninep.proto.types import F_RDLCK, F_UNLCK, F_WRLCK, OFFSET_MAX, Lock

SIZE = 12


def wr(owner: Any, start: int = 0, end: int = OFFSET_MAX, flock: bool = False) -> Lock:
    return Lock(F_WRLCK, start, end, owner, flock=flock)


def rd(owner: Any, start: int = 0, end: int = OFFSET_MAX, flock: bool = False) -> Lock:
    return Lock(F_RDLCK, start, end, owner, flock=flock)


def un(owner: Any, start: int = 0, end: int = OFFSET_MAX, flock: bool = False) -> Lock:
    return Lock(F_UNLCK, start, end, owner, flock=flock)


class Bytes:
    """The naive model: for each byte, which owner holds it how."""

    def __init__(self) -> None:
        self.at: list[dict[str, int]] = [{} for _ in range(SIZE)]

    def refusing(self, lock: Lock) -> set[str]:
        return {
            owner
            for held in self.at[lock.start : lock.end + 1]
            for owner, kind in held.items()
            if owner != lock.owner and F_WRLCK in (kind, lock.type)
        }

    def apply(self, lock: Lock) -> None:
        for held in self.at[lock.start : lock.end + 1]:
            held.pop(lock.owner, None)  # type: ignore[call-overload]  # owners are strings here
            if lock.type != F_UNLCK:
                held[lock.owner] = lock.type  # type: ignore[index]  # likewise


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([F_RDLCK, F_WRLCK, F_UNLCK]),
            st.integers(0, SIZE - 1),
            st.integers(0, SIZE - 1),
            st.sampled_from("abc"),
        ),
        max_size=40,
    )
)
def test_ranges_agree_with_a_model_of_single_bytes(script: list[tuple[int, int, int, str]]) -> None:
    space = LockSpace()
    locks, model = Locks(space=space), Bytes()
    for kind, one, other, owner in script:
        lock = Lock(kind, min(one, other), max(one, other), owner)
        query = lock._replace(type=F_WRLCK) if kind == F_UNLCK else lock
        told, refusing = locks.getlock(lock), model.refusing(query)
        assert (told is None) == (not refusing)
        if told is not None:
            assert told.owner in refusing
        wanted = kind == F_UNLCK or not refusing
        assert locks.lock(lock, False) is wanted
        if wanted:
            model.apply(lock)
        for at, held in enumerate(model.at):
            ours = [(h.owner, h.type) for h in locks.held() if h.start <= at <= h.end]
            assert len(ours) == len(set(ours))
            assert dict(ours) == held
        for who in "abc":
            mine = [h for h in locks.held() if h.owner == who]
            assert space.by_owner.get(who, 0) == len(mine)
            for left, right in itertools.pairwise(mine):
                assert left.end + 1 < right.start or left.type != right.type, "neighbours that are equal are merged"
    for who in "abc":
        locks.unlock_owner(who, False)
    assert not locks.held()
    assert not space.by_owner
    assert not space.by_session


def test_an_owner_upgrades_splits_and_merges_its_own_ranges() -> None:
    locks = Locks(space=LockSpace())
    locks.lock(rd("a", 0, 99), False)
    locks.lock(wr("a", 40, 59), False)
    assert [(h.type, h.start, h.end) for h in locks.held()] == [(0, 0, 39), (1, 40, 59), (0, 60, 99)]
    locks.lock(rd("a", 40, 59), False)
    assert [(h.type, h.start, h.end) for h in locks.held()] == [(0, 0, 99)]
    locks.lock(un("a", 10, 19), False)
    assert [(h.start, h.end) for h in locks.held()] == [(0, 9), (20, 99)]
    locks.lock(rd("a", 100), False)
    assert [(h.start, h.end) for h in locks.held()] == [(0, 9), (20, OFFSET_MAX)]


def test_bsd_and_posix_locks_do_not_see_each_other() -> None:
    locks = Locks(space=LockSpace())
    assert locks.lock(wr("a", flock=True), False)
    assert locks.lock(wr("b"), False)
    assert locks.lock(wr("b", flock=True), False) is False
    locks.unlock_owner("a", False)
    assert locks.lock(wr("b", flock=True), False) is False
    locks.unlock_owner("a", True)
    assert locks.lock(wr("b", flock=True), False)


@pytest.mark.hostile(59)
def test_bad_ranges_and_too_many_locks_are_refused() -> None:
    space = LockSpace()
    locks, other = Locks(limit=10, space=space), Locks(limit=10, space=space)
    for lock in (wr("a", -1, 5), wr("a", 5, 4), wr("a", 0, OFFSET_MAX + 1), Lock(7, 0, 1, "a")):
        with pytest.raises(E.Ebadarg):
            locks.lock(lock, False)
    for at in range(9):
        locks.lock(wr(("session", at % 3), at * 10, at * 10 + 1), False)
    other.lock(wr(("session", 9), 0, 1), False)
    with pytest.raises(E.Enolck):
        other.lock(wr(("session", 5), 100, 101), False)
    with pytest.raises(E.Enolck):
        locks.lock(un(("session", 0), 0, 0)._replace(type=F_RDLCK), False)  # a split takes one more
    assert locks.lock(wr(("another", 1), 500, 501), False)
    locks.lock(un(("session", 0)), False)
    assert other.lock(wr(("session", 5), 100, 101), False)


async def wait_for(locks: Locks, lock: Lock, log: list[Any], name: Any = None) -> None:
    try:
        await settle(locks.lock(lock, True))
        log.append(name or lock.owner)
    except E.FileError as e:
        log.append(type(e).__name__)


async def test_waiters_are_served_in_order_and_readers_together() -> None:
    locks = Locks(space=LockSpace())
    log: list[Any] = []
    locks.lock(wr("holder"), False)
    async with trio.open_nursery() as nursery:
        for lock in (wr("w1"), rd("r1"), rd("r2"), wr("w2")):
            nursery.start_soon(wait_for, locks, lock, log)
            await wait_all_tasks_blocked()
        locks.lock(un("holder"), False)
        await wait_all_tasks_blocked()
        assert log == ["w1"]
        locks.unlock_owner("w1", False)
        await wait_all_tasks_blocked()
        assert sorted(log[1:]) == ["r1", "r2"]
        locks.unlock_owner("r1", False)
        locks.unlock_owner("r2", False)
    assert log[-1] == "w2"


async def test_readers_that_keep_coming_do_not_starve_a_writer() -> None:
    locks = Locks(space=LockSpace())
    log: list[Any] = []
    locks.lock(rd("r0"), False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for, locks, wr("writer"), log)
        await wait_all_tasks_blocked()
        nursery.start_soon(wait_for, locks, rd("late"), log)
        await wait_all_tasks_blocked()
        assert log == []
        assert locks.lock(rd("r0", 5, 9), True) is True, "a holder is never made to queue"
        assert locks.lock(rd("impatient"), False) is True, "who does not wait looks only at what is held"
        locks.unlock_owner("impatient", False)
        locks.unlock_owner("r0", False)
        await wait_all_tasks_blocked()
        assert log == ["writer"]
        locks.unlock_owner("writer", False)
    assert log == ["writer", "late"]


async def test_a_cancelled_wait_leaves_no_trace_and_lets_the_next_go() -> None:
    space = LockSpace()
    locks = Locks(space=space)
    log: list[Any] = []
    locks.lock(rd("r0"), False)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(wait_for, locks, wr("writer"), log)
                await wait_all_tasks_blocked()
                nursery.start_soon(wait_for, locks, rd("late"), log)
                await wait_all_tasks_blocked()
                scope.cancel()
    assert log == ["late"]
    assert not space.waits
    locks.unlock_owner("r0", False)
    locks.unlock_owner("late", False)
    assert not space.by_session


async def test_a_cancel_and_an_unlock_in_one_moment_grant_nothing() -> None:
    locks = Locks(space=LockSpace())
    log: list[Any] = []
    locks.lock(wr("holder"), False)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for, locks, wr("w"), log)
            await wait_all_tasks_blocked()
            scope.cancel()
            locks.unlock_owner("holder", False)
    assert log == []
    assert locks.held() == ()


async def test_an_unlock_then_a_cancel_keeps_the_grant() -> None:
    locks = Locks(space=LockSpace())
    log: list[Any] = []
    locks.lock(wr("holder"), False)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for, locks, wr("w"), log)
            await wait_all_tasks_blocked()
            locks.unlock_owner("holder", False)
            scope.cancel()
    assert log == ["w"]
    assert [held.owner for held in locks.held()] == ["w"]


async def test_a_wait_never_run_leaves_nothing() -> None:
    space = LockSpace()
    locks = Locks(space=space)
    locks.lock(wr("holder"), False)
    drop(locks.lock(wr("w"), True))
    assert not space.waits
    late = locks.lock(wr("w"), True)
    locks.unlock_owner("holder", False)
    assert await settle(late) is True


@pytest.mark.hostile(60)
async def test_a_cycle_over_two_files_is_refused_and_nobody_hangs() -> None:
    space = LockSpace()
    one, two, log = Locks(space=space), Locks(space=space), list[Any]()
    one.lock(wr("a"), False)
    two.lock(wr("b"), False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for, two, wr("a"), log)
        await wait_all_tasks_blocked()
        with pytest.raises(E.Edeadlk):
            one.lock(wr("b"), True)
        assert one.lock(wr("b"), False) is False
        two.unlock_owner("b", False)
    assert log == ["a"]


@pytest.mark.hostile(60)
async def test_without_the_check_the_same_cycle_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    from ninep.locks import _Table

    monkeypatch.setattr(_Table, "_would_deadlock", lambda self, lock: False)
    space = LockSpace()
    one, two, log = Locks(space=space), Locks(space=space), list[Any]()
    one.lock(wr("a"), False)
    two.lock(wr("b"), False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for, two, wr("a"), log)
        nursery.start_soon(wait_for, one, wr("b"), log)
        await wait_all_tasks_blocked()
        assert len(space.waits) == 2
        nursery.cancel_scope.cancel()
    assert log == []


async def test_a_cycle_of_three_and_one_through_an_upgrade_are_seen() -> None:
    space = LockSpace()
    files = [Locks(space=space) for _ in range(3)]
    for at, owner in enumerate("abc"):
        files[at].lock(wr(owner), False)
    log: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for, files[1], wr("a"), log)
        nursery.start_soon(wait_for, files[2], wr("b"), log)
        await wait_all_tasks_blocked()
        with pytest.raises(E.Edeadlk):
            files[0].lock(rd("c"), True)
        nursery.cancel_scope.cancel()
    locks = Locks(space=LockSpace())
    locks.lock(rd("a"), False)
    locks.lock(rd("b"), False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for, locks, wr("a"), log)
        await wait_all_tasks_blocked()
        with pytest.raises(E.Edeadlk):
            locks.lock(wr("b"), True)
        locks.unlock_owner("b", False)
    assert log == ["a"]


async def test_queueing_out_of_courtesy_ends_when_the_owner_takes_a_lock_elsewhere() -> None:
    space = LockSpace()
    one, two, log = Locks(space=space), Locks(space=space), list[Any]()
    one.lock(rd("r"), False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for, one, wr("w"), log)
        await wait_all_tasks_blocked()
        nursery.start_soon(wait_for, one, rd("polite"), log)
        await wait_all_tasks_blocked()
        assert log == []
        two.lock(wr("polite"), False)
        await wait_all_tasks_blocked()
        assert log == ["polite"]
        nursery.cancel_scope.cancel()


async def test_a_downgrade_lets_readers_in_and_a_lost_owner_ends_its_waits() -> None:
    locks = Locks(space=LockSpace())
    log: list[Any] = []
    locks.lock(wr("a"), False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for, locks, rd("b"), log)
        await wait_all_tasks_blocked()  # who came first matters: b must not queue behind a waiting writer
        nursery.start_soon(wait_for, locks, wr("gone"), log)
        await wait_all_tasks_blocked()
        locks.lock(rd("a"), False)
        await wait_all_tasks_blocked()
        assert log == ["b"]
        locks.unlock_owner("gone", False)
    assert log == ["b", "Einterrupted"]


@pytest.mark.hostile(59)
async def test_those_who_wait_count_against_the_limit_too() -> None:
    locks = Locks(limit=5, space=LockSpace())
    log: list[Any] = []
    locks.lock(wr("holder"), False)
    async with trio.open_nursery() as nursery:
        for at in range(8):
            nursery.start_soon(wait_for, locks, wr(("s", at)), log)
        await wait_all_tasks_blocked()
        assert log == ["Enolck"] * 3
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(8))
async def test_no_grant_is_lost_and_no_cycle_comes_to_be(seed: int) -> None:
    rng = random.Random(seed)
    space = LockSpace()
    files = [Locks(space=space) for _ in range(3)]
    waiting: set[str] = set()

    async def ask(at: int, lock: Lock) -> None:
        waiting.add(lock.owner)  # type: ignore[arg-type]  # owners are strings here
        try:
            with trio.CancelScope() as scope:
                scopes[lock.owner] = scope
                await settle(files[at].lock(lock, True))
        except E.Edeadlk:
            pass
        finally:
            waiting.discard(lock.owner)

    def blockers(owner: object) -> set[object]:
        return {held.owner for w in space.waits.get(owner, ()) for held in w.table.conflicts(w.lock)}

    scopes: dict[object, trio.CancelScope] = {}
    async with trio.open_nursery() as nursery:
        for step in range(250):
            owner, at, start = rng.choice("abcdef"), rng.randrange(3), rng.randrange(10)
            lock = Lock(rng.choice((F_RDLCK, F_WRLCK)), start, start + rng.randrange(8), owner)
            if owner in waiting:
                if rng.random() < 0.1:
                    scopes[owner].cancel()
            elif rng.random() < 0.6:
                nursery.start_soon(ask, at, lock)
            else:
                files[at].lock(lock._replace(type=F_UNLCK, end=lock.end + 3), False)
            await wait_all_tasks_blocked()
            assert set(space.waits) == waiting, f"seed {seed} step {step}"
            for table in (file._posix for file in files):
                for place, waiter in enumerate(table.queue):
                    assert table._blocked(waiter.lock, table.queue[:place]), f"seed {seed} step {step}: a lost grant"
            for first in waiting:
                seen, todo = set[object](), blockers(first)
                while todo:
                    assert first not in todo, f"seed {seed} step {step}: a cycle"
                    seen |= todo
                    todo = {after for other in todo for after in blockers(other)} - seen
        for _ in range(20):
            for owner in "abcdef":
                if owner not in waiting:
                    for file in files:
                        file.unlock_owner(owner, False)
            await wait_all_tasks_blocked()
        assert not waiting, "somebody hangs although all others let go"
