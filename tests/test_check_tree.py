"""The conformance kit passes sound trees, and each of its checks refuses a tree that is broken in its own way."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from ninep.env import Env
from ninep.file import Call, Dir, File, Handle, Symlink, new_path
from ninep.proto import errors as E
from ninep.proto.types import OAPPEND, Qid
from ninep.servers import ram
from ninep.servers.ram import RamDir, RamDirHandle
from ninep.servers.ram_file import RamFile, RamHandle
from ninep.servers.ram_node import Node, RamSymlink
from ninep.testing import SimEnv, check_tree, checks

pytestmark = pytest.mark.feature("library-check-tree")


# -- sound trees
class Bytes(Handle):
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, call: Call, offset: int, count: int) -> bytes:
        return self.data[offset : offset + count]


class Text(File):
    """The smallest sound file."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data

    def stat(self, call: Call) -> Any:
        return msgspec.structs.replace(super().stat(call), size=len(self.data))  # type: ignore[type-var]  # a value here

    def open(self, call: Call, omode: int) -> Handle:
        if omode & 3:
            raise E.Eperm
        return Bytes(self.data)


class Parked(Handle):
    stream = True

    def read(self, call: Call, offset: int, count: int) -> Any:
        return trio.sleep_forever()


class Bell(File):
    """A stream on which nothing ever comes."""

    reader: type[Handle] = Parked

    def open(self, call: Call, omode: int) -> Handle:
        if omode & 3:
            raise E.Eperm
        return self.reader()


class Small(Dir):
    """A read-only directory."""

    def __init__(self, **files: File) -> None:
        super().__init__()
        self.files = files

    def walk(self, call: Call, name: str) -> File:
        if name not in self.files:
            raise E.Enonexist(name)
        return self.files[name]

    def list(self, call: Call) -> Any:
        return list(self.files.items())


def small() -> Dir:
    return Small(text=Text(b"hello\n"), empty=Text(b""), dir=Small(inner=Text(bytes(100_000))))


def with_bell() -> Dir:
    return Small(text=Text(b"x"), bell=Bell())


async def test_sound_trees_pass() -> None:
    await check_tree(ram.tree, creates=True)
    await check_tree(small)
    await check_tree(with_bell, blocks=True)


async def test_a_tree_may_be_made_by_a_coroutine() -> None:
    async def make() -> Dir:
        await trio.lowlevel.checkpoint()
        return small()

    await check_tree(make)


async def test_a_ram_tree_passes_for_an_ordinary_user_too() -> None:
    from ninep.principal import local_principal

    user = Call(local_principal(1000, 1000, frozenset(), "one", "local"))
    await check_tree(lambda: ram.tree(uid=1000, gid=1000), creates=True, call=user)


# -- broken ones: what is patched in the ram tree, and which check must notice
Break = Callable[[pytest.MonkeyPatch], None]
BROKEN: list[tuple[str, str, Break]] = []


def broken(check: str) -> Callable[[Break], Break]:
    def enter(breaks: Break) -> Break:
        BROKEN.append((check, breaks.__name__, breaks))
        return breaks

    return enter


@broken("attach")
def any_aname_is_the_root(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RamDir, "attach", lambda self, call, aname: self)


@broken("walk-self")
def each_walk_finds_another_file(patch: pytest.MonkeyPatch) -> None:
    walk = RamDir.walk

    def again(self: RamDir, call: Call, name: str) -> Any:
        node: Any = walk(self, call, name)
        node.qid = node.qid._replace(path=new_path())
        return Frozen(node)

    class Frozen(Symlink):
        def __init__(self, node: Any) -> None:
            self.qid, self.kind = node.qid, node.kind  # type: ignore[misc]  # wrong on purpose

    patch.setattr(RamDir, "walk", again)


@broken("walk-missing")
def a_missing_name_is_forbidden(patch: pytest.MonkeyPatch) -> None:
    walk = RamDir.walk

    def hidden(self: RamDir, call: Call, name: str) -> File:
        try:
            return walk(self, call, name)
        except E.Enonexist:
            raise E.Eperm

    patch.setattr(RamDir, "walk", hidden)


