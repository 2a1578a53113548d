"""The table of verbs: the one source of the parser, --help, the man pages and the completions.

A new verb is one entry here and one function; nothing else lists verbs.
"""

from __future__ import annotations

from .table import Arg, Verb

_URLS = Arg(("url",), "9p://host/path, 9p+unix:///socket//path, or /path on the local node", "str", "URL", "+",
            completes="url")  # fmt: skip
_URL = _URLS._replace(shape="")
_TREE_TEXT = """TREE is one of
ram: (a file tree in memory),
host:DIR or host:DIR:ro (a host directory),
kernel: (the synthetic kernel: today its dev tree),
py:module:attr or py:./file.py:attr (a tree of your own, loaded again when its file changes)."""

LISTEN = Arg(("--listen",), "where to listen; may be given many times", "list", "URL", completes="url")
POLICY_ARGS: tuple[Arg, ...] = (
    Arg(("--plaintext-off-host",), "allow plain TCP beyond loopback, where nobody is proven"),
    Arg(("--trust-uname",), "believe the user names that TCP clients state"),
    Arg(("--allow-uid",), "let this user connect to unix sockets too", "list", "UID"),
    Arg(("--allow-gid",), "let this group connect to unix sockets too", "list", "GID"),
    Arg(("--socket-mode",), "permission bits of unix sockets (default 600)", "mode", "OCTAL"),
    Arg(("--as-root",), "serve beyond loopback although running as root"),
)
STATE = Arg(("--state",), "state directory (default $XDG_STATE_HOME/ninep; root: /var/lib/ninep)", "str", "DIR",
            completes="dir")  # fmt: skip
CONFIG = Arg(("--config",), "configuration file", "str", "FILE", completes="file")
_PERM = Arg(("-m", "--mode"), "permission bits of what is made", "mode", "OCTAL")
_MOUNT_TEXT = """DIR shows what the server at URL serves, or a local TREE (see ninep-serve(1)).  The command returns
when the file system answers and is visible in the mount table; with --foreground it stays, and ends the mount when it
ends.

Options of -o, apart by commas: ro, allow_other, cache=off, symlinks=contain|deny|all, fsname=NAME; aname=A, uname=U,
dialect=D, msize=N and timeout=SECONDS for a server, whose links may not lead out of the mount unless symlinks=all.
Options that are for mount(8) and systemd (_netdev, nofail, noauto, user, users, x-*, and so on) are ignored;
anything else is refused."""

