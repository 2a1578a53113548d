"""ninep doctor tells what is there, what is not, and how it is mended; it changes nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from programs import ninep

from ninep.cli import doctor
from ninep.edges.pyfuse3_engine import LIMITS

pytestmark = pytest.mark.feature("cli-doctor")

NAMES = {
    "python", "libraries", "fuse device", "fusermount3", "allow_other", "passthrough", "pyfuse3", "user namespaces",
    "openat2", "kernel 9p", "state", "node",
}  # fmt: skip


def test_every_row_is_there_and_what_is_missing_has_a_remedy(tmp_path: Path) -> None:
    ran = ninep("doctor", "--json", env={"NINEP_STATE": str(tmp_path / "none"), "NINEP_NODE": "9p+unix:///no/s"})
    rows = {row["name"]: row for row in ran.lines()}
    assert rows.keys() == NAMES
    assert rows["python"]["state"] == "ok"
    assert (rows["node"]["state"], rows["node"]["mend"]) == ("absent", "ninepd")
    for row in rows.values():
        assert row["v"] == 1
        assert row["state"] == "ok" or row["mend"]
    assert ran.code == (1 if any(row["state"] == "missing" for row in rows.values()) else 0)
    assert not (tmp_path / "none").exists()
    quiet = ninep("doctor", "-q", env={"NINEP_NODE": "9p+unix:///no/s"})
    assert "python" not in quiet.out
    assert "-> ninepd" in quiet.out


@pytest.mark.feature("pyfuse3-engine")
def test_what_the_second_engine_cannot_do_is_told_to_who_asks(needs_pyfuse3: None) -> None:
    env = {"NINEP_NODE": "9p+unix:///no/s"}
    rows = {row["name"]: row for row in ninep("doctor", "--json", env=env).lines()}
    assert rows["pyfuse3"]["limits"] == list(LIMITS)
    assert "limits" not in rows["python"]
    long, short = ninep("doctor", "-v", env=env).out, ninep("doctor", env=env).out
    for limit in LIMITS:
        assert limit in long
        assert limit not in short


def test_a_device_that_is_missing_or_closed_is_told(tmp_path: Path) -> None:
    row = doctor.fuse_device(str(tmp_path / "no"))
    assert (row.state, row.mend) == ("missing", "sudo modprobe fuse")
    assert doctor.fuse_device("/dev/null").state == "ok"


def test_modes_of_the_state_directory_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NINEP_STATE", raising=False)
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    assert doctor.state_directory(str(state)).state == "ok"
    (state / "qid.key").write_bytes(b"x" * 32)
    (state / "qid.key").chmod(0o644)
    row = doctor.state_directory(str(state))
    assert (row.state, row.mend) == ("missing", f"chmod 600 {state}/qid.key")
    state.chmod(0o777)
    assert doctor.state_directory(str(state)).mend == f"chmod 700 {state}"


def test_rows_are_made_when_they_are_asked_for() -> None:
    assert len(list(doctor.rows(argparse.Namespace(state=None, node=None)))) == len(NAMES)
