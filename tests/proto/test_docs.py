"""The manuals are what the tables say."""

from __future__ import annotations

from pathlib import Path

import pytest

from ninep.proto import describe
from ninep.proto.dotl import Tfsync
from ninep.proto.errors import TABLE
from ninep.proto.messages import Rread, Rwalk, Tattach, Twalk, Twstat
from ninep.proto.records import StatRecord
from ninep.proto.types import Qid
from ninep.proto.version import DIALECTS, DOTL, DOTU

pytestmark = pytest.mark.feature("docs-generated")


def test_the_written_manuals_are_in_step_with_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert describe.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.feature("error-table")
def test_every_message_and_every_error_has_its_line() -> None:
    text = describe.protocol_page()
    for dialect in DIALECTS:
        for number, cls in dialect.messages.items():
            assert f"| {number} | `size[4] {cls.__name__} tag[2]" in text
            assert cls.__doc__
    page = describe.errors_page()
    assert all(f"| {row.__name__} |" in page and row.text in page for row in TABLE)


def test_the_manual_is_written_as_section_5_has_it() -> None:
    assert describe.manual(Twalk, DOTL) == "size[4] Twalk tag[2] fid[4] newfid[4] nwname[2] nwname*(wname[s])"
    assert describe.manual(Twstat, DOTU) == "size[4] Twstat tag[2] fid[4] nstat[2] stat[nstat]"
    assert describe.manual(Tfsync, DOTL) == "size[4] Tfsync tag[2] fid[4] [datasync[4]]"


@pytest.mark.hostile(13)
def test_a_trace_line_escapes_what_a_peer_wrote() -> None:
    assert describe.line(5, Twalk(1, 2, ("usr", "b\n\x1b[31m\u202e\udcff"))) == (
        "Twalk tag 5 fid 1 newfid 2 wname 'usr' 'b\\n\\x1b[31m\\u202e\\udcff'"
    )
    assert describe.line(5, Tattach(1, 2, "u" * 5000, "")).count("u") < 100
    assert describe.line(5, Rread(b"secret")) == "Rread tag 5 data (6 bytes)"
    assert describe.line(5, Rwalk((Qid(0x80, 1, 255),))) == "Rwalk tag 5 wqid (0xff 1 0x80)"
    assert describe.line(5, Rwalk()) == "Rwalk tag 5 wqid -"
    assert describe.line(5, Twstat(1, StatRecord(name="n", mtime=3))) == "Twstat tag 5 fid 1 stat (mtime 3 name 'n')"


def test_a_stale_or_missing_manual_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs = str(tmp_path)
    assert describe.main(["--check"], docs) == 1
    assert describe.main(["--write"], docs) == 0
    assert describe.main(["--check"], docs) == 0
    (tmp_path / "errors.md").write_text("old")
    assert describe.main(["--check"], docs) == 1
    assert describe.main([]) == 2
    assert "docs/errors.md differs" in capsys.readouterr().err