VERBS: tuple[Verb, ...] = (
    Verb(
        "serve",
        "serve one tree over 9P",
        (
            ("ninep serve host:$HOME/src:ro --listen 9p://127.0.0.1:5640", "a directory, read only"),
            ("ninep serve ram: --listen 9p+unix://$XDG_RUNTIME_DIR/ram.sock", "a tree in memory"),
            ("ninep serve py:./hello.py:tree --listen 9p://127.0.0.1:5641", "your own, reloaded on change"),
        ),
        (
            Arg(("tree",), "ram: | host:DIR[:ro] | kernel: | py:module:attr", "str", "TREE", completes="tree"),
            LISTEN,
            Arg(("--stdio",), "serve standard input and output (what ssh:// starts)"),
            *POLICY_ARGS,
            STATE,
            CONFIG,
        ),
        "ninep.cli.serve:serve",
        _TREE_TEXT
        + """

Listening URLs: 9p://127.0.0.1:5640 (plain TCP: loopback only unless --plaintext-off-host, and every client is nobody
unless --trust-uname), 9p+unix:///path (a socket that only its owner and root may use), fd:3 (an inherited socket),
stdio.  With LISTEN_FDS set, as systemd does, the inherited sockets are served too.

SIGTERM lets running requests finish, a second one does not; SIGHUP reads the configuration again.""",
    ),
    Verb(
        "mount",
        "mount a 9P server or a local tree by FUSE",
        (
            ("ninep mount 9p://127.0.0.1:5640 /mnt/n", "what a server serves"),
            ("ninep mount host:/srv/data:ro /mnt/data", "a local tree, no server in between"),
            ("ninep mount 9p+unix:///run/x.sock /mnt/x -o ro,cache=off", "read only, never cached"),
        ),
        (
            Arg(("source",), "URL of a server, or TREE", "str", "URL|TREE", completes="tree"),
            Arg(("dir",), "where to mount", "str", "DIR", completes="dir"),
            Arg(("-o", "--options"), "mount options, apart by commas", "list", "OPTS"),
            Arg(("--engine",), "FUSE engine", "str", default="dev", choices=("dev", "pyfuse3")),
            Arg(("--foreground",), "stay, and unmount at the end"),
            STATE,
        ),
        "ninep.cli.mount:mount",
        _MOUNT_TEXT,
    ),
    Verb(
        "umount",
        "end a FUSE mount, also one whose server is gone",
        (
            ("ninep umount /mnt/n", "ask, then detach, then abort; says which step worked"),
            ("ninep umount --lazy /mnt/n", "detach at once; open files stay until closed"),
            ("ninep umount --abort /mnt/n", "end every request first: for a mount that hangs"),
        ),
        (
            Arg(("dir",), "mount point", "str", "DIR", "+", completes="dir"),
            Arg(("--lazy",), "begin with the lazy step"),
            Arg(("--abort",), "begin with the abort step"),
        ),
        "ninep.cli.umount:umount",
    ),
    Verb(
        "ls",
        "list a directory",
        (
            ("ninep ls /dev", "a directory of the local node"),
            ("ninep ls -l 9p://127.0.0.1:5640/", "with mode, owner, size and time"),
            ("ninep ls --json 9p+unix:///run/x.sock//src", "one object per line"),
        ),
        (
            _URLS._replace(shape="*"),
            Arg(("-l", "--long"), "mode, owner, group, size, time, name"),
            Arg(("-d", "--directory"), "the directory itself, not its content"),
            Arg(("-U", "--unsorted"), "in the server's order, printed as it comes"),
        ),
        "ninep.cli.read:ls",
        is_client=True,
    ),
    Verb(
        "cat",
        "print whole files",
        (
            ("ninep cat /dev/time", "a file of the local node"),
            ("ninep cat 9p://127.0.0.1:5640/README.md", "of any 9P server"),
            ("ninep cat /dev/log", "a stream, until Ctrl-C"),
        ),
        (_URLS,),
        "ninep.cli.read:cat",
        is_client=True,
    ),
    Verb(
        "read",
        "read once: one message of a stream, or a part of a file",
        (
            ("ninep read /dev/log", "one message"),
            ("ninep read -o 4096 -c 512 9p://127.0.0.1:5640/disk.img", "512 bytes at offset 4096"),
            ("ninep read --timeout 5 /dev/log", "give up after 5 seconds (exit code 5)"),
        ),
        (
            _URL,
            Arg(("-o", "--offset"), "first byte", "int", "BYTES", default=0),
            Arg(("-c", "--count"), "most bytes; read until there are so many or the file ends", "int", "BYTES"),
        ),
        "ninep.cli.read:read",
        is_client=True,
    ),
    Verb(
        "write",
        "write words, or standard input, to a file",
        (
            ("ninep write /dev/sysname gnot", "the words and a newline, in one write"),
            ("echo hello | ninep write --create 9p://127.0.0.1:5640/note", "standard input, made if missing"),
            ("ninep write --lines /dev/log <messages", "each line is one write"),
        ),
        (
            _URL,
            Arg(("text",), "words to write; none: standard input", "str", "TEXT", "*"),
            Arg(("-a", "--append"), "write at the end"),
            Arg(("-o", "--offset"), "write there, and keep the rest", "int", "BYTES"),
            Arg(("-c", "--create"), "make the file if it is missing"),
            Arg(("--lines",), "each line of standard input is one write"),
            Arg(("--no-newline",), "words without a newline"),
        ),
        "ninep.cli.change:write",
        "The file is emptied first, as by > in a shell, unless --append or --offset is given.",
        is_client=True,
    ),
    Verb(
        "create",
        "make empty files that must not exist yet",
        (
            ("ninep create 9p://127.0.0.1:5640/note", "mode 644"),
            ("ninep create -m 600 9p+unix:///run/x.sock//key", "for the owner only"),
            ("ninep create 9p://127.0.0.1/a 9p://127.0.0.1/b", "two at once"),
        ),
        (_URLS, _PERM),
        "ninep.cli.change:create",
        is_client=True,
    ),
    Verb(
        "stat",
        "show everything about a file but its content",
        (
            ("ninep stat /dev/time", "of the local node"),
            ("ninep stat 9p://127.0.0.1:5640/", "the root of a server"),
            ("ninep stat --json 9p://127.0.0.1:5640/a", "as an object"),
        ),
        (_URLS,),
        "ninep.cli.read:stat",
        is_client=True,
    ),
    Verb(
        "rm",
        "remove files",
        (
            ("ninep rm 9p://127.0.0.1:5640/note", "a file or an empty directory"),
            ("ninep rm -r 9p://127.0.0.1:5640/old", "a directory and all below it"),
            ("ninep rm -f 9p://127.0.0.1:5640/maybe", "no complaint if it is not there"),
        ),
        (
            _URLS,
            Arg(("-r", "--recursive"), "directories and what is in them"),
            Arg(("-f", "--force"), "missing is fine"),
        ),
        "ninep.cli.change:rm",
        is_client=True,
    ),
    Verb(
        "mkdir",
        "make directories",
        (
            ("ninep mkdir 9p://127.0.0.1:5640/new", "mode 755"),
            ("ninep mkdir -p 9p://127.0.0.1:5640/a/b/c", "parents too; existing ones are fine"),
            ("ninep mkdir -m 700 9p+unix:///run/x.sock//private", "for the owner only"),
        ),
        (_URLS, _PERM, Arg(("-p", "--parents"), "parents too, and no error if it is there")),
        "ninep.cli.change:mkdir",
        is_client=True,
    ),
    Verb(
        "mv",
        "rename a file within one server",
        (
            ("ninep mv 9p://127.0.0.1:5640/a b", "in the same directory"),
            ("ninep mv 9p://127.0.0.1:5640/a /dir/b", "a path from the server's root"),
            ("ninep mv -T 9p://127.0.0.1:5640/a b", "never replaces: exit code 6 if b is there"),
        ),
        (
            _URL,
            Arg(("to",), "new name, path, or URL of the same server", "str", "NEW"),
            Arg(("-T", "--no-replace"), "refuse when the new name is taken"),
        ),
        "ninep.cli.change:mv",
        is_client=True,
    ),
    Verb(
        "cp",
        "copy files to, from and between servers",
        (
            ("ninep cp 9p://127.0.0.1:5640/a ./a", "to the local file system"),
            ("ninep cp -r ./src 9p://127.0.0.1:5640/src", "a directory, to a server"),
            ("ninep cp node:/dev/sysname ./name", "from the local node"),
        ),
        (
            Arg(("from",), "URL, node:/path, or a local path", "str", "FROM", completes="file"),
            Arg(("to",), "URL, node:/path, or a local path", "str", "TO", completes="file"),
            Arg(("-r", "--recursive"), "directories and what is in them"),
            Arg(("-T", "--no-replace"), "refuse when the target is there"),
        ),
        "ninep.cli.copy:cp",
        "Here a path without a scheme is a local file; the local node's files are node:/path.  A copy that takes longer"
        " than a second on a terminal shows its rate and the time left.",
        is_client=True,
    ),
    Verb(
        "tail",
        "print the end of a file, then what is added",
        (
            ("ninep tail /dev/log", "a stream, until Ctrl-C"),
            ("ninep tail --lines 3 9p://127.0.0.1:5640/log", "three lines, then what is added"),
            ("ninep tail --once 9p://127.0.0.1:5640/log", "the last ten lines, and no more"),
        ),
        (
            _URL,
            Arg(("--lines",), "how many lines to begin with (default 10)", "int", "N", default=10),
            Arg(("--once",), "do not wait for more"),
        ),
        "ninep.cli.read:tail",
        is_client=True,
    ),
    Verb(
        "chmod",
        "change permission bits",
        (
            ("ninep chmod 640 9p://127.0.0.1:5640/note", "octal"),
            ("ninep chmod u+x,go-w 9p://127.0.0.1:5640/tool", "or as chmod(1) has it"),
            ("ninep chmod a=r 9p+unix:///run/x.sock//f", "all three classes"),
        ),
        (Arg(("mode",), "octal, or [ugoa][+-=][rwx] apart by commas", "str", "MODE"), _URLS),
        "ninep.cli.change:chmod",
        is_client=True,
    ),
    Verb(
        "walk",
        "show each step of a path: name, qid, type",
        (
            ("ninep walk /dev/time", "on the local node"),
            ("ninep walk 9p://127.0.0.1:5640/a/b", "where does a path end?"),
            ("ninep walk --json 9p://127.0.0.1:5640/a/b", "one object per step"),
        ),
        (_URL,),
        "ninep.cli.read:walk",
        is_client=True,
    ),
    Verb(
        "doctor",
        "what works on this machine, what does not, and what mends it",
        (
            ("ninep doctor", "a table"),
            ("ninep doctor --json", "one object per line"),
            ("ninep doctor -q", "only what is missing"),
        ),
        (Arg(("-n", "--node"), "the node to look for", "str", "URL", completes="url"), STATE),
        "ninep.cli.doctor:doctor",
        "The exit code is 0 when everything that the main job needs is there, else 1.",
    ),
    Verb(
        "config",
        "check or show the configuration",
        (
            ("ninep config check", "the file that would be read"),
            ("ninep config check ./config.toml", "another one"),
            ("ninep config show", "what holds, and where each value comes from"),
        ),
        (
            Arg(("action",), "check or show", "str", "ACTION", choices=("check", "show")),
            Arg(("file",), "configuration file", "str", "FILE", "?", completes="file"),
        ),
        "ninep.cli.settings:config",
        "A flag counts before the environment (NINEP_...), the environment before the file, the file before a default.",
    ),
    Verb(
        "completion",
        "print the completion script of a shell",
        (
            ('eval "$(ninep completion bash)"', "bash, for this session"),
            ("ninep completion zsh >~/.zfunc/_ninep", "zsh"),
            ("ninep completion fish >~/.config/fish/completions/ninep.fish", "fish"),
        ),
        (Arg(("shell",), "bash, zsh or fish", "str", "SHELL", choices=("bash", "zsh", "fish"), completes="shell"),),
        "ninep.cli.complete:completion",
    ),
    Verb(
        "_man",
        "write the man pages",
        (("ninep _man docs/man", "all of them"),),
        (Arg(("dir",), "where to", "str", "DIR", completes="dir"),),
        "ninep.cli.man:write",
        is_hidden=True,
    ),
    Verb(
        "ninepd",
        "the node: kernel trees, exports, and a mount",
        (
            ("ninepd --export src=$HOME/src:ro", "a node with one export, on its own socket"),
            ("ninepd --listen 9p://127.0.0.1:5640 --mount /n9", "also on TCP, and mounted"),
            ("ninepd --config /etc/ninep/config.toml", "as the configuration says"),
        ),
        (
            LISTEN,
            Arg(("--mount",), "mount the node's tree there by FUSE", "str", "DIR", completes="dir"),
            Arg(("--export",), "a host directory, at /export/NAME and as aname NAME", "list", "NAME=DIR[:ro]"),
            Arg(("--no-node-socket",), "do not listen on the node's own socket"),
            *POLICY_ARGS,
            STATE,
            CONFIG,
        ),
        "ninep.cli.daemon:ninepd",
        """The node's tree holds dev and export/NAME.  Without --listen it is reached at its own socket,
$XDG_RUNTIME_DIR/ninep/node.sock (root: /run/ninep/node.sock), which is where ninep looks for paths without a scheme.

A second daemon on the same state directory refuses to start.  What must not be served so (plain TCP beyond loopback, as
root beyond loopback, the whole of / without :ro) is refused with exit code 78 and the remedy in one line.

SIGTERM lets running requests finish, a second one does not; SIGHUP reads the configuration again, and keeps the old one
when the new one is wrong.""",
        program="ninepd",
    ),
)

BY_NAME: dict[str, Verb] = {verb.name: verb for verb in VERBS}


def find(name: str) -> Verb | None:
    """The verb of this name that the front program has; ninepd is a program of its own."""
    verb = BY_NAME.get(name)
    return verb if verb is not None and verb.program == "ninep" else None


def shown() -> list[Verb]:
    """The verbs that help, manual and completions list."""
    return [verb for verb in VERBS if not verb.is_hidden and verb.program == "ninep"]
