"""The checks that any tree can stand, read-only ones too: names, listings, lengths, snapshots, refusals.

Each function is one promise of ninep.file, and its docstring is the sentence a failing author reads.
"""

from __future__ import annotations

import trio
import trio.testing

from .answer import settle
from .file import Dir, Handle, permit
from .proto import errors as E
from .proto.types import (
    NOW,
    OEXEC,
    OFFSET_MAX,
    ORDWR,
    OREAD,
    OTRUNC,
    OWRITE,
    R_WANT,
    W_WANT,
    X_WANT,
    Change,
    Lock,
    dtype_of,
    qtype_of,
)
from .testing_kit import STRANGER, Tree, check, harmless, refused, require

HANDLES = 1000
MISSING = "no such name, we hope"


@check("attach")
async def attach_selects_exactly(tree: Tree) -> None:
    """attach("") and "/" answer a directory; an unknown aname is refused."""
    for aname in ("", "/"):
        root = await settle(tree.root.attach(tree.call, aname))
        require(isinstance(root, Dir), f"attach({aname!r}) is no Dir")
    for aname in (MISSING, "../..", "\0", "x" * 10_000):
        await refused(f"attach({aname[:30]!r})", (E.FileError,), tree.root.attach, tree.call, aname)


@check("walk-self")
async def walking_twice_finds_the_same_file(tree: Tree) -> None:
    """Two walks to a listed name find one qid path, and the stat agrees with the file."""
    for path, directory in await tree.dirs():
        for entry in await tree.listing(directory):
            one, two = await tree.walk(directory, entry.name), await tree.walk(directory, entry.name)
            where = f"{path}/{entry.name}"
            require(one.qid.path == two.qid.path, f"{where}: two walks, two qid paths")
            require((await tree.stat(one)).qid.path == one.qid.path, f"{where}: stat and file differ in qid path")


@check("walk-missing")
async def a_missing_name_is_enonexist(tree: Tree) -> None:
    """A name that is not there answers Enonexist, each time it is asked."""
    for path, directory in await tree.dirs():
        for name in (MISSING, "x" * 255, "\udcff\udcfe", MISSING):
            await refused(f"{path}: walk({name[:30]!r})", (E.Enonexist,), directory.walk, tree.call, name)


@check("listing")
async def listings_agree_with_walks(tree: Tree) -> None:
    """Every entry can be walked to and has that file's qid and type; names and cookies are distinct."""
    for path, directory in await tree.dirs():
        entries = await tree.listing(directory)
        names = [entry.name for entry in entries]
        require(len(set(names)) == len(names), f"{path}: a name is listed twice: {names!r:.200}")
        require(not {"", ".", ".."} & set(names), f"{path}: lists one of '', '.', '..'")
        cookies = [entry.cookie for entry in entries]
        require(len(set(cookies)) == len(cookies), f"{path}: a cookie is given twice: {cookies!r:.100}")
        require(all(0 < cookie <= OFFSET_MAX for cookie in cookies), f"{path}: a cookie outside 1..2**63-1")
        for entry in entries:
            require("/" not in entry.name and "\0" not in entry.name, f"{path}: {entry.name!r} cannot be a name")
            file = await tree.walk(directory, entry.name)
            stat = await tree.stat(file)
            where = f"{path}/{entry.name}"
            require(entry.qid.path == stat.qid.path, f"{where}: listed as {entry.qid}, walked {stat.qid}")
            require(entry.qid.type == stat.qid.type, f"{where}: listed as {entry.qid}, walked {stat.qid}")
            require(entry.dtype in (0, dtype_of(stat.st_mode)), f"{where}: listed as type {entry.dtype}")


