"""The FUSE edge's tests run on both engines: each test that serves a mount is one test per engine."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

MODULES = frozenset({"test_fuse_files", "test_fuse_mount", "test_fuse_synthetic"})
NEEDS_NO_ENGINE = frozenset(
    {
        "test_a_mount_point_that_is_a_symbolic_link_is_refused",
        "test_a_mount_point_exchanged_for_a_link_meanwhile_is_not_followed",
        "test_a_mount_point_that_is_no_directory_is_refused_and_leaks_nothing",
        "test_allow_other_is_refused_unless_root_or_the_system_says_so",
    }
)
UNABLE = {  # what pyfuse3 cannot do, and why
    "test_holes_are_found_punched_and_allocated": "pyfuse3 has no lseek and no fallocate",
    "test_twenty_mounts_live_in_one_process": "pyfuse3 serves one mount to a process",
    "test_host_files_are_read_and_written_by_the_kernel_itself": "pyfuse3 has no passthrough",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per engine, and the reason where there cannot be one."""
    name = metafunc.function.__name__
    if metafunc.module.__name__.rpartition(".")[2] not in MODULES or name in NEEDS_NO_ENGINE:
        return
    second = [pytest.mark.slow]  # ./check asks the first engine, ./run test both
    if importlib.util.find_spec("pyfuse3") is None:
        second = [pytest.mark.skip(reason="needs pyfuse3")]
    elif name in UNABLE:
        second = [pytest.mark.skip(reason=f"unable: {UNABLE[name]}")]
    if "engine" not in metafunc.fixturenames:
        metafunc.fixturenames.append("engine")
    engines = ["dev", pytest.param("pyfuse3", marks=second)]
    metafunc.parametrize("engine", engines, indirect=True, scope="module")


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the engine that the servers of fuse_server.py use while this lasts."""
    before = os.environ.get("NINEP_TEST_ENGINE")
    os.environ["NINEP_TEST_ENGINE"] = name = str(request.param)
    try:
        yield name
    finally:
        if before is None:
            del os.environ["NINEP_TEST_ENGINE"]
        else:
            os.environ["NINEP_TEST_ENGINE"] = before
