"""ninepd: one node.  Its tree is {dev, export}; each export is also a tree that an attach may ask for by name."""

from __future__ import annotations

import argparse
import logging
import os

import trio

from ninep import synth
from ninep.config import Config, export_name_problem
from ninep.file import Dir
from ninep.limits import Limits
from ninep.namespace.namespace import Namespace
from ninep.node import Node

from . import logs
from .failure import OK, REFUSED, Failure, Refusal, UsageError
from .listeners import STDIO, check_native, keep_stdio, open_all, rules, urls_of
from .mount import Plan, _check, serve_mount
from .mountopts import Options
from .output import Output
from .places import node_socket, state_dir
from .serve import reload_log
from .service import Service
from .settings import CHECK_HINT, pick, read_config, wrong_of
from .state import State
from .steady import settle_in
from .trees import HostSpec, host_spec, host_tree, kernel_tree

log = logging.getLogger(__name__)


def ninepd(args: argparse.Namespace, output: Output) -> int:
    """Run the node until it is ended."""
    held, path = read_config(args.config)
    logs.start_logging(held.log.level, quiet=args.quiet, verbose=args.verbose)
    if path and (wrong := wrong_of(path)):
        raise Refusal(wrong[0], CHECK_HINT)
    held_rules = rules(args, held.listen)
    urls = urls_of(args, held.listen)
    if held.node.socket and not args.no_node_socket:
        urls = [f"9p+unix://{node_socket()}", *urls]
    if not urls and not os.environ.get("LISTEN_FDS"):
        raise UsageError("nowhere to listen", hint="--listen, or no --no-node-socket")
    exports = exports_of(args.export, held)
    for name, spec in exports.items():
        _check_export(name, spec, urls)
    directory = pick(args.state, "NINEP_STATE", held.node.state, "")
    state = State(state_dir(directory))
    state.lock()
    node = Node(held.limits)
    tree = NodeTree(node, state.qid_key, held.limits)
    try:
        tree.set_exports(exports)
    except Failure as e:
        if e.where in {export.dir for export in held.exports.values()}:
            e.code = REFUSED  # the file asked for it: starting again as it is would not help
        raise
    mountpoint = pick(args.mount, "NINEP_MOUNT", held.node.mount, "")
    plan = _plan(mountpoint, directory, held) if mountpoint else None
    stdio = keep_stdio() if set(urls) & set(STDIO) else None
    opened = open_all(urls, held_rules, output, stdio)
    if plan is not None:
        opened.texts.append(plan.directory)

    async def extra(*, task_status: trio.TaskStatus[object]) -> None:
        assert plan is not None
        await serve_mount(plan, node, tree.root, task_status=task_status)

    def reload() -> None:
        fresh = reload_log(args, path)
        if fresh is not None:
            tree.reload(exports_of(args.export, fresh))

    settle_in()
    try:
        trio.run(Service(node, tree.root, opened, held_rules, output, reload=reload, extra=extra if plan else None).run)
    except BaseExceptionGroup as group:
        from .mount import _plain

        if plan is None:
            raise
        raise _plain(group, plan) from None
    return OK


def exports_of(texts: list[str], held: Config) -> dict[str, HostSpec]:
    """What is exported, by name: the file's, then the options', which may not repeat a name."""
    found = {name: HostSpec(e.dir, e.ro, e.ownership) for name, e in held.exports.items()}
    for text in texts:
        name, equals, rest = text.partition("=")
        if not equals or (problem := export_name_problem(name)):
            raise UsageError(
                f"--export: {problem if equals else f'no = in {text[:60]!r}'}", hint="--export NAME=DIR or NAME=DIR:ro"
            )
        if name in found:
            raise UsageError(f"--export: {name} is exported twice", hint="another name")
        found[name] = host_spec(rest)
    return found


def _check_export(name: str, spec: HostSpec, urls: list[str]) -> None:
    if not os.path.isabs(spec.directory) and not os.path.isdir(spec.directory):
        raise Failure(f"export {name}: no such directory", where=spec.directory, errno_name="ENOENT")
    check_native(f"host:{spec.directory}:{spec.ownership}", urls)


def _plan(mountpoint: str, state: str, held: Config) -> Plan:
    plan = Plan(
        source="ninepd",
        directory=os.path.abspath(mountpoint),
        options=Options(),
        engine="dev",
        state=state,
        limits=held.limits,
        address=None,
    )
    _check(plan)
    return plan


class NodeTree:
    """The node's tree, whose exports may change while it is served.  `root` is what is attached to."""

    def __init__(self, node: Node, key: object, limits: Limits) -> None:
        assert callable(key)
        self._key = key
        self._limits = limits
        self._specs: dict[str, HostSpec] = {}
        self._exports = synth.Dir()
        self._exports.uid, self._exports.gid = os.geteuid(), os.getegid()
        top = kernel_tree(node)
        assert isinstance(top, synth.Dir)
        top.add_child("export", self._exports)
        self.root = Namespace(top)

    def set_exports(self, specs: dict[str, HostSpec]) -> None:
        """Export exactly these.  All of them are opened before any is changed; raises Failure."""
        made: dict[str, Dir] = {
            name: host_tree(spec, self._key, self._limits)
            for name, spec in specs.items()
            if self._specs.get(name) != spec
        }
        for name in [name for name, spec in self._specs.items() if specs.get(name) != spec]:
            self._exports.drop_child(name)
            del self.root.anames[name]
        for name, tree in made.items():
            self._exports.add_child(name, tree)
            self.root.anames[name] = tree
        self._specs = dict(specs)

    def reload(self, specs: dict[str, HostSpec]) -> None:
        """As set_exports; what cannot be exported leaves everything as it was, and is logged."""
        before = self._specs
        try:
            self.set_exports(specs)
        except Failure as e:
            log.error("exports stay as they were: %s: %s", e.what, e.where)
            return
        for name in specs.keys() - before.keys():
            log.info("exported: %s", name)
        for name in before.keys() - specs.keys():
            log.info("no longer exported: %s", name)