def patch_entries(patch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    entries = RamDir.entries
    patch.setattr(RamDir, "entries", lambda self, cookie, count: change(entries(self, cookie, count)))


@broken("listing")
def listings_give_other_qids(patch: pytest.MonkeyPatch) -> None:
    patch_entries(patch, lambda found: [entry._replace(qid=Qid(0, 1, 77)) for entry in found])


@broken("listing")
def listings_name_dot(patch: pytest.MonkeyPatch) -> None:
    patch_entries(patch, lambda found: [entry._replace(name=".") for entry in found[:1]] + list(found[1:]))


@broken("resume")
def a_resumed_listing_skips_one(patch: pytest.MonkeyPatch) -> None:
    entries = RamDir.entries
    patch.setattr(RamDir, "entries", lambda self, cookie, count: entries(self, cookie + bool(cookie), count))


def patch_stat(patch: pytest.MonkeyPatch, cls: Any, change: Callable[[Any], Any]) -> None:
    stat = cls.stat
    patch.setattr(cls, "stat", lambda self, call: change(stat(self, call)))


@broken("stat")
def a_directory_has_a_files_mode(patch: pytest.MonkeyPatch) -> None:
    patch_stat(patch, Node, lambda st: msgspec.structs.replace(st, st_mode=0o100644))


@broken("unique")
def all_files_share_one_path(patch: pytest.MonkeyPatch) -> None:
    init = RamFile.__init__

    def same(self: Any, *args: Any) -> None:
        init(self, *args)
        self.qid = self.qid._replace(path=1 << 40)

    patch.setattr(RamFile, "__init__", same)


@broken("short-reads")
def reads_give_more_than_asked(patch: pytest.MonkeyPatch) -> None:
    read = RamHandle.read
    patch.setattr(RamHandle, "read", lambda self, call, offset, count: read(self, call, offset, max(count, 16)))


@broken("short-reads")
def the_past_of_the_end_is_an_error(patch: pytest.MonkeyPatch) -> None:
    read = RamHandle.read

    def strict(self: RamHandle, call: Call, offset: int, count: int) -> bytes:
        if offset > self.file.data.size:
            raise E.Ebadarg
        return read(self, call, offset, count)

    patch.setattr(RamHandle, "read", strict)


@broken("short-reads")
def read_into_overruns(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RamHandle, "read_into", lambda self, call, offset, buffer: len(buffer))


@broken("length")
def the_size_is_a_guess(patch: pytest.MonkeyPatch) -> None:
    patch_stat(patch, RamFile, lambda st: msgspec.structs.replace(st, size=4096))


@broken("snapshot")
def each_read_is_rendered_anew(patch: pytest.MonkeyPatch) -> None:
    count = itertools.count()
    read = RamHandle.read

    def fresh(self: RamHandle, call: Call, offset: int, size: int) -> bytes:
        data = read(self, call, offset, size)
        return bytes([next(count) % 251]) * len(data)

    patch.setattr(RamHandle, "read", fresh)


@broken("permission")
def everybody_may(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Node, "access", lambda self, call, want: None)


@broken("permission")
def everybody_may_chmod(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Node, "may_wstat", lambda self, call, change: None)


@broken("handles")
def closing_closes_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RamHandle, "close", lambda self, call: setattr(self.file, "shut", True))
    read = RamHandle.read

    def after(self: RamHandle, call: Call, offset: int, count: int) -> bytes:
        if getattr(self.file, "shut", False):
            raise E.Ehungup
        return read(self, call, offset, count)

    patch.setattr(RamHandle, "read", after)


@broken("no-parking")
def a_plain_file_parks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RamHandle, "read", lambda self, call, offset, count: trio.sleep_forever())


@broken("no-parking")
def an_undeclared_stream(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RamHandle, "stream", True)


@broken("bad-arguments")
def a_value_error_escapes(patch: pytest.MonkeyPatch) -> None:
    def seek(self: RamHandle, call: Call, offset: int, whence: int) -> int:
        raise ValueError(whence)

    patch.setattr(RamHandle, "seek", seek)


@broken("create")
def a_taken_name_is_replaced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RamDir, "_may_add", lambda self, name: self._names.pop(name, None))


@broken("directories")
def full_directories_go(patch: pytest.MonkeyPatch) -> None:
    remove = RamDir.remove

    def all_of_it(self: RamDir, call: Call, name: str, is_dir: bool | None, expect: File | None = None) -> None:
        node: Any = self.walk(call, name)
        if isinstance(node, RamDir):
            node._names.clear()
            node._order.clear()
        remove(self, call, name, is_dir, expect)

    patch.setattr(RamDir, "remove", all_of_it)


@broken("open-remove-read")
def content_goes_with_the_name(patch: pytest.MonkeyPatch) -> None:
    freed = Node.freed

    def emptied(self: Any) -> None:
        freed(self)
        self.data = RamFile.data

    patch.setattr(Node, "freed", emptied)


@broken("stale-remove")
def a_stale_file_removes_its_successor(patch: pytest.MonkeyPatch) -> None:
    remove = RamDir.remove
    patch.setattr(
        RamDir, "remove", lambda self, call, name, is_dir, expect=None: remove(self, call, name, is_dir, None)
    )


@broken("names")
def a_slash_is_a_name(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RamDir, "_check_name", lambda self, name: None)


@broken("names")
def names_are_folded(patch: pytest.MonkeyPatch) -> None:
    append = RamDir._append
    patch.setattr(RamDir, "_append", lambda self, name, node: append(self, name.lower(), node))


@broken("content")
def offsets_are_ignored(patch: pytest.MonkeyPatch) -> None:
    write = RamHandle.write
    patch.setattr(RamHandle, "write", lambda self, call, offset, data: write(self, call, min(offset, 4), data))


