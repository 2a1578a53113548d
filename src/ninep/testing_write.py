"""The checks for trees in whose root anybody may create: creating, removing, renaming, names, content, watching."""

from __future__ import annotations

from .answer import settle
from .file import Dir
from .proto import errors as E
from .proto.types import ORDWR, OREAD, OTRUNC, RENAME_EXCHANGE, RENAME_NOREPLACE, Change
from .testing_kit import Tree, check, optional, refused, require

ODD_NAMES = (
    " ", "a b", "-rf", ".hidden", "...", "new\nline", "tab\t", "quote'\"", "\\", "*?[", "\x01\x7f", "é", "e\u0301",
    "\u202e", "日本語", "\U0001f600", "\udcff\udc80 not utf-8", "x" * 255, "CON", "a:b", "%2e%2e", "~",
)  # fmt: skip
IMPOSSIBLE_NAMES = ("", ".", "..", "a/b", "/", "a\0b", "x" * 256)


@check("create", needs="creates")
async def what_is_created_is_there(tree: Tree) -> None:
    """A created file is walked to, listed and owned by its maker; its name is taken until it is removed."""
    file, handle = await tree.make_file("made")
    require((await tree.walk(tree.root, "made")).qid.path == file.qid.path, "create and walk give different files")
    require("made" in [entry.name for entry in await tree.entries(tree.root)], "the created file is not listed")
    require((await tree.stat(file)).uid == tree.call.principal.uid, "the created file is not its maker's")
    await refused("create of a taken name", (E.Eexist,), tree.root.create, tree.call, "made", 420, ORDWR)
    await tree.close(handle)
    await settle(tree.root.remove(tree.call, "made", False))
    await refused("walk to a removed name", (E.Enonexist,), tree.walk, tree.root, "made")
    await refused("remove of a removed name", (E.Enonexist,), tree.root.remove, tree.call, "made", None)
    again, handle = await tree.make_file("made")
    require(again.qid.path != file.qid.path, "a qid path was used again for another file")
    await tree.close(handle)


@check("directories", needs="creates")
async def directories_come_and_go(tree: Tree) -> None:
    """mkdir gives an empty Dir; only an empty directory goes, and only by the kind that was asked for."""
    with optional():
        made = await settle(tree.root.mkdir(tree.call, "dir", 0o755))
        require(isinstance(made, Dir), "mkdir answers no Dir")
        assert isinstance(made, Dir)
        require(await tree.entries(made) == [], "a new directory is not empty")
        await refused("mkdir of a taken name", (E.Eexist,), tree.root.mkdir, tree.call, "dir", 493)
        _, handle = await tree.make_file("inner", b"x", made)
        await tree.close(handle)
        await refused("remove of a full directory", (E.Enotempty,), tree.root.remove, tree.call, "dir", True)
        await refused("unlink of a directory", (E.Eisdir, E.Eperm), tree.root.remove, tree.call, "dir", False)
        await refused("rmdir of a file", (E.Enotdir,), made.remove, tree.call, "inner", True)
        await settle(made.remove(tree.call, "inner", None))
        await settle(tree.root.remove(tree.call, "dir", True))
        await refused("walk to a removed directory", (E.Enonexist,), tree.walk, tree.root, "dir")


@check("open-remove-read", needs="creates")
async def an_open_file_outlives_its_name(tree: Tree) -> None:
    """A handle reads on after its file was removed, and a new file of that name is another."""
    _, handle = await tree.make_file("doomed", b"still here")
    await settle(tree.root.remove(tree.call, "doomed", False))
    require(await tree.whole(handle) == b"still here", "an open file's content went with its name")
    _, other = await tree.make_file("doomed", b"new")
    require(await tree.whole(handle) == b"still here", "an open file reads what another file of its name holds")
    await tree.close(handle, other)


@check("stale-remove", needs="creates")
async def a_stale_file_removes_nothing(tree: Tree) -> None:
    """remove with `expect` refuses when the name is another file by now."""
    old, handle = await tree.make_file("name")
    await tree.close(handle)
    await settle(tree.root.remove(tree.call, "name", False))
    _, handle = await tree.make_file("name")
    await tree.close(handle)
    await refused("remove that expects another file", (E.Estale,), tree.root.remove, tree.call, "name", None, old)
    await tree.walk(tree.root, "name")


