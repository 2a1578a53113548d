"""What a ram tree promises beyond tmpfs's rules: Plan 9's file flags, budgets, cookies, versions, watchers, thrift."""

from __future__ import annotations

import gc
import stat as _s
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ninep.env import Env
from ninep.file import Call
from ninep.limits import DEFAULT
from ninep.principal import NOBODY, local_principal
from ninep.proto import errors as E
from ninep.proto.types import (
    DMAPPEND,
    DMEXCL,
    F_WRLCK,
    OAPPEND,
    OFFSET_MAX,
    ORDWR,
    OREAD,
    OTRUNC,
    OWRITE,
    RENAME_EXCHANGE,
    SEEK_DATA,
    SEEK_HOLE,
    Change,
    Lock,
    Qid,
)
from ninep.servers import ram
from ninep.servers.ram_data import CHUNK, Budget, Sparse
from ninep.testing import check_tree

ROOT = Call(local_principal(0, 0, frozenset(), "root", "local"))
ONE = Call(local_principal(1000, 1000, frozenset(), "one", "local"))

pytestmark = pytest.mark.feature("ram-tree")


def new_tree(*args: Any, **kwargs: Any) -> Any:
    """Untyped on purpose: a ram tree answers at once, and no test here wants to settle."""
    return ram.tree(*args, **kwargs)


def small(**limits: int) -> Any:
    return new_tree(msgspec.structs.replace(DEFAULT, **limits))


def make(tree: Any, name: str = "f", perm: int = 0o644) -> tuple[Any, Any]:
    return tree.create(ROOT, name, perm, ORDWR)  # type: ignore[no-any-return]  # the trees here are Any


