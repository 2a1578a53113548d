"""Real editors save documents of a mounted synthetic tree, and leave nothing behind."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fuse_mounts import serving

SECONDS_MAX = 20.0

EDITORS = {
    "ed": "printf ',s/first/second/\\nw\\nq\\n' | ed -s {doc}",
    "sed": "sed -i s/first/second/ {doc}",
    "sed with a backup": "sed -i.bak s/first/second/ {doc} && rm {doc}.bak",
    "vim": "vim -es -u NONE -i NONE -N -c '%s/first/second/' -c wq {doc}",
    "vim, no backup": "vim -es -u NONE -i NONE -N -c 'set nowritebackup' -c '%s/first/second/' -c wq {doc}",
    "vim, backup by rename": "vim -es -u NONE -i NONE -N -c 'set backupcopy=no' -c '%s/first/second/' -c wq {doc}",
    "vim, backup by copy": "vim -es -u NONE -i NONE -N -c 'set backupcopy=yes' -c '%s/first/second/' -c wq {doc}",
    "perl": "perl -pi -e s/first/second/ {doc}",
    "mv": "sed s/first/second/ {doc} > {doc}.new && mv {doc}.new {doc}",
}


@pytest.mark.feature("fuse-ctl-writes", "synth-text")
@pytest.mark.parametrize("editor", EDITORS)
def test_an_editor_saves_a_document_and_leaves_nothing_behind(
    editor: str, tmp_path: Path, needs_fuse: None, needs_tool: Callable[[str], str]
) -> None:
    command = EDITORS[editor]
    needs_tool("ed" if editor == "ed" else command.split()[0])
    with serving("clockwork", tmp_path) as mount:
        doc = mount.dir / "doc"
        before = sorted(path.name for path in mount.dir.iterdir())
        subprocess.run(command.format(doc=doc), shell=True, check=True, timeout=SECONDS_MAX, capture_output=True)
        assert doc.read_text() == "second\n"
        assert sorted(path.name for path in mount.dir.iterdir()) == before
