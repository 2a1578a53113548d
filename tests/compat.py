"""Which programs work on which mounted trees: what the tests run, and docs/compatibility.md shows.

A row is a script that a shell runs, which must end with 0.  It starts in a new directory of the mount; $O is a place
outside with the files `text` (2000 lines) and `bytes` (300 000 random ones), $PY is a Python.  Knows no mount.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

TREES: Final = {
    "ram": "a ram tree",
    "host": "a directory of this machine (`host:`)",
    "remote": "a served directory, `ninep mount 9p+unix://…` (9P2000.L)",
    "9P2000": "the same with `dialect=9P2000`: no links, locks, attributes or devices on the wire",
    "pyfuse3": "a directory of this machine, by the second engine",
}


@dataclass(frozen=True)
class No:
    """What a program says where it cannot work (a regular expression), and why it cannot."""

    says: str
    reason: str


@dataclass(frozen=True)
class Program:
    """One row.  `no` has the trees where it fails; `needs` are programs that not every machine has."""

    name: str
    script: str
    no: Mapping[str, No] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    where: tuple[str, ...] = tuple(TREES)


NO_SYMLINKS: Final = "9P2000 has no symbolic links; 9P2000.u and 9P2000.L do"
NO_LINKS: Final = "9P2000 has no hard links; 9P2000.L does"
NO_REPLACE: Final = "9P2000's rename may not take a name that exists (stat(5)): no file can be replaced at once"
NO_LOCKS: Final = "9P2000 has no locks: refused at once with EOPNOTSUPP, never granted in appearance only"
NO_XATTRS: Final = "9P2000 has no extended attributes"
NO_SPECIAL: Final = "9P2000 has no FIFOs, sockets and devices"
UNSUPPORTED: Final = "not supported"

PY: Final = "$PY - <<'END'\nimport fcntl, mmap, os, socket\nbig = open(os.environ['O'] + '/bytes', 'rb').read()\n"

INOTIFY: Final = PY + (
    "import ctypes\nlibc = ctypes.CDLL(None)\nwatch = libc.inotify_init1(os.O_NONBLOCK)\n"
    "assert libc.inotify_add_watch(watch, b'.', 0x302) > 0\n"
    "def events():\n  try: return os.read(watch, 4096)\n  except BlockingIOError: return b''\n"
)

PROGRAMS: Final = (
    # -- reading
    Program("GNU cat", "cp $O/bytes f; cat f | cmp - $O/bytes"),
    Program("busybox cat", "cp $O/bytes f; busybox cat f | cmp - $O/bytes", needs=("busybox",)),
    Program("head -c1", "cp $O/text f; test $(head -c1 f) = 1"),
    Program("head -n1, which seeks back", "cp $O/text f; (head -n1; head -n1) <f | tr '\\n' , | grep -qx 1,2,"),
    Program("tail -n, tail -c", "cp $O/text f; test $(tail -n1 f) = 2000; test $(tail -c5 f) = 2000"),
    Program(
        "tail -f",
        "echo one >f; timeout 20 tail -s.05 -f f >$O/out & until [ -s $O/out ]; do sleep .02; done; "
        "echo two >>f; until grep -q two $O/out; do sleep .02; done; kill $!",
    ),
    Program("bash read, mapfile", "cp $O/text f; read -r a <f; test $a = 1; mapfile -t all <f; test ${#all[@]} = 2000"),
    Program(
        "sendfile(2)",
        PY + "open('f', 'wb').write(big)\nf = os.open('f', 0)\nout = os.open('g', os.O_CREAT | 1)\n"
        "while n := os.sendfile(out, f, None, 1 << 20): pass\nassert open('g', 'rb').read() == big\nEND",
    ),
    Program(
        "splice(2)",
        PY + "open('f', 'wb').write(big)\nf = os.open('f', 0)\ng = os.open('g', os.O_CREAT | 1)\n"
        "r, w = os.pipe()\nwhile n := os.splice(f, w, 65536):\n  while n: n -= os.splice(r, g, n)\n"
        "assert open('g', 'rb').read() == big\nEND",
    ),
    Program(
        "mmap(2) for reading",
        PY + "open('f', 'wb').write(big)\nassert mmap.mmap(os.open('f', 0), 0, prot=mmap.PROT_READ)[:] == big\nEND",
    ),
    Program(
        "grep -r",
        "mkdir -p a/b; cp $O/text a/b/f; echo needle >a/b/g; test $(grep -rl needle .) = ./a/b/g; ! grep -rq absent .",
    ),
    Program(
        "find, du, stat, wc, ls -lR",
        "mkdir -p a/b; cp $O/bytes a/b/f; test $(find . -type f -size +200k) = ./a/b/f; "
        "test $(stat -c %s a/b/f) = 300000; test $(wc -c <a/b/f) = 300000; du -s . ; ls -lR . | grep -q 300000; df .",
    ),
    Program(
        "sort -o onto itself, split, sha256sum",
        "cp $O/text f; sort -rn f -o f; test $(head -n1 f) = 2000; "
        "split -l 300 f part.; cat part.* | cmp - f; sha256sum f part.* >sums; sha256sum -c --quiet sums",
    ),
    # -- writing
    Program("cp, cp -r", "cp $O/bytes f; cmp f $O/bytes; mkdir a; cp f a; cp -r a b; cmp b/f $O/bytes"),
    Program(
        "cp -a, cp -p, install",
        "umask 022; cp $O/text f; chmod 640 f; touch -d @5 f; cp -p f g; install -m 600 f h; "
        "mkdir a; cp -p f a; chmod 700 a; cp -a a b; test \"$(stat -c '%a %Y' g b/f h | cut -c1-5 | tr '\\n' ,)\" = "
        "'640 5,640 5,600 1,'",
    ),
    Program(
        "cp --reflink=always",
        "echo x >f; cp --reflink=always f g",
        no=dict.fromkeys(
            TREES,
            No(
                "Operation not supported|Inappropriate ioctl",
                "FUSE cannot share blocks between files; without the option cp copies",
            ),
        ),
    ),
    Program("cp --sparse, holes", "truncate -s 3M f; echo x >>f; cp --sparse=always f g; cmp f g"),
    Program(
        "tee, tee -a",
        "tee f g <$O/text >/dev/null; echo more | tee -a f >/dev/null; cmp g $O/text; test $(tail -n1 f) = more",
    ),
    Program(
        "dd: blocks, seek, conv=notrunc,fsync, append",
        "dd if=$O/bytes of=f bs=4k status=none; cmp f $O/bytes; "
        "printf XY | dd of=f bs=1 seek=10 conv=notrunc,fsync status=none; test $(dd if=f bs=1 skip=10 count=2 "
        "status=none) = XY; test $(stat -c %s f) = 300000; echo z | dd of=f oflag=append conv=notrunc status=none",
    ),
    Program(
        "dd with O_DIRECT",
        "dd if=/dev/urandom of=f bs=64k count=4 oflag=direct status=none; dd if=f of=g bs=64k "
        "iflag=direct status=none; cmp f g",
    ),
    Program(
        "copy_file_range(2)",
        PY + "open('f', 'wb').write(big)\nf, g = os.open('f', 0), os.open('g', os.O_CREAT | 1)\n"
        "while os.copy_file_range(f, g, 1 << 20): pass\nassert open('g', 'rb').read() == big\nEND",
    ),
    Program(
        "mmap(2), shared and writable",
        PY + "open('f', 'wb').write(big)\nf = open('f', 'r+b')\n"
        "m = mmap.mmap(f.fileno(), 0)\nm[5000:5005] = b'hello'\nm.flush()\nm.close()\nf.close()\n"
        "assert open('f', 'rb').read() == big[:5000] + b'hello' + big[5005:]\nEND",
    ),
    Program(
        "fallocate, punching holes",
        "fallocate -l 1M f; test $(stat -c %s f) = 1048576; fallocate -p -o 65536 -l 65536 f",
        no={
            "remote": No(UNSUPPORTED, "9P has no fallocate; programs that ask with posix_fallocate(3) write zeros"),
            "9P2000": No(UNSUPPORTED, "9P has no fallocate; programs that ask with posix_fallocate(3) write zeros"),
            "pyfuse3": No(UNSUPPORTED, "the library pyfuse3 has no fallocate"),
        },
        needs=("fallocate",),
    ),
    Program(
        "truncate, touch, chmod, mv, rm -r",
        "truncate -s 10 f; test $(stat -c %s f) = 10; touch -d @5 f; "
        "test $(stat -c %Y f) = 5; chmod 604 f; test $(stat -c %a f) = 604; mkdir -p a/b; mv f a/b/g; mv a c; "
        'test -f c/b/g; rm -r c; test -z "$(ls)"',
    ),
    Program("mv between directories", "mkdir a b; echo x >a/f; mv a/f b/f; test $(cat b/f) = x"),
    # -- editing
    Program(
        "sed -i, patch, diff -r",
        "cp $O/text f; mkdir a; cp f a/f; sed -i 's/^7$/seven/' a/f; "
        'diff f a/f >d || true; patch -s f d; cmp f a/f; test -z "$(diff -r a/f f)"',
        no={"9P2000": No("File exists", NO_REPLACE)},
        needs=("patch",),
    ),
    Program(
        "vim, saving over the file",
        "cp $O/text f; vim -u NONE -es -c 'set backupcopy=yes backup writebackup backupskip=' "
        "-c '%s/^7$/seven/' -c wq f; grep -qx seven f; test $(wc -l <f) = 2000; test -f f~",
        needs=("vim",),
    ),
    Program(
        "vim, saving by rename, with a swap file",
        "cp $O/text f; chmod 640 f; vim -u NONE -es -c 'set swapfile "
        "backupcopy=no writebackup' -c '%s/^7$/seven/' -c wq f; grep -qx seven f; test $(stat -c %a f) = 640; "
        'test "$(ls -A)" = f',
        needs=("vim",),
    ),
    Program(
        "busybox sed -i, busybox grep -r",
        "cp $O/text f; busybox sed -i 's/^7$/seven/' f; grep -qx seven f; busybox grep -rq seven .",
        no={"9P2000": No("File exists", NO_REPLACE)},
        needs=("busybox",),
    ),
    # -- archives, copies, repositories
    Program(
        "tar c, tar x",
        "mkdir -p a/b; cp $O/bytes a/b/f; chmod 600 a/b/f; touch -d @5 a/b/f; tar cf t.tar a; mkdir x; "
        "tar xf t.tar -C x; diff -r a x/a; test \"$(stat -c '%a %Y' x/a/b/f)\" = '600 5'",
    ),
    Program(
        "tar with links",
        "mkdir a; echo x >a/f; ln a/f a/g; ln -s f a/s; tar cf t.tar a; mkdir x; tar xf t.tar -C x; "
        "test $(readlink x/a/s) = f; test x/a/f -ef x/a/g",
        no={"9P2000": No("not supported", NO_LINKS)},
    ),
    Program("gzip, xz", "cp $O/text f; gzip f; gunzip f.gz; xz -T1 f; unxz f.xz; cmp f $O/text", needs=("gzip", "xz")),
    Program(
        "rsync -rt, --inplace, --append",
        "mkdir a; cp $O/bytes a/f; cp $O/text a/g; rsync -rt a/ b/; diff -r a b; "
        "echo more >>a/g; rsync -rt --inplace a/ b/; echo more >>a/g; rsync -rt --append a/ b/; diff -r a b; "
        'test -z "$(rsync -rtni --delete a/ b/)"',
        needs=("rsync",),
    ),
    Program(
        "rsync -aHX",
        "mkdir a; echo x >a/f; ln a/f a/g; ln -s f a/s; rsync -aHX a/ b/; test b/f -ef b/g; "
        'test $(readlink b/s) = f; test -z "$(rsync -aHXni --delete a/ b/)"',
        no={"9P2000": No("not supported", NO_LINKS)},
        needs=("rsync",),
    ),
    Program(
        "git init, commit, gc, fsck",
        "git init -q r; cd r; git config user.email a@b; git config user.name n; "
        "cp $O/text f; git add f; git commit -qm one; echo 2 >f; git commit -qam two; git fsck --strict; git gc -q; "
        'git fsck; test -z "$(git status --porcelain)"; test $(git log --oneline | wc -l) = 2',
        no={"9P2000": No("File exists", NO_REPLACE)},
        needs=("git",),
    ),
    Program(
        "git clone, git fsck",
        "git init -q r; cd r; git config user.email a@b; git config user.name n; cp $O/text f; "
        "git add f; git commit -qm one; cd ..; git clone -q --no-local r s; cd s; git fsck; cmp f $O/text; "
        'git checkout -qb other; test -z "$(git status --porcelain)"',
        no={"9P2000": No("File exists", NO_REPLACE)},
        needs=("git",),
    ),
    Program(
        "git clone --local, by hard links",
        "git init -q r; cd r; git config user.email a@b; git config user.name n; "
        "cp $O/text f; git add f; git commit -qm one; cd ..; git clone -q --local r s; cd s; git fsck",
        no={"9P2000": No("File exists", NO_REPLACE)},
        needs=("git",),
    ),
    Program(
        "python -m compileall, import", "echo 'x = 3' >m.py; $PY -m compileall -q .; $PY -c 'import m; assert m.x == 3'"
    ),
    Program(
        "running a program and a script",
        "cp $(type -P true) t; ./t; printf '#!/bin/sh\\necho ran\\n' >s; chmod +x s; test $(./s) = ran",
    ),
    # -- links, locks, the rest
    Program(
        "ln", "echo x >f; ln f g; test f -ef g; test $(stat -c %h f) = 2", no={"9P2000": No("not supported", NO_LINKS)}
    ),
    Program(
        "ln -s, readlink",
        "echo x >f; ln -s f s; test $(readlink s) = f; test $(cat s) = x",
        no={"9P2000": No("not supported", NO_SYMLINKS)},
    ),
    Program("an unlinked open file", 'echo x >f; exec 5<>f; rm f; echo yes >&5; exec 5<&-; test -z "$(ls -A)"'),
    Program(
        "flock(1), lockf(3) between processes",
        "touch f; exec 5>f; flock -n 5; ! flock -n f true; exec 5>&-; "
        "flock -n f true; $PY -c 'import fcntl, os, subprocess, sys\n"
        'f = open("f", "r+")\n'
        'other = [sys.executable, "-c", "import fcntl; fcntl.lockf(open(\\"f\\", \\"r+\\"), 6)"]\n'
        "fcntl.lockf(f, fcntl.LOCK_EX)\n"
        "assert subprocess.run(other, stderr=subprocess.DEVNULL).returncode\n"
        "fcntl.lockf(f, fcntl.LOCK_UN)\nassert not subprocess.run(other).returncode'",
        no={"9P2000": No("not supported", NO_LOCKS)},
        needs=("flock",),
    ),
    Program(
        "extended attributes user.*",
        'touch f; $PY -c \'import os; os.setxattr("f", "user.a", b"1"); '
        'assert os.listxattr("f") == ["user.a"]; assert os.getxattr("f", "user.a") == b"1"\'',
        no={"9P2000": No("not supported", NO_XATTRS)},
    ),
    Program(
        "mkfifo", "mkfifo p; echo through >p & test $(cat p) = through", no={"9P2000": No("not supported", NO_SPECIAL)}
    ),
    Program(
        "a unix socket",
        PY + "a = socket.socket(socket.AF_UNIX)\na.bind('s')\na.listen()\nb = socket.socket("
        "socket.AF_UNIX)\nb.connect('s')\nEND",
        no={"9P2000": No("not supported", NO_SPECIAL)},
    ),
    Program("inotify, of what the mount's own users do", INOTIFY + "open('f', 'w').close()\nassert events()\nEND"),
    Program(
        "inotify, of what others do to the server's files",
        INOTIFY + "open(os.environ['BEHIND'] + '/f', 'w').close()\n"
        "assert os.stat('f').st_size == 0\nassert events(), 'nothing told'\nEND",
        no=dict.fromkeys(
            TREES, No("nothing told", "the kernel tells only what goes through it; FUSE and 9P have no way to say more")
        ),
        where=("host", "remote", "9P2000", "pyfuse3"),
    ),
)

# -- synthetic files: a whole state file {f} to standard output; a line to {f}, a ctl; the line of a stream {f}

READERS: Final = {
    "cat": "cat {f}",
    "busybox cat": "busybox cat {f}",
    "dd": "dd if={f} bs=4096 status=none",
    "dd bs=7": "dd if={f} bs=7 status=none",
    "tail": "tail -n +1 {f}",
    "head -c": "head -c 100000 {f}",
    "head -n": "head -n 3 {f}",
    "cp": "cp {f} /dev/stdout",
    "tee": "tee <{f}",
    "bash read": 'bash -c \'while IFS= read -r line; do printf "%s\\n" "$line"; done <{f}\'',
    "splice": "{python} -c 'import os,sys; f=os.open(sys.argv[1],0)\nwhile os.splice(f,1,65536): pass' {f} | cat",
    "sendfile": "{python} -c 'import os,sys,socket\nf=os.open(sys.argv[1],0); a,b=socket.socketpair();"
    " os.sendfile(a.fileno(),f,0,1<<20); a.close()\nwhile d:=b.recv(65536): os.write(1,d)' {f}",
    "mmap": "{python} -c 'import mmap,os,sys\nf=os.open(sys.argv[1],0); os.write(1,mmap.mmap(f,0,prot=1)[:])' {f}",
    "python": "{python} -c 'import sys; sys.stdout.write(open(sys.argv[1]).read())' {f}",
    "grep": "grep . {f}",
    "tar": "tar cf - -C $(dirname {f}) state | tar xOf -",
    "rsync": "t=$(mktemp -d) && rsync {f} $t && cat $t/state && rm -r $t",
}

WRITERS: Final = {
    "echo >": "echo say {word} >{f}",
    "echo >>": "echo say {word} >>{f}",
    "tee": "echo say {word} | tee {f} >/dev/null",
    "tee -a": "echo say {word} | tee -a {f} >/dev/null",
    "cp": "echo say {word} >{o}; cp {o} {f}",
    "cat >": "echo say {word} | cat >{f}",
    "dd": "echo say {word} | dd of={f} status=none",
    "dd conv=notrunc": "echo say {word} | dd of={f} conv=notrunc status=none",
    "busybox tee": "echo say {word} | busybox tee {f} >/dev/null",
    "python": '{python} -c \'import sys; open(sys.argv[1], "r+").write("say {word}\\n")\' {f}',
    "sendfile": "echo say {word} >{o}; {python} -c 'import os,sys; f=os.open(sys.argv[1],0);"
    " os.sendfile(os.open(sys.argv[2],1),f,0,99)' {o} {f}",
    "splice": "echo say {word} | {python} -c 'import os,sys; os.splice(0,os.open(sys.argv[1],1),99)' {f}",
}

NO_SEEK: Final = No(
    "cannot seek",
    "it prints the line, ends with 0, and complains that it cannot seek back to behind it: a stream has no positions, "
    "because who waits for a position that a parked reader holds cannot be killed; `sed -u 1q` says nothing",
)
NO_SIZE: Final = No(
    "",
    "it reads nothing: the kernel's sendfile and splice end at the stated size, and that of a stream is 0; busybox cat "
    "uses sendfile",
)

FOLLOWERS: Final = (
    Program("cat", "timeout 30 cat {f} | head -c 4"),
    Program("busybox cat", "timeout 30 busybox cat {f} | head -c 4", no={"stream": NO_SIZE}, needs=("busybox",)),
    Program("head -c", "head -c 4 {f}"),
    Program("head -n1", "head -n 1 {f}", no={"stream": NO_SEEK}),
    Program("busybox head -n1", "busybox head -n 1 {f}", needs=("busybox",)),
    Program("sed -u 1q", "sed -u 1q {f}"),
    Program("dd count=1", "dd if={f} bs=4096 count=1 status=none"),
    Program("bash read", "bash -c 'read -r line <{f}; echo \"$line\"'"),
    Program("grep -m1", "grep -m1 . {f}"),
    Program("python readline", "{python} -c 'import sys; print(open(sys.argv[1]).readline(), end=\"\")' {f}"),
    Program("splice(2)", "{python} -c 'import os,sys; os.splice(os.open(sys.argv[1],0),1,4096)' {f} | cat",
            no={"stream": NO_SIZE}),
    Program("sendfile(2)", "{python} -c 'import os,sys; os.sendfile(1,os.open(sys.argv[1],0),None,4)' {f} | cat",
            no={"stream": NO_SIZE}),
)  # fmt: skip

# -- sqlite

SQLITE_MODES: Final = {
    "delete": "rollback journal",
    "wal": "write-ahead log, among the programs of one machine",
}
SQLITE_NO: Final = {
    "9P2000": No(
        "disk I/O error",
        f"{NO_LOCKS}; sqlite calls that a disk I/O error and touches nothing; `?vfs=unix-dotfile` needs no locks",
    )
}