@check("resume")
async def a_listing_resumes_after_every_cookie(tree: Tree) -> None:
    """From each cookie given, the same handle goes on with exactly the entries after it, in batches of any size."""
    for path, directory in await tree.dirs():
        if not (whole := await tree.listing(directory)):
            continue
        handle = await settle(directory.open(tree.call, OREAD))
        order = [entry.name for entry in await tree.entries_of(handle)]
        require(set(order) == {entry.name for entry in whole}, f"{path}: two listings differ")
        whole = await tree.entries_of(handle)
        for at in range(0, len(whole), max(1, len(whole) // 40)):
            rest = [entry.name for entry in await tree.entries_of(handle, whole[at].cookie, 3)]
            require(rest == order[at + 1 :], f"{path}: after cookie {whole[at].cookie} came {rest!r:.100}")
        batch = await settle(handle.entries(tree.call, 0, 1))
        require(len(batch) >= 1, f"{path}: a batch of one is empty")
        await tree.close(handle)


@check("stat")
async def stats_agree_with_themselves(tree: Tree) -> None:
    """The qid type agrees with the mode, a Dir alone has a directory's mode, and numbers are in range."""
    for path, file, stat in await tree.files():
        require(stat.qid.type == qtype_of(stat.st_mode, stat.flags), f"{path}: {stat.qid} for its mode")
        require(stat.is_dir == isinstance(file, Dir), f"{path}: mode {stat.st_mode:o} for {type(file).__name__}")
        require(file.kind == stat.st_mode & 0o170000, f"{path}: kind {file.kind:o}, mode {stat.st_mode:o}")
        require(stat.size >= 0 and stat.nlink >= 1, f"{path}: size {stat.size}, nlink {stat.nlink}")
        require(0 <= stat.qid.vers < 1 << 32 and 0 <= stat.qid.path < 1 << 64, f"{path}: {stat.qid} does not fit")
        require(0 <= stat.uid < 1 << 32 and 0 <= stat.gid < 1 << 32, f"{path}: uid {stat.uid} gid {stat.gid}")


@check("unique")
async def different_files_have_different_paths(tree: Tree) -> None:
    """A qid path names one file: the same path twice is one file under two names (a hard link), of one kind."""
    seen: dict[int, tuple[str, int, int]] = {}
    for path, _, stat in await tree.files():
        before = seen.setdefault(stat.qid.path, (path, stat.st_mode, stat.nlink))
        if before[0] != path:
            require(not stat.is_dir and stat.nlink > 1, f"{path} has the qid path of {before[0]}, and is no hard link")
            require(before[1] == stat.st_mode, f"{path} has the qid path of {before[0]}, which has another mode")


@check("short-reads")
async def short_reads_join_up(tree: Tree) -> None:
    """Whatever the counts, reads of one open join up to the same bytes; past the end is b"", and stays it.

    A direct file (random numbers, a live counter) may read differently each time.
    """
    for found, handle in await tree.readable():
        if handle.direct:
            await tree.whole(handle, 100, 1000)
            await tree.close(handle)
            continue
        data = await tree.whole(handle)
        head = data[:300]
        for piece, part in ((1, head), (7, head), (4096, data[: 1 << 18])):
            again = await tree.whole(handle, piece, len(part)) if part else b""
            require(again[: len(part)] == part, f"{found.path}: pieces of {piece} do not join up to the whole")
        for offset in (len(data), len(data) + 1, 1 << 40, OFFSET_MAX):
            if offset >= len(data) and len(data) < 4 << 20:
                past = await settle(handle.read(tree.call, offset, 10))
                require(past == b"", f"{found.path}: read at {offset} of {len(data)} bytes answered {past!r:.40}")
        buffer = bytearray(b"\xaa" * (len(head) + 3))
        n = await settle(handle.read_into(tree.call, 0, memoryview(buffer)[: len(head) + 2]))
        require(bytes(buffer[: min(n, len(head))]) == head[:n], f"{found.path}: read_into and read differ")
        require(buffer[-1] == 0xAA and n <= len(head) + 2, f"{found.path}: read_into wrote past its buffer")
        await tree.close(handle)


@check("length")
async def the_length_is_true(tree: Tree) -> None:
    """Stat.size is the number of bytes a reader gets, for whatever is neither a stream nor direct."""
    for found, handle in await tree.readable():
        if not handle.direct and found.stat.size <= 4 << 20:
            data = await tree.whole(handle)
            require(len(data) == found.stat.size, f"{found.path}: size {found.stat.size}, but {len(data)} were read")
        await tree.close(handle)


@check("snapshot")
async def one_open_reads_one_moment(tree: Tree) -> None:
    """A snapshot's stat stays, and two opens of it read the same, however their reads are mixed."""
    for found, one in await tree.readable():
        if one.direct:
            await tree.close(one)
            continue
        two = await settle(found.file.open(tree.call, OREAD))
        first = await settle(one.read(tree.call, 0, 3))
        other = await tree.whole(two)
        rest = await tree.whole(one)
        require(first == rest[:3], f"{found.path}: the content changed under an open handle")
        require(rest == other, f"{found.path}: two opens of one snapshot read different bytes")
        again = await tree.stat(found.file)
        require(again.size == found.stat.size, f"{found.path}: size {found.stat.size}, then {again.size}")
        await tree.close(one, two)


@check("permission", needs="judges")
async def permission_bits_are_kept(tree: Tree) -> None:
    """`access` refuses a stranger exactly what the mode does, and changes of mode and owner are not the stranger's."""
    for path, file, stat in await tree.files():
        for want in (R_WANT, W_WANT, X_WANT, R_WANT | W_WANT):
            try:
                permit(STRANGER.principal, stat, want)
            except E.Eperm:
                await refused(f"{path}: access({want}) by a stranger", (E.FileError,), file.access, STRANGER, want)
            else:
                await settle(file.access(STRANGER, want))
        for change in (Change(perm=0o777), Change(uid=54321), Change(mtime_ns=1)):
            await refused(f"{path}: {change} by a stranger", (E.FileError,), file.may_wstat, STRANGER, change)


@check("handles")
async def a_thousand_handles_are_apart(tree: Tree) -> None:
    """A thousand opens of one file, each with state of its own; closing one leaves the others alone."""
    chosen = None
    for found, handle in await tree.readable():
        if chosen is None and not handle.direct:
            chosen = found, handle
        else:
            await tree.close(handle)
    if chosen is None:
        return
    found, first = chosen
    data = await tree.whole(first, limit=4096)
    handles = [first]
    try:
        for _ in range(HANDLES - 1):
            handles.append(await settle(found.file.open(tree.call, OREAD)))
    except (E.Eexclusive, E.Emfile, E.Enofids, E.Etoomany):
        pass  # a tree may say how many, and must then go on
    for handle in handles[::2]:
        await tree.close(handle)
    for handle in handles[1::2]:
        part = await settle(handle.read(tree.call, 0, 4096))
        require(part == data[: len(part)], f"{found.path}: a handle read otherwise after another was closed")
        await tree.close(handle)
    await tree.close(await settle(found.file.open(tree.call, OREAD)))


@check("no-parking")
async def nothing_parks_that_is_not_a_stream(tree: Tree) -> None:
    """Files that are no streams answer within seconds; a tree that declares blocks=False has no stream at all."""
    if not tree.blocks:
        for found, handle in await tree.streams():
            await tree.close(handle)
            require(False, f"{found.path} is a stream, and the tree declared that nothing blocks")
    for found, handle in await tree.readable():
        with trio.move_on_after(5) as scope:
            await settle(handle.read(tree.call, 0, 10))
        require(not scope.cancelled_caught, f"{found.path}: a read that is no stream's parked for 5 s")
        await tree.close(handle)


@check("cancel", needs="blocks")
async def a_cancelled_read_ends(tree: Tree) -> None:
    """A parked read ends when it is cancelled, its handle still closes, and the next open parks or reads as before."""
    for found, handle in await tree.streams():
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read_some, tree, handle)
                await trio.testing.wait_all_tasks_blocked()
                begun = trio.current_time()
                nursery.cancel_scope.cancel()
            require(trio.current_time() - begun < 2, f"{found.path}: a read goes on after it was cancelled")
        await tree.close(handle)


async def _read_some(tree: Tree, handle: Handle) -> None:
    try:
        await settle(handle.read(tree.call, 0, 8192))
    except E.FileError:
        return


@check("bad-arguments")
async def bad_arguments_are_file_errors(tree: Tree) -> None:
    """Whatever is asked, only FileError escapes.  (Changes are asked only of trees that are writable.)"""
    call = tree.call
    for path, file, _ in await tree.files():
        for name in ("", "user.", "user.x\0", "x" * 4096, "system.nfs4_acl"):
            await harmless(f"{path}: getxattr({name[:12]!r})", file.getxattr, call, name)
        await harmless(f"{path}: listxattr", file.listxattr, call)
        await harmless(f"{path}: statfs", file.statfs, call)
        await harmless(f"{path}: readlink", file.readlink, call)
        if isinstance(file, Dir):
            for name in (MISSING, "x" * 5000, "\udc80", "a\nb", "é" * 200):
                await harmless(f"{path}: walk({name[:12]!r})", file.walk, call, name)
                for is_dir in (True, False, None):
                    await refused(f"{path}: remove of a missing name", (E.FileError,), file.remove, call, name, is_dir)
                await refused(
                    f"{path}: rename of a missing name", (E.FileError,), file.rename, call, name, file, "y", 0
                )
        for omode in (OREAD, OWRITE, ORDWR, OEXEC, OREAD | OTRUNC):
            if omode != OREAD and not tree.writable:
                continue
            try:
                handle = await settle(file.open(call, omode))
            except E.FileError:
                continue
            except Exception as e:
                require(False, f"{path}: open({omode:#x}): {type(e).__name__} escaped ({e})")
            if not handle.stream:
                await _bad_arguments_of_a_handle(tree, f"{path} opened {omode:#x}", handle, omode)
            await tree.close(handle)
        if tree.writable:
            for change in (
                Change(size=-1), Change(size=OFFSET_MAX), Change(size=1 << 70), Change(perm=1 << 20),
                Change(mtime_ns=NOW), Change(mtime_ns=1 << 62), Change(),
            ):  # fmt: skip
                await harmless(f"{path}: wstat({change})", file.wstat, call, change)
            await harmless(f"{path}: setxattr", file.setxattr, call, "", b"", 99)


async def _bad_arguments_of_a_handle(tree: Tree, where: str, handle: Handle, omode: int) -> None:
    call = tree.call
    lock = Lock(0, 5, 1, ("kit", 1))
    for what, operation in (
        ("read at the last offset", lambda: handle.read(call, OFFSET_MAX, 100)),
        ("read of nothing", lambda: handle.read(call, 0, 0)),
        ("entries after an unknown cookie", lambda: handle.entries(call, OFFSET_MAX, 10)),
        ("entries, count 0", lambda: handle.entries(call, 0, 0)),
        ("lock with an empty range", lambda: handle.lock(call, lock, False)),
        ("getlock", lambda: handle.getlock(call, lock._replace(end=9))),
        ("unlock of an unknown owner", lambda: handle.unlock_owner(call, ("kit", 9), False)),
        ("seek, whence 99", lambda: handle.seek(call, 0, 99)),
        ("seek past everything", lambda: handle.seek(call, OFFSET_MAX, 3)),
        ("allocate, mode 99", lambda: handle.allocate(call, 0x80, 0, 1)),
        ("copy_range onto itself", lambda: handle.copy_range(call, 0, handle, 0, 10)),
        ("copy_range to a stranger", lambda: handle.copy_range(call, 0, Handle(), 0, 10)),
        ("flush", lambda: handle.flush(call)),
        ("fsync", lambda: handle.fsync(call, True)),
        ("ready", lambda: handle.ready(call, 1, None)),
    ):
        if omode & 3 == OREAD and what.startswith(("copy_range", "allocate")):
            continue  # the Session has refused it by the mode
        await harmless(f"{where}: {what}", operation)
