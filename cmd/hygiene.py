"""What may be imported: never what happens to lie in the current directory (SEC-140).  Knows no program."""

from __future__ import annotations

import os
import sys


def trim_path() -> None:
    """Take out of sys.path what names no place of its own: the directory of the script, or of `python -m`, that Python
    put first, and the relative and empty parts of PYTHONPATH, which mean the current directory.

    Absolute directories in PYTHONPATH stay: whoever sets the environment runs the program anyway.
    """
    if sys.flags.safe_path:
        return
    main = sys.modules.get("__main__")
    by_module = getattr(main, "__spec__", None) is not None
    cwd = _cwd()
    script = os.path.dirname(os.path.realpath(sys.argv[0])) if sys.argv and sys.argv[0] else ""
    if sys.path and sys.path[0] == (cwd if by_module else script):
        del sys.path[0]
    parts = os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.environ.get("PYTHONPATH") else []
    loose = {os.path.normpath(os.path.join(cwd, part)) for part in parts if not os.path.isabs(part)}
    named = {os.path.normpath(part) for part in parts if os.path.isabs(part)}
    sys.path[:] = [path for path in sys.path if os.path.isabs(path) and (path not in loose or path in named)]


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""
