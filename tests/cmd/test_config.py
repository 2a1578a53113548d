"""The configuration: strict, with the place of a mistake; a flag before the environment before the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import ninep, one_line, run

from ninep import config

pytestmark = pytest.mark.feature("cli-config")

GOOD = """
[listen]
urls = ["9p://127.0.0.1:5640"]
trust_uname = true

[node]
mount = "/n9"

[exports.src]
dir = "/srv/src"
ro = true

[limits]
fids_max = 100
"""


def test_a_good_file_is_what_it_says() -> None:
    held = config.parse(GOOD)
    assert held.listen.urls == ("9p://127.0.0.1:5640",)
    assert held.exports["src"] == config.ExportTable("/srv/src", True)
    assert held.limits.fids_max == 100
    assert held.limits.parked_max == config.DEFAULT.parked_max


@pytest.mark.parametrize(
    ("text", "line", "key", "said"),
    [
        ("[node]\n\nmuont = '/n9'\n", 3, "node.muont", "unknown key"),
        ("# x\n[nodes]\nmount = '/n9'\n", 2, "nodes", "unknown key"),
        ("[exports.a]\ndir = '/'\nrw = true\n", 3, "exports.a.rw", "unknown key"),
        ("exports.a = {dir = '/a', rw = true}\n", 1, "", "unknown key"),
        ("[exports.a]\nro = true\n", 1, "", "missing: dir"),
        ("[node]\nmount = 7\n", 2, "node.mount", "expected"),
        ("[node]\nmount = 'n9'\n", 2, "node.mount", "not an absolute path"),
        ("[limits]\nfids_max = 0\n", 2, "limits.fids_max", "above zero"),
        ("[limits]\nfids_max = 1\nfids_mox = 2\n", 3, "limits.fids_mox", "unknown key"),
        ("[listen]\nsocket_mode = '999'\n", 2, "listen.socket_mode", "not an octal mode"),
        ("[exports.'a/b']\ndir = '/a'\n", 1, "exports.a/b", "not a name for an export"),
        ("[log]\nlevel = 'loud'\n", 2, "log.level", "invalid enum value"),
        ("[node]\nmount = '/n9'\nmount = '/n9'\n", 3, "", "cannot overwrite a value"),
        ("[node\n", 1, "", "expected"),
        ("text = '''\n[node]\n'''\n[node]\nx = 1\n", 1, "text", "unknown key"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_key(text: str, line: int, key: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.parse(text, "f.toml")
    e = caught.value
    assert e.line == line
    assert said in e.text
    if key:
        assert e.key == key
    assert str(e).startswith(f"f.toml:{line}: ")
    file = tmp_path / "config.toml"
    file.write_text(text)
    ran = ninep("config", "check", str(file))
    assert ran.code == 1
    assert ran.out.startswith(f"{file}:{line}: ")
    assert said in ran.out
    assert ninep("config", "check", "--json", str(file)).lines()[0]["line"] == line


def test_check_tells_every_mistake_with_its_line_and_what_would_have_been_right(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        "lisen = 1\n[node]\nmuont = '/n9'\nsocket = 'yes'\nstate = 'here'\n"
        "[log]\nlevel = 'loud'\n[exports.a]\nro = 3\n[exports.b]\ndir = 'b'\nrw = true\n"
        "[limits]\nfids_max = 0\nmany = 1\n"
    )
    ran = ninep("config", "check", str(file))
    assert ran.code == 1
    assert ran.out.splitlines() == [
        f"{file}:{line}"
        for line in (
            "1: lisen: unknown key: did you mean listen?",
            "3: node.muont: unknown key: did you mean mount?",
            "4: node.socket: expected bool, got str",
            "5: node.state: not an absolute path: 'here'",
            "7: log.level: invalid enum value 'loud': one of debug info warning error",
            "8: exports.a: missing: dir",
            "9: exports.a.ro: expected bool, got int",
            "11: exports.b.dir: not an absolute path: 'b'",
            "12: exports.b.rw: unknown key: one of dir ro ownership",
            "14: limits.fids_max: must be above zero: 0",
            "15: limits.many: unknown key",
        )
    ]
    rows = ninep("config", "check", "--json", str(file)).lines()
    assert [(row["line"], row["key"]) for row in rows[:2]] == [(1, "lisen"), (3, "node.muont")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("node = 1\n", "1: node: expected a table, as [node]: 1"),
        ("exports = 1\n", "1: exports: expected a table, as [exports.NAME]: 1"),
        ("[exports]\na = '/a'\n", "2: exports.a: expected a table, as [exports.a]: '/a'"),
        ("[listen]\nallow_uids = [1, 'joe']\n", "2: listen.allow_uids: expected int, got str"),
        ("[log]\nlevel = 4\n", "2: log.level: expected str, got int: one of debug info warning error"),
    ],
)
def test_what_is_no_table_and_no_list_is_told(text: str, said: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.parse(text, "f")
    assert str(caught.value) == f"f:{said}"


def test_check_of_a_good_file_and_of_none(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    there = tmp_path / "there"
    there.mkdir()
    good = GOOD.replace("/srv/src", str(there)).replace("/n9", str(there))
    file.write_text(good)
    assert ninep("config", "check", str(file)).out == f"{file}: ok\n"
    assert ninep("config", "check", str(tmp_path / "no")).code == 3
    assert ninep("config", "mend").code == 2


def test_a_directory_that_is_not_there_fails_the_check_and_the_start(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    (tmp_path / "file").write_text("")
    file.write_text(
        f"[exports.a]\ndir = '{tmp_path}/no'\n[exports.b]\ndir = '{tmp_path}/file'\n[exports.c]\ndir = '{tmp_path}'\n"
        f"[node]\nmount = '{tmp_path}/point'\n"
    )
    ran = ninep("config", "check", str(file))
    assert ran.code == 1
    wrong = [
        f"{file}:2: exports.a.dir: no such file or directory: {tmp_path}/no",
        f"{file}:4: exports.b.dir: not a directory: {tmp_path}/file",
        f"{file}:8: node.mount: no such file or directory: {tmp_path}/point",
    ]
    assert ran.out.splitlines() == wrong
    started = run("ninepd", "--no-node-socket", "--listen", f"9p+unix://{tmp_path}/s", "--state", f"{tmp_path}/state",
                  "--config", str(file))  # fmt: skip
    assert started.code == 78  # which the unit does not retry
    assert one_line(started.err) == f"ninepd: {wrong[0]}: try 'ninep config check' until it is right"


def test_an_export_of_the_file_that_is_refused_is_a_wrong_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[exports.a]\ndir = '/'\n")
    words = ("ninepd", "--no-node-socket", "--listen", f"9p+unix://{tmp_path}/s", "--state", f"{tmp_path}/state")
    assert run(*words, "--config", str(file)).code == 78


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(GOOD)
    file.chmod(0o666)
    ran = run("ninepd", "--config", str(file), "--state", str(tmp_path / "s"))
    assert ran.code == 78
    assert "others may write it" in one_line(ran.err)
    assert ninep("config", "check", str(file)).code == 1


def test_a_flag_counts_before_the_environment_before_the_file_before_the_default(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[client]\nnode = '9p+unix:///from/file'\n")
    env = {"NINEP_CONFIG": str(file), "NINEP_NODE": ""}
    assert "/from/file" in ninep("ls", env=env).err
    assert "/from/env" in ninep("ls", env={**env, "NINEP_NODE": "9p+unix:///from/env"}).err
    flagged = ninep("ls", "-n", "9p+unix:///from/flag", env={**env, "NINEP_NODE": "9p+unix:///from/env"})
    assert "/from/flag" in flagged.err
    rows = {row["key"]: row for row in ninep("config", "show", "--json", str(file), env=env).lines()}
    assert rows["client.node"]["from"] == str(file)
    assert rows["log.level"]["from"] == "default"


def test_a_broken_file_stops_a_server_and_says_where(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[node]\nmuont = '/n9'\n")
    ran = ninep("serve", "ram:", "--listen", f"9p+unix://{tmp_path}/s", "--config", str(file))
    assert ran.code == 78
    assert f"{file}:2: node.muont: unknown key" in one_line(ran.err)
