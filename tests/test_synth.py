"""Synthetic directories and state files, through the File contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest
import trio

from ninep import Dir, ctl, synth, text
from ninep.answer import Answer, settle
from ninep.env import Env
from ninep.file import Call, File, Handle
from ninep.limits import Limits
from ninep.principal import Principal
from ninep.proto import errors as E
from ninep.proto.types import OAPPEND, ORDWR, OREAD, OTRUNC, OWRITE, W_WANT, Change
from ninep.synth import Bytes, DirDoc, Kept, TextFile, clone, setting
from ninep.testing import check_tree

T = TypeVar("T")
CALL = Call(Principal("glenda", 1000, 1000, proof="local"))
OTHER = Call(Principal("rob", 1001, 1001, proof="local"))


def now(answer: Answer[T]) -> T:
    """The value of an answer that must be here already."""
    assert not hasattr(answer, "send")
    return answer


def opened(directory: Dir, path: str, omode: int = OREAD, call: Call = CALL) -> Handle:
    file: File = directory
    for name in path.split("/"):
        assert isinstance(file, Dir)
        file = now(file.walk(call, name))
    return now(file.open(call, omode))


def cat(directory: Dir, path: str, call: Call = CALL) -> str:
    handle = opened(directory, path, OREAD, call)
    data = now(handle.read(call, 0, 1 << 20))
    now(handle.close(call))
    return data.decode()


def echo(directory: Dir, path: str, content: str, omode: int = OWRITE | OTRUNC, call: Call = CALL) -> None:
    handle = opened(directory, path, omode, call)
    try:
        now(handle.write(call, 0, content.encode()))
    finally:
        now(handle.close(call))


def names(directory: Dir, call: Call = CALL) -> list[str]:
    return [name for name, _ in now(directory.list(call))]


class Counter(Dir):
    """A counter: read value, write ctl."""

    n = 0

    @text()
    def value(self) -> str:
        return f"{self.n}\n"

    @ctl
    def add(self, amount: int = 1) -> None:
        """add amount to the counter"""
        self.n += amount


@pytest.mark.feature("synth-text", "synth-ctl", "library-serve")
def test_the_counter_of_the_manual_does_what_it_says() -> None:
    counter = Counter()
    assert names(counter) == ["value", "ctl"]
    echo(counter, "ctl", "add 3")
    echo(counter, "ctl", "add")
    assert cat(counter, "value") == "4\n"
    assert "add amount[int]  # add amount to the counter" in cat(counter, "ctl")
    with pytest.raises(E.Ebadctl) as refused:
        echo(counter, "ctl", "sub 3")
    assert refused.value.ename == ('bad process or channel control request: line 1: "sub 3": commands are add')
    with pytest.raises(E.Ebadctl, match='amount "x": not an int'):
        echo(counter, "ctl", "add x")
    with pytest.raises(E.Eperm):
        opened(counter, "value", OWRITE)
    assert counter.n == 4


def test_a_marked_method_is_still_a_method() -> None:
    assert Counter().value() == "0\n"


class Moving(Dir):
    renderings = 0

    @text()
    def state(self) -> str:
        self.renderings += 1
        return "x" * self.renderings

    @text(cost="dear")
    def dear(self) -> bytes:
        self.renderings += 1
        return b"y" * self.renderings

    @text()
    async def slow(self, call: Call) -> str:
        await trio.lowlevel.checkpoint()
        return call.principal.name


@pytest.mark.feature("synth-text")
def test_one_open_is_one_rendering_however_it_is_read() -> None:
    moving = Moving()
    handle = opened(moving, "state")
    assert [now(handle.read(CALL, at, 1)) for at in range(3)] == [b"x", b"", b""]
    assert moving.renderings == 1


@pytest.mark.feature("synth-text")
def test_a_snapshot_has_exactly_the_size_of_what_every_open_of_it_reads() -> None:
    moving = Moving()
    for _ in range(5):
        snapshot = now(now(moving.walk(CALL, "state")).snapshot(CALL))
        moving.renderings += 3  # the world goes on
        size = now(snapshot.stat(CALL)).size
        for _ in range(2):
            assert len(now(now(snapshot.open(CALL, OREAD)).read(CALL, 0, 999))) == size
        assert now(snapshot.stat(CALL)).size == size
        assert snapshot.qid.path == now(moving.walk(CALL, "state")).qid.path


def test_the_same_content_is_the_same_snapshot_and_another_is_another() -> None:
    counter = Counter()
    file = now(counter.walk(CALL, "value"))
    first = now(file.snapshot(CALL))
    assert now(file.snapshot(CALL)) is first
    assert now(first.snapshot(CALL)) is first
    counter.n = 7
    assert now(first.snapshot(CALL)) is not first


def test_a_dear_file_is_not_rendered_for_a_stat_and_then_tells_its_last_size() -> None:
    moving = Moving()
    file = now(moving.walk(CALL, "dear"))
    assert now(file.stat(CALL)).size == 0
    assert moving.renderings == 0
    assert cat(moving, "dear") == "y"
    assert now(file.stat(CALL)).size == 1
    assert moving.renderings == 1


async def test_a_text_may_be_async_and_know_who_asks() -> None:
    file = now(Moving().walk(CALL, "slow"))
    handle = await settle(file.open(CALL, OREAD))
    assert now(handle.read(CALL, 0, 99)) == b"glenda"
    assert (await settle(file.stat(CALL))).size == 6
    frozen = await settle(file.snapshot(CALL))
    assert now(frozen.stat(CALL)).size == 6


def test_an_access_check_does_not_render() -> None:
    moving = Moving()
    now(now(moving.walk(CALL, "state")).access(CALL, 4))
    assert moving.renderings == 0


def test_a_rendering_past_the_limit_is_refused() -> None:
    class Big(Dir):
        limits = Limits(text_bytes_max=10)

        @text()
        def big(self) -> str:
            return "x" * 11

    with pytest.raises(E.Efbig):
        opened(Big(), "big")


def test_an_authors_exception_is_not_hidden() -> None:
    class Broken(Dir):
        @text()
        def broken(self) -> str:
            raise ZeroDivisionError

        @text()
        def nothing(self) -> str:
            return None  # type: ignore[return-value]  # the mistake that is shown

    with pytest.raises(ZeroDivisionError):
        opened(Broken(), "broken")
    with pytest.raises(TypeError, match="NoneType"):
        opened(Broken(), "nothing")


# -- class creation


def test_a_mark_may_not_hide_a_method_of_the_contract() -> None:
    with pytest.raises(TypeError, match='name="open"'):

        class Bad(Dir):
            @text()
            def open(self) -> str:  # type: ignore[override]  # the mistake that is shown
                return ""

    with pytest.raises(TypeError, match="qid"):

        class Worse(Dir):
            @ctl
            def qid(self) -> None: ...  # type: ignore[override]  # likewise


def test_name_gives_a_file_any_name_and_two_of_a_name_are_refused() -> None:
    class Named(Dir):
        @text(name="open")
        def _open_state(self) -> str:
            return "yes"

    assert cat(Named(), "open") == "yes"
    with pytest.raises(TypeError, match="two files"):

        class Twice(Dir):
            @text(name="a")
            def one(self) -> str:
                return ""

            @text(name="a")
            def two(self) -> str:
                return ""

    with pytest.raises(ValueError, match="not a file name"):

        class Slash(Dir):
            @text(name="a/b")
            def one(self) -> str:
                return ""


def test_a_subclass_adds_replaces_and_takes_away() -> None:
    class Child(Counter):
        def value(self) -> str:  # unmarked, it is still the file
            return "child"

        @text()
        def more(self) -> str:
            return "more"

    class Bare(Child):
        more = None  # type: ignore[assignment]  # takes the file away

    assert names(Child()) == ["value", "more", "ctl"]
    assert cat(Child(), "value") == "child"
    assert names(Bare()) == ["value", "ctl"]


# -- children


def test_a_child_comes_and_goes_and_the_version_of_the_directory_tells() -> None:
    root = Dir()
    heard: list[str | None] = []
    stop = root.subscribe(heard.append)
    assert stop is not None
    sub = root.add_child("sub", Counter())
    before = root.qid
    assert now(root.walk(CALL, "sub")) is sub
    assert cat(root, "sub/value") == "0\n"
    root.drop_child("sub")
    assert (root.qid.path, root.qid.vers) == (before.path, before.vers + 1)
    assert heard == ["sub", "sub"]
    with pytest.raises(E.Enonexist):
        root.walk(CALL, "sub")
    with pytest.raises(E.Enonexist):
        sub.walk(CALL, "value")
    stop()
    root.add_child("x", Dir())
    assert heard == ["sub", "sub"]


def test_what_is_open_stays_open_when_its_directory_goes_and_nothing_more_opens() -> None:
    root = Dir()
    inner = root.add_child("sub", Dir()).add_child("inner", Counter())
    handle = opened(root, "sub/inner/value")
    file = now(inner.walk(CALL, "value"))
    root.drop_child("sub")
    assert now(handle.read(CALL, 0, 9)) == b"0\n"
    with pytest.raises(E.Ehungup):
        file.open(CALL, OREAD)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_a_name_that_is_none_cannot_be_added(name: str) -> None:
    with pytest.raises(ValueError, match="not a file name"):
        Dir().add_child(name, Dir())


def test_a_taken_name_cannot_be_added() -> None:
    with pytest.raises(ValueError, match="taken"):
        Counter().add_child("value", Dir())


class Found(Dir):
    def __init__(self) -> None:
        super().__init__()
        self.there = ["1", "2"]
        self._kept: Kept[str, Counter] = Kept(lambda key: Counter())

    def children(self, call: Call) -> Iterable[tuple[str, File]]:
        return self._kept.only(self.there).items()


def test_found_children_keep_their_file_while_they_are_there() -> None:
    root = Found()
    first = now(root.walk(CALL, "1"))
    assert now(root.walk(CALL, "1")) is first
    assert names(root) == ["1", "2"]
    root.there = ["2"]
    with pytest.raises(E.Enonexist):
        root.walk(CALL, "1")
    root.there = ["1"]
    assert now(root.walk(CALL, "1")).qid.path != first.qid.path


def test_entries_agree_with_walk() -> None:
    root = Counter()
    root.add_child("sub", Dir())
    handle = now(root.open(CALL, OREAD))
    entries = now(handle.entries(CALL, 0, 99))
    assert [entry.name for entry in entries] == ["value", "ctl", "sub"]
    for entry in entries:
        assert now(root.walk(CALL, entry.name)).qid == entry.qid


# -- help


@pytest.mark.feature("synth-help")
def test_help_is_walkable_not_listed_and_says_what_the_docstrings_say() -> None:
    root = Counter()
    root.add_child("sub", Counter())
    assert ".help" not in names(root)
    shown = cat(root, ".help")
    assert shown.startswith("A counter: read value, write ctl.\n")
    assert "\tadd amount[int]\tadd amount to the counter\n" in shown
    assert "sub/\tdir" in shown
    assert now(root.walk(CALL, ".help")) is now(root.walk(CALL, ".help"))
    about = root.describe()
    assert isinstance(about, DirDoc)
    assert [(f.name, f.kind) for f in about.files] == [("value", "text"), ("ctl", "ctl"), ("sub", "dir")]


# -- writable texts


class Page(Dir):
    """A document that must not be empty."""

    page = "old\n"
    commits = 0

    @text(perm=0o666)
    def doc(self) -> str:
        return self.page

    @doc.writer
    def _set_doc(self, text: str) -> None:
        self.commits += 1
        if not text.strip():
            raise E.Ebadarg("empty")
        self.page = text

    @text(perm=0o666, write="each")
    def ask(self) -> str:
        return "unasked"

    @ask.writer
    async def _asked(self, data: bytes, call: Call) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"%s asks %s" % (call.principal.name.encode(), data)


def test_a_document_is_judged_once_at_close_as_a_whole() -> None:
    page = Page()
    handle = opened(page, "doc", OWRITE | OTRUNC)
    now(handle.write(CALL, 0, b"new "))
    now(handle.write(CALL, 4, b"text\n"))
    assert page.page == "old\n"
    now(handle.close(CALL))
    assert (page.page, page.commits) == ("new text\n", 1)


def test_the_close_of_a_dupped_descriptor_before_any_write_judges_nothing() -> None:
    page = Page()
    handle = opened(page, "doc", OWRITE | OTRUNC)
    now(handle.flush(CALL))  # as a shell does: dup2, then close of the first
    assert page.commits == 0
    now(handle.write(CALL, 0, b"new\n"))
    now(handle.flush(CALL))
    assert page.page == "new\n"
    now(handle.close(CALL))
    assert page.commits == 1


def test_a_refused_document_fails_its_close_and_leaves_a_verdict() -> None:
    page = Page()
    assert cat(page, "doc.err") == ""
    with pytest.raises(E.Ebadarg, match="empty"):
        echo(page, "doc", "  ")
    assert page.page == "old\n"
    assert cat(page, "doc.err") == "bad arg in system call: empty\n"
    assert "doc.err" not in names(page)
    echo(page, "doc", "good")
    assert cat(page, "doc.err") == ""
    with pytest.raises(E.Enonexist):
        page.walk(CALL, "ask.err")


def test_truncating_and_closing_is_writing_the_empty_document() -> None:
    page = Page()
    handle = opened(page, "doc", OWRITE | OTRUNC)
    with pytest.raises(E.Ebadarg, match="empty"):
        handle.close(CALL)


def test_a_document_can_be_appended_to_edited_in_place_and_read_back() -> None:
    page = Page()
    echo(page, "doc", "more\n", OWRITE | OAPPEND)
    assert page.page == "old\nmore\n"
    handle = opened(page, "doc", ORDWR)
    now(handle.write(CALL, 0, b"OLD"))
    assert now(handle.read(CALL, 0, 99)) == b"OLD\nmore\n"
    assert page.page == "old\nmore\n"
    now(handle.truncate(CALL, 3))
    now(handle.close(CALL))
    assert page.page == "OLD"


def test_truncate_of_a_document_is_a_write_of_it() -> None:
    page = Page()
    now(now(page.walk(CALL, "doc")).wstat(CALL, Change(size=2)))
    assert page.page == "ol"
    with pytest.raises(E.Ebadarg):
        now(page.walk(CALL, "doc")).wstat(CALL, Change(size=0))
    with pytest.raises(E.Eperm):
        now(page.walk(CALL, "doc")).wstat(CALL, Change(perm=0))


def test_a_draft_past_the_limit_is_refused_before_it_is_held() -> None:
    page = Page()
    page.limits = Limits(text_bytes_max=100)
    handle = opened(page, "doc", OWRITE | OTRUNC)
    with pytest.raises(E.Efbig):
        handle.write(CALL, 1 << 40, b"x")
    with pytest.raises(E.Efbig):
        handle.truncate(CALL, 101)
    now(handle.write(CALL, 0, b"x"))
    now(handle.close(CALL))


def test_a_write_through_a_snapshot_reaches_the_file() -> None:
    page = Page()
    frozen = now(now(page.walk(CALL, "doc")).snapshot(CALL))
    handle = now(frozen.open(CALL, OWRITE | OTRUNC))
    now(handle.write(CALL, 0, b"through"))
    now(handle.close(CALL))
    assert page.page == "through"
    assert now(now(frozen.open(CALL, OREAD)).read(CALL, 0, 99)) == b"old\n"


async def test_a_write_is_answered_to_the_same_open_from_wherever_its_offset_is() -> None:
    page = Page()
    first, second = opened(page, "ask", ORDWR), opened(page, "ask", ORDWR)
    assert await settle(first.write(CALL, 0, b"who")) == 3
    assert now(first.read(CALL, 3, 6)) == b"glenda"
    assert now(first.read(CALL, 9, 99)) == b" asks who"
    assert now(second.read(OTHER, 0, 99)) == b"unasked"
    await settle(first.write(CALL, 18, b"why"))
    assert now(first.read(CALL, 21, 99)) == b"glenda asks why"


def test_a_text_with_a_writer_is_for_its_owner_to_write_unless_told() -> None:
    class Owned(Dir):
        @text()
        def plain(self) -> str:
            return ""

        @text()
        def written(self) -> str:
            return ""

        @written.writer
        def _take(self, text: str) -> None: ...

    owned = Owned()
    assert now(owned.walk(CALL, "plain")).perm == 0o444
    assert now(owned.walk(CALL, "written")).perm == 0o644


def test_a_text_file_can_be_made_by_hand() -> None:
    root = Dir()
    root.add_child("greeting", TextFile(root, lambda call: f"hello {call.principal.name}"))
    assert cat(root, "greeting", OTHER) == "hello rob"


# -- clone


class Line(Dir):
    """One line."""

    speed: int = 9600
    was_gone = False

    @text()
    def status(self) -> str:
        return f"{self.speed}\n"

    @ctl
    def rate(self, speed: Bytes) -> None:
        """set the speed"""
        self.speed = speed

    @ctl
    def stay(self) -> None:
        self.persist = True

    @setting
    def _rate(self) -> str:
        return f"rate {self.speed}"

    def gone(self) -> None:
        self.was_gone = True


class Lines(Dir):
    @clone()
    def new(self) -> Line:
        """a new line"""
        return Line()


@pytest.mark.feature("synth-clone")
def test_a_clone_makes_a_directory_that_lives_until_its_last_handle_closes() -> None:
    lines = Lines()
    handle = opened(lines, "clone", ORDWR)
    assert now(handle.read(CALL, 0, 1)) == b"0"  # byte by byte, as a shell reads a line
    assert now(handle.read(CALL, 1, 1)) == b"\n"
    assert now(handle.read(CALL, 2, 99)) == b""
    assert now(handle.read(CALL, 0, 99)).startswith(b"rate 9600\n")
    now(handle.write(CALL, 0, b"rate 1k"))
    line = now(lines.walk(CALL, "0"))
    assert isinstance(line, Line)
    status, listing = opened(lines, "0/status"), now(line.open(CALL, OREAD))
    assert now(status.read(CALL, 0, 99)) == b"1024\n"
    now(handle.close(CALL))
    now(status.close(CALL))
    assert "0" in names(lines)
    now(listing.close(CALL))
    assert names(lines) == ["clone"]
    assert line.was_gone


@pytest.mark.feature("synth-clone")
def test_numbers_are_used_again_and_qids_are_not() -> None:
    lines = Lines()
    first, second = opened(lines, "clone", ORDWR), opened(lines, "clone", ORDWR)
    path = now(lines.walk(CALL, "0")).qid.path
    assert names(lines) == ["clone", "0", "1"]
    now(first.close(CALL))
    third = opened(lines, "clone", ORDWR)
    assert now(third.read(CALL, 0, 9)) == b"0\n"
    assert now(lines.walk(CALL, "0")).qid.path != path
    now(second.close(CALL))
    now(third.close(CALL))


def test_a_line_that_persists_outlives_its_handles() -> None:
    lines = Lines()
    handle = opened(lines, "clone", ORDWR)
    now(handle.write(CALL, 0, b"stay"))
    now(handle.close(CALL))
    assert cat(lines, "0/status") == "9600\n"
    assert "0" in names(lines)
    lines.drop_child("0")
    assert names(lines) == ["clone"]


# -- scratch files


class ManualEnv(Env):
    """A clock that a test moves."""

    ns = 0

    def now_ns(self) -> int:
        return self.ns


@pytest.mark.feature("synth-text")
async def test_an_editor_can_save_beside_a_document_and_rename_onto_it() -> None:
    page = Page()
    now(page.access(CALL, W_WANT))
    file, handle = await settle(page.create(CALL, "sedXYZ", 0o600, OWRITE))
    now(handle.write(CALL, 0, b"edited\n"))
    now(file.wstat(CALL, Change(perm=0o666, mtime_ns=0)))
    now(handle.close(CALL))
    assert "sedXYZ" in names(page)
    assert page.page == "old\n"
    now(page.rename(CALL, "sedXYZ", page, "doc", 0))
    assert (page.page, page.commits) == ("edited\n", 1)
    assert "sedXYZ" not in names(page)


async def test_a_refused_rename_keeps_the_scratch_file_for_another_try() -> None:
    page = Page()
    _, handle = await settle(page.create(CALL, "new", 0o600, OWRITE))
    now(handle.close(CALL))
    with pytest.raises(E.Ebadarg):
        page.rename(CALL, "new", page, "doc", 0)
    assert "new" in names(page)
    assert page.page == "old\n"


@pytest.mark.feature("synth-text")
async def test_a_scratch_file_is_private_to_its_creator() -> None:
    page = Page()
    file, handle = await settle(page.create(CALL, "mine", 0o666, OWRITE))
    now(handle.close(CALL))
    assert "mine" not in names(page, OTHER)
    with pytest.raises(E.Enonexist):
        page.walk(OTHER, "mine")
    with pytest.raises(E.Eperm):
        file.access(OTHER, 4)
    with pytest.raises(E.Eperm):
        page.remove(OTHER, "mine", None)
    _, handle = await settle(page.create(OTHER, "mine", 0o666, OWRITE))
    now(handle.close(OTHER))
    now(page.remove(CALL, "mine", False, file))
    assert "mine" in names(page, OTHER)


async def test_a_backup_of_a_document_leaves_the_document() -> None:
    page = Page()
    now(page.rename(CALL, "doc", page, "doc~", 0))
    assert cat(page, "doc~") == "old\n"
    assert cat(page, "doc") == "old\n"
    with pytest.raises(E.Eperm):
        page.rename(CALL, "doc", page, "ask", 0)
    with pytest.raises(E.Eperm):
        page.rename(CALL, "ask", page, "x", 0)
    with pytest.raises(E.Eperm):
        page.remove(CALL, "doc", None)


async def test_scratch_files_are_few_small_and_forgotten_after_a_minute() -> None:
    page = Page()
    clock = ManualEnv()
    page.env = clock
    page.limits = Limits(scratch_files_max=2, text_bytes_max=10)
    _, first = await settle(page.create(CALL, "a", 0o600, OWRITE))
    _, second = await settle(page.create(CALL, "b", 0o600, OWRITE))
    with pytest.raises(E.Edquot):
        await settle(page.create(CALL, "c", 0o600, OWRITE))
    now(first.write(CALL, 0, b"123456"))
    with pytest.raises(E.Edquot):
        second.write(CALL, 0, b"12345")
    now(second.close(CALL))
    clock.ns += 61 * 10**9
    assert names(page) == ["doc", "ask", "a"]  # still open
    now(first.close(CALL))
    clock.ns += 61 * 10**9
    assert names(page) == ["doc", "ask"]


async def test_a_directory_without_documents_takes_no_scratch_files() -> None:
    counter = Counter()
    with pytest.raises(E.Eperm):
        counter.access(CALL, W_WANT)
    with pytest.raises(E.Eperm):
        counter.create(CALL, "x", 0o600, OWRITE)


async def test_who_may_not_write_the_document_gets_no_scratch_files() -> None:
    class Owned(Page):
        @text(perm=0o644)
        def doc(self) -> str:
            return self.page

        @doc.writer
        def _take(self, text: str) -> None:
            self.page = text

    owned = Owned()
    owned.uid = 1000
    now(owned.access(CALL, W_WANT))
    with pytest.raises(E.Eperm):
        owned.access(OTHER, W_WANT)
    with pytest.raises(E.Eperm):
        owned.create(OTHER, "x", 0o600, OWRITE)
    with pytest.raises(E.Eexist):
        await settle(owned.create(CALL, "doc", 0o600, OWRITE))


# -- the promises of the File contract


@pytest.mark.parametrize(("make", "writable"), [(Counter, False), (Page, True), (Moving, False), (Found, False)])
async def test_a_synthetic_tree_keeps_the_promises_of_the_contract(make: type[Dir], writable: bool) -> None:
    await check_tree(make, writable=writable)


async def test_a_clone_keeps_them_too_but_that_each_open_is_another_line() -> None:
    await check_tree(Lines, skip=("short-reads", "handles"))


@pytest.mark.parametrize("mark", [synth.text, synth.events, synth.clone])
def test_a_decorator_without_its_parentheses_is_told_at_once(mark: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match=r"write @\w+\(\), with parentheses"):

        class Forgot(synth.Dir):
            @mark
            def value(self) -> str:
                return ""