@check("names", needs="creates")
async def odd_names_live_and_impossible_ones_do_not(tree: Tree) -> None:
    """Any bytes but / and NUL, up to 255, are a name that comes back as it went in; what cannot be one is refused."""
    made = []
    for name in ODD_NAMES:
        try:
            _, handle = await tree.make_file(name)
        except (E.Ebadchar, E.Enametoolong):
            continue  # a tree may be pickier, but must say so
        await tree.close(handle)
        made.append(name)
    require(len(made) > len(ODD_NAMES) // 2, f"most odd names are refused; only {made!r:.100} live")
    listed = {entry.name for entry in await tree.entries(tree.root)}
    for name in made:
        require(name in listed, f"{name!r:.40} was created and is not listed so")
        await tree.walk(tree.root, name)
        await settle(tree.root.remove(tree.call, name, False))
    for name in IMPOSSIBLE_NAMES:
        await refused(f"create of {name[:10]!r}", (E.FileError,), tree.root.create, tree.call, name, 420, ORDWR)
        await refused(f"mkdir of {name[:10]!r}", (E.FileError,), tree.root.mkdir, tree.call, name, 493)


@check("content", needs="creates")
async def what_is_written_is_read(tree: Tree) -> None:
    """Writes land at their offsets, gaps read as zeros, OTRUNC and truncate cut, the caller's buffer is copied."""
    file, handle = await tree.make_file("content", b"0123456789" * 1000)
    buffer = bytearray(b"AB")
    require(await settle(handle.write(tree.call, 5, memoryview(buffer))) == 2, "a write of two bytes took not two")
    buffer[:] = b"zz"
    require(await settle(handle.read(tree.call, 4, 5)) == b"4AB78", "a write landed elsewhere, or kept a view")
    await settle(handle.write(tree.call, 70_000, b"end"))
    require(await settle(handle.read(tree.call, 69_998, 9)) == b"\0\0end", "a gap does not read as zeros")
    require((await tree.stat(file)).size == 70_003, "size after a write past the end")
    with optional():
        await settle(handle.truncate(tree.call, 6))
        require(await tree.whole(handle) == b"01234A", "truncate left something else")
        await settle(file.wstat(tree.call, Change(size=8)))
        require(await tree.whole(handle) == b"01234A\0\0", "lengthening does not add zeros")
    again = await settle(file.open(tree.call, ORDWR | OTRUNC))
    require((await tree.stat(file)).size == 0, "OTRUNC left content")
    require(await tree.whole(handle) == b"", "another open still reads what OTRUNC took")
    await tree.close(handle, again)


@check("versions", needs="creates")
async def versions_follow_the_content(tree: Tree) -> None:
    """qid.vers changes with each change of content, or is 0 throughout ("never cache this")."""
    file, handle = await tree.make_file("version", b"1")
    before = (await tree.stat(file)).qid.vers
    await settle(handle.write(tree.call, 0, b"2"))
    after = (await tree.stat(file)).qid.vers
    require(before != after or before == 0, f"content changed, qid.vers stayed {before}")
    require(after or not before, "qid.vers fell back to 0")
    await tree.close(handle)


@check("closing", needs="creates")
async def closing_one_open_leaves_the_other(tree: Tree) -> None:
    """A handle closed, even twice by mistake, takes nothing from another open of the file."""
    file, one = await tree.make_file("shared", b"text")
    two = await settle(file.open(tree.call, ORDWR))
    await tree.close(one)
    try:
        await tree.close(one)  # a Session never does it; a tree survives it
    except E.FileError:
        pass
    require(await settle(two.write(tree.call, 4, b"!")) == 1, "the second open no longer writes")
    require(await tree.whole(two) == b"text!", "the second open no longer reads")
    await tree.close(two)


@check("listing-changes", needs="creates")
async def a_listing_survives_changes(tree: Tree) -> None:
    """Names present throughout a listing appear in it exactly once, whatever comes and goes meanwhile."""
    names = [f"f{at:03}" for at in range(60)]
    for name in names:
        await tree.close((await tree.make_file(name))[1])
    handle = await settle(tree.root.open(tree.call, OREAD))
    seen: list[str] = []
    gone: set[str] = set()
    cookie = 0
    while batch := await settle(handle.entries(tree.call, cookie, 5)):
        seen += [entry.name for entry in batch]
        cookie = batch[-1].cookie
        if len(gone) < 20:
            for name in (batch[-1].name, names[-1 - len(gone)]):
                if name in names and name not in gone:
                    await settle(tree.root.remove(tree.call, name, False))
                    gone.add(name)
            await tree.close((await tree.make_file(f"new{len(gone)}"))[1])
        require(len(seen) < 1000, "a listing goes on for ever while names are created")
    for name in set(names) - gone:
        require(seen.count(name) == 1, f"{name} was there throughout and was listed {seen.count(name)} times")
    await tree.close(handle)


@check("rename", needs="creates")
async def renames_replace_and_exchange(tree: Tree) -> None:
    """rename keeps the file, replaces its target, honours NOREPLACE and EXCHANGE, and refuses a loop."""
    call, root = tree.call, tree.root
    a, handle = await tree.make_file("a", b"A")
    b, other = await tree.make_file("b", b"B")
    with optional():
        await settle(root.rename(call, "a", root, "c", 0))
        require((await tree.walk(root, "c")).qid.path == a.qid.path, "rename made another file")
        await refused("walk to the old name", (E.Enonexist,), root.walk, call, "a")
        await settle(root.rename(call, "c", root, "b", 0))
        require((await tree.walk(root, "b")).qid.path == a.qid.path, "rename did not replace its target")
        require(await tree.whole(other) == b"B", "a replaced file's open handle lost its content")
        require(b.qid.path != a.qid.path, "two files, one qid path")
        await tree.close((await tree.make_file("d", b"D"))[1])
        await refused("rename, NOREPLACE", (E.FileError,), root.rename, call, "b", root, "d", RENAME_NOREPLACE)
        require((await tree.walk(root, "b")).qid.path == a.qid.path, "a refused rename moved something")
    with optional():
        d = await tree.walk(root, "d")
        await settle(root.rename(call, "b", root, "d", RENAME_EXCHANGE))
        require((await tree.walk(root, "b")).qid.path == d.qid.path, "exchange did not exchange")
    with optional():
        outer = await settle(root.mkdir(call, "outer", 0o755))
        assert isinstance(outer, Dir)
        await settle(root.rename(call, "d", outer, "moved", 0))
        require((await tree.walk(outer, "moved")).qid.path == a.qid.path, "rename across directories lost the file")
        await refused("rename into its own subtree", (E.FileError,), root.rename, call, "outer", outer, "loop", 0)
    await tree.close(handle, other)


@check("links", needs="creates")
async def links_share_one_file(tree: Tree) -> None:
    """Where links exist: a hard link is the same file with nlink 2, a symlink gives its target back verbatim."""
    file, handle = await tree.make_file("one", b"shared")
    with optional():
        await settle(tree.root.link(tree.call, "two", file))
        two = await tree.walk(tree.root, "two")
        require(two.qid.path == file.qid.path, "a hard link is another file")
        require((await tree.stat(two)).nlink == 2, "nlink after link")
        await settle(tree.root.remove(tree.call, "one", False))
        require((await tree.stat(two)).nlink == 1, "nlink after a remove")
    with optional():
        made = await settle(tree.root.symlink(tree.call, "sym", "../odd target\n"))
        require(await settle(made.readlink(tree.call)) == "../odd target\n", "a symlink's target came back changed")
        require((await tree.stat(made)).st_mode & 0o170000 == 0o120000, "a symlink's mode is no symlink's")
    await tree.close(handle)


@check("watch", needs="creates")
async def watchers_are_told_and_can_stop(tree: Tree) -> None:
    """Where a tree can tell of changes it tells each one, and nothing after the end."""
    heard: list[str | None] = []
    end = tree.root.subscribe(heard.append)
    if end is None:
        return
    file, handle = await tree.make_file("watched")
    require("watched" in heard, "a name was created and the directory's watcher not told")
    stop = file.subscribe(lambda name: heard.append("content" if name is None else name))
    if stop is not None:
        await settle(handle.write(tree.call, 0, b"x"))
        require("content" in heard, "content changed and the file's watcher was not told")
        stop()
    end()
    heard.clear()
    await settle(handle.write(tree.call, 0, b"y"))
    await tree.close(handle)
    await settle(tree.root.remove(tree.call, "watched", False))
    require(heard == [], "a watcher that ended is still told")
