"""What every test gets: a leak check, a log check, and skips that say why.  Knows the machine, not ninep."""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import leaks
import pytest
import trio
from hypothesis import settings
from stray_logs import StrayLogs

ALARM_SHARE = 0.9  # of the time that the alarm allows

# No deadlines: they fail tests for what other processes do.  Failures print what repeats them.
settings.register_profile("ninep", deadline=None, print_blob=True, database=None)
settings.register_profile("quick", settings.get_profile("ninep"), max_examples=30)
settings.load_profile("ninep")


def pytest_configure() -> None:
    """A shell starts what it puts in the background with these signals ignored, and programs inherit that."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_itemcollected(item: pytest.Item) -> None:
    """A trio test that hangs is cancelled, and says where it hung."""
    own_clock = {"autojump_clock", "mock_clock"} & set(getattr(item, "fixturenames", ()))
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj) and not own_clock:
        item.obj = bounded(item.obj, ALARM_SHARE * seconds_max(item))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """In a parallel run, tests that mount share one process, and so do tests that run foreign programs: two of a kind
    would starve each other.  The groups of pytest-xdist itself (3.8) are lost on pytest 9.2, so ours go by path."""
    from xdist.scheduler import LoadScopeScheduling

    class ByKind(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByKind(config, log)


def group_of(nodeid: str) -> str:
    """The group that a test runs in: `interop`, `mounts`, or its own."""
    path = nodeid.partition("::")[0]
    if "interop/" in path:
        return "interop"
    return "mounts" if any(word in path for word in ("fuse", "mount", "parity", "compat")) else nodeid


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Trees too deep for the clean-up of pytest, which recurses, go first: those of this run, and what others left."""
    base: Path = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # pytest has no public way
    for path in (*base.iterdir(), *base.parent.glob("garbage-*")):
        probe = ["find", str(path), "-mindepth", "300", "-maxdepth", "300", "-print", "-quit"]
        if subprocess.run(probe, capture_output=True, timeout=60, check=False).stdout:
            subprocess.run(["rm", "-rf", "--one-file-system", str(path)], timeout=60, check=False)


def seconds_max(item: pytest.Item) -> float:
    """The test's timeout: its own marker, or the one for all."""
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0] if mark and mark.args else item.config.getini("timeout") or 60)


def bounded(test: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., Awaitable[None]]:
    """The test, cancelled where it hangs, shortly before pytest-timeout's alarm would tear trio's loop apart."""

    @functools.wraps(test)
    async def run(*args: object, **fixtures: object) -> None:
        with trio.fail_after(seconds):
            await test(*args, **fixtures)

    return run


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After the test, its process holds the descriptors, threads, children and mounts that it held before."""
    if request.node.get_closest_marker("no_leak_check"):
        yield
        return
    base = str(tmp_path_factory.getbasetemp())
    before = leaks.take(base)
    yield
    if lost := leaks.wait_for_baseline(before, base):
        pytest.fail(f"left behind by this test: {'; '.join(lost)}", pytrace=False)


@pytest.fixture(autouse=True)
def checklogs(request: pytest.FixtureRequest) -> Iterator[StrayLogs]:
    """A warning or an error that was not announced fails the test: checklogs.expect(pattern), or the marker `logs`."""
    with StrayLogs() as logs:
        for mark in request.node.iter_markers("logs"):
            for pattern in mark.args:
                logs.allow(pattern)
        yield logs
    if complaints := logs.complaints():
        pytest.fail("\n".join(complaints), pytrace=False)


@pytest.fixture
def needs_root() -> None:
    """Skips where the tests do not run as root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def needs_fuse() -> None:
    """Skips where /dev/fuse cannot be opened, or nothing could be mounted from it."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        pytest.skip(f"needs /dev/fuse: {e.strerror}")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        pytest.skip("needs root or fusermount3")


@pytest.fixture
def needs_pyfuse3(needs_fuse: None) -> None:
    """Skips where the second engine is not installed."""
    try:
        import pyfuse3  # noqa: F401
    except ImportError as e:
        pytest.skip(f"needs pyfuse3: {e}")


@pytest.fixture
def needs_userns() -> None:
    """Skips where an ordinary process cannot make a user namespace."""
    pid = os.fork()
    if pid == 0:
        try:
            os.unshare(os.CLONE_NEWUSER)  # type: ignore[attr-defined,unused-ignore]  # Python 3.12
        except AttributeError:
            os._exit(0 if _unshare_by_libc() else 1)
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1] != 0:
        pytest.skip("needs user namespaces")


def _unshare_by_libc() -> bool:
    import ctypes

    return bool(ctypes.CDLL(None).unshare(0x10000000) == 0)


@pytest.fixture
def needs_tool() -> Callable[[str], str]:
    """A function: the path of a program, or a skip that names it.  The system's sbin directories are searched too."""

    def find(name: str) -> str:
        path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if path is None:
            pytest.skip(f"needs the program {name}")
        return path

    return find


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout that is tested."""
    return Path(__file__).resolve().parent.parent
