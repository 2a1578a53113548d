"""The verb serve: one tree, one server."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from ninep.config import Config
from ninep.file import Dir
from ninep.namespace.namespace import Namespace
from ninep.node import Node

from . import logs
from .failure import OK, Failure, UsageError
from .listeners import STDIO, Opened, Rules, check_native, keep_stdio, open_all, rules, urls_of
from .output import Output
from .places import state_dir
from .service import Service
from .settings import read_config, wrong_of
from .state import State
from .steady import settle_in
from .trees import tree_of

MISTAKES_LOGGED_MAX = 20  # of one configuration file at one SIGHUP


def serve(args: argparse.Namespace, output: Output) -> int:
    """`ninep serve TREE --listen URL...`: returns when it has been ended."""
    held_config, path = read_config(args.config)
    logs.start_logging(held_config.log.level, quiet=args.quiet, verbose=args.verbose)
    held = rules(args, held_config.listen)
    urls = urls_of(args, held_config.listen)
    if args.stdio:
        urls = ["stdio", *args.listen]
    if not urls and not os.environ.get("LISTEN_FDS"):
        raise UsageError("nowhere to listen", hint="--listen 9p://127.0.0.1:5640 or --listen 9p+unix:///path")
    check_native(args.tree, urls)
    stdio = keep_stdio() if set(urls) & set(STDIO) else None
    node = Node(held_config.limits)
    root = tree_of(args.tree, node, lambda: lasting_key(args.state or held_config.node.state, output), node.limits)
    opened = open_all(urls, held, output, stdio)
    run_service(node, Namespace(root), opened, held, output, reload=lambda: reload_log(args, path))
    return OK


def run_service(
    node: Node, root: Dir, opened: Opened, held: Rules, output: Output, *, reload: Callable[[], object]
) -> None:
    """Serve until it ends."""
    import trio

    service = Service(node, root, opened, held, output, reload=reload)
    settle_in()
    trio.run(service.run)


def lasting_key(directory: str, output: Output) -> bytes:
    """The key of qids from the state directory.  One that cannot be had is replaced for this run, and said."""
    try:
        state = State(state_dir(directory))
        try:
            return state.qid_key()
        finally:
            state.close()
    except Failure as e:
        if directory:
            raise
        output.note(f"{e.what}: files will not keep their identity over a restart; {e.hint} mends it")
        return os.urandom(32)


def reload_log(args: argparse.Namespace, path: str) -> Config | None:
    """SIGHUP: read the configuration again; a broken one keeps the old one, and is told."""
    import logging

    where = args.config or path or None
    try:
        held, _ = read_config(where)
    except Failure as e:
        for told in wrong_of(where)[:MISTAKES_LOGGED_MAX] or [f"{e.what}: {e.where}"]:
            logging.getLogger(__name__).error("configuration not read again, the old one stays: %s", told)
        return None
    logs.set_level(held.log.level, quiet=args.quiet, verbose=args.verbose)
    logging.getLogger(__name__).info("configuration read again")
    return held