@broken("content")
def truncation_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RamFile, "open", lambda self, call, omode: RamHandle(self, bool(omode & OAPPEND)))


@broken("versions")
def versions_stand_still(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RamFile, "changed", lambda self: None)


@broken("closing")
def a_second_close_ends_the_file(patch: pytest.MonkeyPatch) -> None:
    def close(self: Any, call: Call) -> None:
        if getattr(self, "was_closed", False):
            raise RuntimeError("closed twice")
        self.was_closed = True

    patch.setattr(RamHandle, "close", close)


@broken("listing-changes")
def a_cookie_is_a_position(patch: pytest.MonkeyPatch) -> None:
    def entries(self: Any, call: Call, cookie: int, count: int) -> Any:
        from ninep.proto.types import Entry

        directory = self._dir
        order = [(name, entry.node) for name, entry in directory._names.items()]
        return [
            Entry(name, node.qid, node.kind >> 12, cookie + at)
            for at, (name, node) in enumerate(order[cookie : cookie + count], 1)
        ]

    patch.setattr(RamDirHandle, "entries", entries)


@broken("rename")
def noreplace_replaces(patch: pytest.MonkeyPatch) -> None:
    rename = RamDir.rename
    patch.setattr(
        RamDir, "rename", lambda self, call, name, to, to_name, flags: rename(self, call, name, to, to_name, flags & ~1)
    )


@broken("rename")
def a_directory_moves_into_itself(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RamDir, "_holds", lambda self, below: False)


@broken("links")
def symlinks_are_tidied(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RamSymlink, "readlink", lambda self, call: self.target.strip())


@broken("links")
def links_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch_stat(patch, RamFile, lambda st: msgspec.structs.replace(st, nlink=1))


@broken("watch")
def names_come_in_silence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RamDir, "_name_changed", lambda self, name: self.changed())
    patch.setattr(Node, "tell", lambda self, name: None)


@broken("watch")
def watchers_cannot_leave(patch: pytest.MonkeyPatch) -> None:
    subscribe = Node.subscribe

    def ever(self: Any, changed: Any) -> Any:
        subscribe(self, changed)
        return lambda: None

    patch.setattr(Node, "subscribe", ever)


@pytest.mark.parametrize(("check", "name", "breaks"), BROKEN, ids=[f"{check}-{name}" for check, name, _ in BROKEN])
async def test_a_broken_tree_fails_the_check_of_its_promise(
    check: str, name: str, breaks: Break, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    breaks(monkeypatch)
    others = set(checks()) - {check}
    with pytest.raises(AssertionError, match=f"(?s)1 of the promises.* {check}: .*promised: "):
        await check_tree(ram.tree, creates=True, skip=others)


async def test_a_read_that_outlives_its_cancellation_fails(autojump_clock: MockClock) -> None:
    class Deaf(Handle):
        stream = True

        async def read(self, call: Call, offset: int, count: int) -> bytes:
            with trio.CancelScope(shield=True):
                await trio.sleep(8)
            return b""

    class DeafBell(Bell):
        reader = Deaf

    with pytest.raises(AssertionError, match="cancel: /bell: a read goes on"):
        await check_tree(lambda: Small(bell=DeafBell()), blocks=True)


def test_every_check_has_a_tree_that_fails_it() -> None:
    assert {check for check, _, _ in BROKEN} | {"cancel"} == set(checks())


def test_every_check_says_what_it_promises() -> None:
    for name, promise in checks().items():
        assert promise.endswith((".", ")")), name


async def test_a_misspelt_check_is_told() -> None:
    with pytest.raises(ValueError, match="no such check: walk-sefl"):
        await check_tree(small, skip={"walk-sefl"})


# -- the simulated world
@pytest.mark.feature("simulated-world")
def test_the_same_seed_gives_the_same_world() -> None:
    one, two, other = SimEnv(7), SimEnv(7), SimEnv(8)
    assert one.random(32) == two.random(32) != other.random(32)
    assert [one.time_ns() for _ in range(5)] == [two.time_ns() for _ in range(5)]
    before = one.now_ns()
    assert one.now_ns() == before, "time stands until it is moved"
    one.advance(1.5)
    assert one.now_ns() - before == 1_500_000_000
    with pytest.raises(ValueError, match="backwards"):
        one.advance(-1)
    assert isinstance(one, Env)


@pytest.mark.feature("simulated-world")
async def test_a_simulated_world_follows_trios_clock(mock_clock: MockClock) -> None:
    env = SimEnv(clock=mock_clock)
    tree: Any = ram.tree(env=env)
    call = Call()
    born = tree.stat(call).btime_ns
    mock_clock.jump(3600)
    tree.mkdir(call, "later", 0o755)
    assert (tree.stat(call).mtime_ns - born) // 10**9 == 3600