# -- content
def test_sparse_content_agrees_with_a_plain_bytearray() -> None:
    offsets = st.integers(0, 3 * CHUNK) | st.sampled_from([0, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
    lengths = st.integers(0, 40) | st.integers(0, 2 * CHUNK) | st.sampled_from([CHUNK, CHUNK - 1])
    ops = st.lists(
        st.tuples(st.sampled_from(["write", "truncate", "punch", "zero", "reserve", "read", "seek"]), offsets, lengths),
        max_size=30,
    )

    @settings(max_examples=150, deadline=None)
    @given(ops)
    def run(script: list[tuple[str, int, int]]) -> None:
        budget = Budget(1 << 30, 10)
        ours, model = Sparse(budget), bytearray()
        for at, (op, offset, length) in enumerate(script):
            end = offset + length
            if op == "write" and length:
                data = bytes([at + 1]) * length
                ours.write(offset, memoryview(data))
                model.extend(bytes(max(0, end - len(model))))
                model[offset:end] = data
            elif op == "truncate":
                ours.truncate(offset)
                model = model[:offset] + bytes(max(0, offset - len(model)))
            elif op in ("punch", "zero") and length:
                if op == "zero":
                    ours.zero(offset, length, keep_size=True)
                else:
                    ours.punch(offset, length)
                stop = min(end, len(model))
                if stop > offset:
                    model[offset:stop] = bytes(stop - offset)
            elif op == "reserve" and length:
                ours.reserve(offset, length, keep_size=False)
                model.extend(bytes(max(0, end - len(model))))
            elif op == "read":
                assert ours.read(offset, length) == model[offset:end]
                buffer = bytearray(length)
                n = ours.read_into(offset, memoryview(buffer))
                assert buffer[:n] == model[offset:end]
            elif op == "seek" and offset < len(model):
                hole = ours.seek_hole(offset)
                assert offset <= hole <= len(model)
                try:
                    data_at = ours.seek_data(offset)
                except E.Enxio:
                    data_at = len(model)
                assert not any(model[offset:data_at]), "a hole holds only zeros"
                assert offset in (hole, data_at)
            assert ours.size == len(model)
            assert budget.bytes_used == ours.charged >= 0
        assert ours.read(0, len(model) + 5) == model
        del ours
        assert budget.bytes_used == 0

    run()


def test_a_file_of_2_to_the_63_costs_nothing_until_it_is_written() -> None:
    tree = new_tree()
    file, handle = make(tree)
    file.wstat(ROOT, Change(size=OFFSET_MAX))
    assert file.stat(ROOT).size == OFFSET_MAX
    assert file.stat(ROOT).blocks == 0
    assert handle.read(ROOT, OFFSET_MAX - 4, 100) == bytes(4)
    assert handle.read(ROOT, 1 << 40, 5) == bytes(5)
    handle.write(ROOT, 1 << 50, b"x")
    assert file.stat(ROOT).blocks == 8
    assert handle.seek(ROOT, 0, SEEK_DATA) == 1 << 50
    assert handle.seek(ROOT, 1 << 50, SEEK_HOLE) == (1 << 50) + 1
    with pytest.raises(E.Enxio):
        handle.seek(ROOT, (1 << 51), SEEK_DATA)
    with pytest.raises(E.Efbig):
        handle.write(ROOT, OFFSET_MAX - 1, b"xyz")
    with pytest.raises(E.Efbig):
        file.wstat(ROOT, Change(size=OFFSET_MAX + 1))


def test_fallocate_reserves_punches_and_zeroes() -> None:
    tree = small(ram_bytes_max=4 * CHUNK)
    file, handle = make(tree)
    handle.allocate(ROOT, 1, 0, 2 * CHUNK)  # keep size
    assert file.stat(ROOT).size == 0
    assert tree.statfs(ROOT).bfree == 2 * CHUNK // 4096
    other = make(tree, "g")[1]
    with pytest.raises(E.Enospc):
        other.write(ROOT, 0, bytes(2 * CHUNK + 1))
    assert other.file.stat(ROOT).size == 0, "a refused write leaves nothing"
    other.write(ROOT, 0, bytes(2 * CHUNK))
    handle.write(ROOT, 0, b"\1" * (2 * CHUNK))  # the reserved room is there although the tree is full
    handle.allocate(ROOT, 3, CHUNK, CHUNK)
    assert handle.read(ROOT, CHUNK - 1, 2) == b"\1\0"
    assert handle.seek(ROOT, 0, SEEK_HOLE) == CHUNK
    assert tree.statfs(ROOT).bfree == CHUNK // 4096
    handle.allocate(ROOT, 0x10 | 1, 10, 10)
    assert handle.read(ROOT, 9, 12) == b"\1" + bytes(10) + b"\1"
    for mode, offset, length, error in (
        (0, 0, 1 << 62, E.Enospc),
        (0, 0, 0, E.Ebadarg),
        (0, -1, 5, E.Ebadarg),
        (0, OFFSET_MAX, 5, E.Efbig),
        (2, 0, 5, E.Eunsupported),
        (8, 0, 5, E.Eunsupported),
    ):
        with pytest.raises(error):
            handle.allocate(ROOT, mode, offset, length)


def test_a_full_tree_says_so_and_gives_back_what_is_removed() -> None:
    tree = small(ram_bytes_max=1 << 20, ram_files_max=4)
    handle = make(tree, "a")[1]
    handle.write(ROOT, 0, bytes(1 << 20))
    with pytest.raises(E.Enospc):
        make(tree, "b")[1].write(ROOT, 0, b"x")
    make(tree, "c")
    with pytest.raises(E.Enospc):
        tree.mkdir(ROOT, "d", 0o755)
    tree.remove(ROOT, "a", False)
    assert tree.statfs(ROOT).ffree == 1
    assert tree.statfs(ROOT).bfree == 0, "an open unlinked file still holds its bytes"
    assert handle.read(ROOT, 5, 3) == bytes(3)
    handle.close(ROOT)
    del handle
    assert tree.statfs(ROOT).bfree == (1 << 20) // 4096
    for _ in range(50):
        tree.mkdir(ROOT, "d", 0o755)
        tree.remove(ROOT, "d", True)


def test_an_unlinked_file_lives_while_it_is_open() -> None:
    tree = new_tree()
    file, handle = make(tree)
    handle.write(ROOT, 0, b"alive")
    tree.remove(ROOT, "f", False)
    with pytest.raises(E.Enonexist):
        tree.walk(ROOT, "f")
    handle.write(ROOT, 5, b"!")
    assert handle.read(ROOT, 0, 10) == b"alive!"
    assert file.stat(ROOT).nlink == 0
    with pytest.raises(E.Enonexist):
        tree.link(ROOT, "back", file)
    make(tree)[1].write(ROOT, 0, b"new")
    assert handle.read(ROOT, 0, 10) == b"alive!"


def test_sequential_writes_of_views_keep_nothing_of_the_callers_buffer() -> None:
    _, handle = make(new_tree())
    buffer = bytearray(b"x" * (2 * CHUNK))
    handle.write(ROOT, 10, memoryview(buffer))
    buffer[:] = b"y" * len(buffer)
    assert handle.read(ROOT, 10, 2 * CHUNK) == b"x" * (2 * CHUNK)


# -- stat(5) and open(5)
def test_append_only_files_only_grow() -> None:
    tree = new_tree()
    file, handle = make(tree, perm=0o644 | DMAPPEND)
    handle.write(ROOT, 0, b"one")
    handle.write(ROOT, 0, b"two")
    again = file.open(ROOT, OWRITE | OTRUNC)  # "the open succeeds but the file will not be truncated"
    again.write(ROOT, 1, b"3")
    assert handle.read(ROOT, 0, 99) == b"onetwo3"
    assert file.qid.type == 0x40
    assert file.stat(ROOT).flags == DMAPPEND
    with pytest.raises(E.Enotallowed):
        file.wstat(ROOT, Change(size=0))
    with pytest.raises(E.Enotallowed):
        handle.truncate(ROOT, 0)
    with pytest.raises(E.Enotallowed):
        handle.allocate(ROOT, 3, 0, 1)


def test_appending_handles_interleave_at_the_end() -> None:
    tree = new_tree()
    file, _ = make(tree)
    a, b = file.open(ROOT, OWRITE | OAPPEND), file.open(ROOT, OWRITE | OAPPEND)
    for text in (b"1", b"22", b"3"):
        a.write(ROOT, 0, text)
        b.write(ROOT, 0, text.upper() + b"-")
    assert file.open(ROOT, OREAD).read(ROOT, 0, 99) == b"11-2222-33-"


def test_an_exclusive_file_has_one_opener_at_a_time() -> None:
    tree = new_tree()
    file, handle = make(tree, perm=0o644 | DMEXCL)
    with pytest.raises(E.Eexclusive):
        file.open(ROOT, OREAD)
    handle.close(ROOT)
    file.open(ROOT, OREAD).close(ROOT)
    file.open(ROOT, OREAD)
    with pytest.raises(E.Eexclusive):
        file.open(ROOT, OREAD)


def test_versions_grow_with_content_and_are_never_zero() -> None:
    tree = new_tree()
    file, handle = make(tree)
    seen = [file.qid.vers]
    handle.write(ROOT, 0, b"x")
    seen.append(file.qid.vers)
    handle.truncate(ROOT, 0)
    seen.append(file.qid.vers)
    file.wstat(ROOT, Change(perm=0o600))
    assert file.qid.vers == seen[-1], "metadata is not content"
    assert seen == sorted(set(seen))
    assert min(seen) > 0
    file.qid = Qid(0, 0xFFFFFFFF, file.qid.path)
    handle.write(ROOT, 0, b"x")
    assert file.qid.vers == 1
    before = tree.qid.vers
    make(tree, "other")
    assert tree.qid.vers > before


def test_what_a_tree_cannot_hold_is_refused() -> None:
    tree = new_tree()
    for kind in (_s.S_IFCHR, _s.S_IFBLK):
        with pytest.raises(E.Enotallowed):
            tree.mknod(ROOT, "dev", kind | 0o666, 0x101)
    for name in ("", ".", "..", "a/b", "a\0b"):
        with pytest.raises(E.Ebadchar):
            make(tree, name)
    with pytest.raises(E.Enametoolong):
        make(tree, "é" * 128)
    with pytest.raises(E.Enametoolong):
        tree.symlink(ROOT, "l", "x" * 4096)
    make(tree, "é" * 127)
    make(tree, b"\xff\xfe".decode("utf-8", "surrogateescape"))
    other = new_tree()
    file, handle = make(tree)
    with pytest.raises(E.Exdev):
        other.link(ROOT, "f", file)
    with pytest.raises(E.Exdev):
        tree.rename(ROOT, "f", other, "f", 0)
    with pytest.raises(E.Exdev):
        handle.copy_range(ROOT, 0, make(other)[1], 0, 5)
    with pytest.raises(E.Enxio):
        tree.mknod(ROOT, "p", _s.S_IFIFO | 0o600, 0).open(ROOT, OREAD)


def test_a_directory_cannot_move_into_itself_nor_a_removed_one_be_filled() -> None:
    tree = new_tree()
    a = tree.mkdir(ROOT, "a", 0o755)
    b = a.mkdir(ROOT, "b", 0o755)
    for goal in (a, b):
        with pytest.raises(E.Ebadarg):
            tree.rename(ROOT, "a", goal, "c", 0)
    with pytest.raises(E.Ebadarg):
        tree.rename(ROOT, "a", b, "c", 0)
    with pytest.raises(E.Enotempty):
        a.rename(ROOT, "b", tree, "a", 0)
    a.remove(ROOT, "b", True)
    with pytest.raises(E.Enonexist):
        b.create(ROOT, "x", 0o644, OREAD)
    with pytest.raises(E.Enonexist):
        tree.rename(ROOT, "a", b, "x", 0)
    assert (tree.stat(ROOT).nlink, a.stat(ROOT).nlink, b.stat(ROOT).nlink) == (3, 2, 0)
    with pytest.raises(E.Estale):
        tree.remove(ROOT, "a", None, expect=b)
    c = tree.mkdir(ROOT, "c", 0o755)
    make(c, "inner")
    tree.rename(ROOT, "a", tree, "c", RENAME_EXCHANGE)
    assert tree.walk(ROOT, "a") is c
    assert tree.walk(ROOT, "c") is a


def test_nobody_owns_nothing_even_with_an_equal_number() -> None:
    tree = new_tree(perm=0o1777)
    claims_1000 = Call(msgspec.structs.replace(NOBODY, uid=1000))
    tree.create(ONE, "mine", 0o600, ORDWR)
    with pytest.raises(E.Enotallowed):
        tree.remove(claims_1000, "mine", False)
    tree.remove(ONE, "mine", False)


# -- extended attributes
def test_xattrs_keep_to_their_limits() -> None:
    tree = small(xattr_names_max=3, xattr_bytes_max=100, ram_bytes_max=1 << 20)
    file, _ = make(tree)
    for at in range(3):
        file.setxattr(ROOT, f"user.{at}", b"v", 0)
    with pytest.raises(E.Enospc):
        file.setxattr(ROOT, "user.more", b"v", 0)
    with pytest.raises(E.E2big):
        file.setxattr(ROOT, "user.0", bytes(101), 0)
    with pytest.raises(E.Eunsupported):
        file.setxattr(ROOT, "system.posix_acl_access", b"", 0)
    with pytest.raises(E.Erange):
        file.setxattr(ROOT, "user." + "x" * 251, b"", 0)
    with pytest.raises(E.Ebadarg):
        file.setxattr(ROOT, "user.0", b"", 4)
    tree.remove(ROOT, "f", False)
    assert tree.ram.budget.bytes_used == 0


def test_security_classes_are_the_superusers() -> None:
    file, _ = make(new_tree(), perm=0o666)
    file.setxattr(ROOT, "trusted.t", b"1", 0)
    file.setxattr(ONE, "user.u", b"2", 0)
    assert file.listxattr(ROOT) == ("trusted.t", "user.u")
    assert file.listxattr(ONE) == ("user.u",)
    with pytest.raises(E.Enoattr):
        file.getxattr(ONE, "trusted.t")
    for name in ("trusted.t", "security.x"):
        with pytest.raises(E.Enotallowed):
            file.setxattr(ONE, name, b"", 0)


# -- directories
def names(entries: Any) -> list[str]:
    return [entry.name for entry in entries]


def test_a_listing_goes_on_from_any_cookie_whatever_is_created_or_removed() -> None:
    tree = new_tree()
    for at in range(200):
        make(tree, f"f{at}")
    handle = tree.open(ROOT, OREAD)
    first = handle.entries(ROOT, 0, 50)
    for at in range(0, 200, 2):
        tree.remove(ROOT, f"f{at}", False)  # the cookie's own entry among them
    for at in range(30):
        make(tree, f"new{at}")
    rest, cookie = [], first[-1].cookie
    while batch := handle.entries(ROOT, cookie, 7):
        rest += batch
        cookie = batch[-1].cookie
    seen = names(first) + names(rest)
    assert len(seen) == len(set(seen))
    assert {f"f{at}" for at in range(1, 200, 2)} <= set(seen)
    cookies = [entry.cookie for entry in first] + [entry.cookie for entry in rest]
    assert cookies == sorted(cookies)
    assert names(handle.entries(ROOT, first[9].cookie, 3)) == ["f11", "f13", "f15"]
    for bad in (-1, 10**9):
        with pytest.raises(E.Ediroffset):
            handle.entries(ROOT, bad, 5)


def test_a_replaced_name_keeps_its_place_in_a_listing() -> None:
    tree = new_tree()
    for name in ("a", "b", "c"):
        make(tree, name)
    handle = tree.open(ROOT, OREAD)
    begun = handle.entries(ROOT, 0, 2)
    tree.rename(ROOT, "c", tree, "a", 0)
    assert names(begun) + names(handle.entries(ROOT, begun[-1].cookie, 9)) == ["a", "b"]


def test_removed_names_do_not_pile_up() -> None:
    tree = new_tree()
    make(tree, "stays")
    for at in range(5000):
        make(tree, f"f{at}")
        tree.remove(ROOT, f"f{at}", False)
    assert len(tree._order) < 100
    assert names(tree.open(ROOT, OREAD).entries(ROOT, 0, 9)) == ["stays"]


def test_an_empty_file_takes_at_most_600_bytes_and_many_are_listed_once() -> None:
    tree = new_tree()
    make(tree, "warm")
    count = 20_000
    gc.collect()
    tracemalloc.start()
    try:
        for at in range(count):
            tree.create(ROOT, f"file{at:06}", 0o644, ORDWR)[1].close(ROOT)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used / count <= 600
    handle, cookie, seen = tree.open(ROOT, OREAD), 0, 0
    while batch := handle.entries(ROOT, cookie, 1000):
        seen += len(batch)
        cookie = batch[-1].cookie
    assert seen == count + 1


# -- times, watchers, locks
class Steps(Env):
    """A clock that tells how often it was asked."""

    def __init__(self) -> None:
        self.time = 1000

    def time_ns(self) -> int:
        self.time += 1
        return self.time


def test_times_come_from_the_env() -> None:
    env = Steps()
    tree = new_tree(env=env)
    file, handle = make(tree)
    born = file.stat(ROOT)
    assert born.btime_ns == born.mtime_ns == born.ctime_ns < 1010
    handle.write(ROOT, 0, b"x")
    after = file.stat(ROOT)
    assert after.mtime_ns == after.ctime_ns == env.time
    assert (after.btime_ns, after.atime_ns) == (born.btime_ns, born.atime_ns)


def test_watchers_hear_of_content_metadata_and_names() -> None:
    tree = new_tree()
    file, handle = make(tree)
    heard: list[Any] = []
    end = file.subscribe(lambda name: heard.append(("file", name)))
    end_dir = tree.subscribe(lambda name: heard.append(("dir", name)))
    handle.write(ROOT, 0, b"x")
    file.wstat(ROOT, Change(perm=0o600))
    make(tree, "new")
    tree.rename(ROOT, "new", tree, "newer", 0)
    assert heard[:2] == [("file", None), ("file", None)]
    assert heard[2:] == [("dir", "new"), ("dir", "new"), ("dir", "newer")]
    end()
    end_dir()
    end()
    heard.clear()
    handle.write(ROOT, 0, b"x")
    tree.remove(ROOT, "f", False)
    assert heard == []


def test_locks_belong_to_the_file_not_to_the_open() -> None:
    tree = new_tree()
    file, a = make(tree)
    b = file.open(ROOT, ORDWR)
    lock = Lock(F_WRLCK, 0, OFFSET_MAX, ("s", 1))
    assert b.getlock(ROOT, lock) is None
    assert a.lock(ROOT, lock, False) is True
    theirs = lock._replace(owner=("s", 2))
    assert b.lock(ROOT, theirs, False) is False
    assert b.getlock(ROOT, theirs) == lock
    a.unlock_owner(ROOT, ("s", 1), False)
    assert b.lock(ROOT, theirs, False) is True
    b.unlock_owner(ROOT, ("s", 2), False)


def test_copy_range_copies_within_and_between_files() -> None:
    tree = new_tree()
    _, a = make(tree, "a")
    _, b = make(tree, "b")
    a.write(ROOT, 0, bytes(range(256)) * 1000)
    assert a.copy_range(ROOT, 100, b, 5, 200_000) == 200_000
    assert b.read(ROOT, 5, 10) == bytes(range(100, 110))
    assert a.copy_range(ROOT, 255_000, b, 0, 1 << 62) == 1000
    with pytest.raises(E.Ebadarg):
        a.copy_range(ROOT, 0, a, 10, 20)


async def test_a_ram_tree_keeps_every_promise_of_a_tree() -> None:
    await check_tree(ram.tree, creates=True)


def test_links_have_a_bound() -> None:
    tree = new_tree()
    file, _ = make(tree)
    file.nlink = ram.LINKS_MAX
    with pytest.raises(E.Emlink):
        tree.link(ROOT, "one-more", file)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_million_names_stream_past_without_a_pause() -> None:
    tree = small(ram_files_max=2_000_000)
    count = 1_000_000
    for at in range(count):
        tree.create(ROOT, f"f{at}", 0o644, ORDWR)[1].close(ROOT)
    handle, cookie, seen = tree.open(ROOT, OREAD), 0, 0
    while batch := handle.entries(ROOT, cookie, 1000):
        seen += len(batch)
        cookie = batch[-1].cookie
        if seen % 100_000 == 0:  # meanwhile names come and go
            tree.remove(ROOT, f"f{seen - 1}", False)
            make(tree, f"new{seen}")
    assert seen >= count
