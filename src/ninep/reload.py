"""A tree from a Python module that is loaded again when its file changes: `py:module:attr`.

Knows no command line.  A new attach looks at the file; an edit that does not load leaves the old tree in place and is
logged once, with its traceback.  Sessions that are attached keep the tree that they have.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType

from .answer import Answer
from .file import Call, Dir
from .namespace.namespace import Namespace
from .proto import errors as E

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]


class _Fresh(SourceFileLoader):
    """Compiles the source that is there now: the compiled file's time stamp has seconds, and an editor is quicker."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


class Reloaded(Namespace):
    """The tree that an attribute of a module is, makes when called, or is a class of."""

    def __init__(self, name: str, path: str, attr: str) -> None:
        """Load it the first time.  Raises whatever the module raises, and Ebadarg if there is no tree in it."""
        self._name = name
        self._path = path
        self._attr = attr
        self._stamp = stamp_of(path)
        super().__init__(_load(name, path, attr))

    def attach(self, call: Call, aname: str) -> Answer[Dir]:
        """The tree as the file says now.  Blocks for as long as loading takes, which is the author's affair."""
        self.refresh()
        if aname in ("", "/"):
            return self.root.attach(call, "")
        return self.root.attach(call, aname)

    def refresh(self) -> bool:
        """Load it again if the file has changed; True if there is a new tree."""
        try:
            stamp = stamp_of(self._path)
        except OSError:
            return False  # being replaced, or gone: what is loaded stays
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self.root = _load(self._name, self._path, self._attr)
        except Exception as e:
            log.error("%s: not loaded, the old tree stays: %s: %s", self._path, type(e).__name__, e, exc_info=e)
            return False
        log.info("%s: loaded again", self._path)
        return True


def stamp_of(path: str) -> Stamp:
    """What changes when a file does."""
    st = os.stat(path)
    return st.st_mtime_ns, st.st_size, st.st_ino


def tree(spec: str) -> Reloaded:
    """The tree of `module:attr`, `./file.py:attr` or `/dir/file.py:attr`; the attribute is `tree` if none is named.

    A module is looked up on sys.path, never in the current directory; a path is what it says.
    Raises Ebadarg or Enonexist for a bad spec, and what the module raises.
    """
    where, _, attr = spec.rpartition(":") if ":" in spec else (spec, "", "tree")
    attr = attr or "tree"
    if not attr.isidentifier():
        raise E.Ebadarg(f"not a name in a module: {attr[:40]!r}")
    if "/" in where:
        path = os.path.abspath(where)
        if not os.path.isfile(path):
            raise E.Enonexist(where)
        return Reloaded("ninep_tree_" + os.path.basename(path).removesuffix(".py").replace(".", "_"), path, attr)
    if not where or not all(part.isidentifier() for part in where.split(".")):
        raise E.Ebadarg(f"not a module: {where[:60]!r}; a file is ./{where[:60].lstrip('.')}")
    try:
        found = importlib.util.find_spec(where)
    except ImportError:
        found = None
    if found is None or not found.origin or not found.has_location:
        raise E.Enonexist(f"module {where}; a file in this directory is py:./{where}.py")
    return Reloaded(where, found.origin, attr)


def _load(name: str, path: str, attr: str) -> Dir:
    """Run the file as a new module.  The old one stays in sys.modules unless this one gives a tree."""
    spec = importlib.util.spec_from_file_location(name, path, loader=_Fresh(name, path))
    if spec is None or spec.loader is None:
        raise E.Ebadarg(f"not Python: {path}")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickling look their module up while it runs
    try:
        spec.loader.exec_module(module)
        return _tree_of(module, attr)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise


def _tree_of(module: ModuleType, attr: str) -> Dir:
    if not hasattr(module, attr):
        raise E.Ebadarg(f"no {attr} in {module.__file__}")
    found = getattr(module, attr)
    if not isinstance(found, Dir) and callable(found):
        found = found()
    if not isinstance(found, Dir):
        raise E.Ebadarg(f"{attr} of {module.__file__} is no tree but {type(found).__name__}")
    return found
