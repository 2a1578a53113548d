"""Listing a mounted host directory: every name once, whatever the kernel asks with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fuse_mounts import run, serving

COUNT = 3000


def test_a_large_directory_lists_once_and_with_the_inode_numbers_of_stat(needs_fuse: None, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    names = {f"{'x' * (i % 120)}{i}" for i in range(COUNT)}
    for name in names:
        (tree / "d" / name).touch()
    (tmp_path / "m").mkdir()
    with serving(f"host:{tree}", tmp_path / "m") as mount:
        program = """if True:
            import os, sys
            path = sys.argv[1]
            plain = sorted(os.listdir(path))
            again = sorted(os.listdir(path))
            with os.scandir(path) as entries:
                looked = sorted((e.name, e.inode(), e.stat().st_ino, e.is_file()) for e in entries)
            assert plain == again == [name for name, *_ in looked], "other names"
            assert all(told == is_so and kind for _, told, is_so, kind in looked), "other inode numbers"
            assert os.stat(path).st_ino == os.stat(path + "/.").st_ino
            print("\\n".join(plain))
        """
        done = run(sys.executable, "-c", program, mount.dir / "d", seconds=60)
        assert done.returncode == 0, done.stderr
        assert set(done.stdout.decode().split()) == names
        long = run("ls", "-l", mount.dir / "d", seconds=60)
        assert long.returncode == 0
        assert long.stdout.count(b"\n") == COUNT + 1


def test_a_listing_goes_on_where_the_kernel_lost_a_part_of_the_one_it_kept(needs_fuse: None, tmp_path: Path) -> None:
    """A later open asks for what comes after a cookie that an earlier one was given."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for i in range(COUNT):
        (tree / f"f{i:05}").touch()
    (tmp_path / "m").mkdir()
    with serving(f"host:{tree}", tmp_path / "m") as mount:
        program = """if True:
            import os, sys
            path = sys.argv[1]
            for turn in range(6):
                assert len(os.listdir(path)) == int(sys.argv[2])
                fd = os.open(path, os.O_RDONLY)
                # The kernel drops a page of the kept listing, from the second on.
                os.posix_fadvise(fd, 4096 << turn, 4096 << turn, os.POSIX_FADV_DONTNEED)
                os.close(fd)
        """
        done = subprocess.run(
            [sys.executable, "-c", program, mount.dir, str(COUNT)], capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr


def test_a_removed_file_is_not_listed_and_a_new_one_is(needs_fuse: None, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for i in range(400):
        (tree / f"f{i}").touch()
    (tmp_path / "m").mkdir()
    with serving(f"host:{tree}", tmp_path / "m") as mount:
        for turn in range(5):
            assert run("sh", "-c", f"ls {mount.dir} && rm {mount.dir}/f{turn} && >{mount.dir}/g{turn}").returncode == 0
            assert set(run("ls", mount.dir).stdout.decode().split()) == set(os.listdir(tree))
