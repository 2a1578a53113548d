"""Completion scripts for bash, zsh and fish, from the table of verbs.

Options and fixed words are in the script itself; nothing is run while a user types.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from .failure import OK
from .output import Output
from .table import Arg, Verb
from .verbs import BY_NAME, shown

TREES = ("ram:", "host:", "kernel:", "py:")
SCHEMES = ("9p://", "9p+unix://", "ssh://")


def completion(args: argparse.Namespace, output: Output) -> int:
    """`ninep completion SHELL`."""
    if output.is_json:
        output.json({"text": script(args.shell)})
    else:
        output.line(script(args.shell).rstrip("\n"))
    return OK


def script(shell: str) -> str:
    """The whole script of one shell, for ninep and ninepd."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


def options(verb: Verb) -> list[str]:
    return [name for arg in verb.all_args() if arg.is_option for name in arg.names]


def operand(verb: Verb) -> Arg | None:
    return next((arg for arg in verb.args if not arg.is_option), None)


def words_for(arg: Arg | None) -> tuple[str, ...]:
    """The fixed words that an argument may begin with."""
    if arg is None:
        return ()
    if arg.choices:
        return arg.choices
    return {"tree": TREES + SCHEMES, "url": SCHEMES}.get(arg.completes, ())


def takes_files(arg: Arg | None) -> str:
    """file, dir or nothing: what of the local file system fits."""
    if arg is None:
        return ""
    return {"file": "file", "dir": "dir", "tree": "file"}.get(arg.completes, "")


# -- bash


def _bash() -> str:
    lines = [
        "# bash completion of ninep and ninepd",
        '_ninep_words() { mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur"); }',
        '_ninep_files() { mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen "-$1" -- "$cur"); }',
        "_ninep() {",
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb=",
        "    COMPREPLY=()",
        "    if [[ ${COMP_WORDS[0]##*/} == ninepd ]]; then verb=ninepd; else verb=${COMP_WORDS[1]}; fi",
        "    if [[ $verb != ninepd && $COMP_CWORD -le 1 ]]; then",
        f"        _ninep_words '{' '.join(verb.name for verb in shown())} --help --version'",
        "        return",
        "    fi",
        "    case $verb:$prev in",
        *_bash_values(),
        "    esac",
        "    case $verb:$cur in",
        *(f"    {verb.name}:-*) _ninep_words '{' '.join(options(verb))}' ;;" for verb in _all()),
        *_bash_operands(),
        "    esac",
        "}",
        "complete -o nospace -o default -F _ninep ninep ninepd",
    ]
    return "\n".join(lines) + "\n"


def _all() -> list[Verb]:
    return [*shown(), BY_NAME["ninepd"]]


def _bash_values() -> Iterator[str]:
    """After an option that takes a value."""
    for verb in _all():
        for arg in verb.all_args():
            if not arg.is_option or not arg.takes_value:
                continue
            names = "|".join(f"{verb.name}:{name}" for name in arg.names)
            yield f"    {names}) {_bash_offer(arg)} return ;;"


def _bash_offer(arg: Arg) -> str:
    offer = f"_ninep_words '{' '.join(words_for(arg))}';"
    kind = takes_files(arg)
    return offer + (f" _ninep_files {'d' if kind == 'dir' else 'f'};" if kind else "")


def _bash_operands() -> Iterator[str]:
    for verb in _all():
        arg = operand(verb)
        if arg is not None:
            yield f"    {verb.name}:*) {_bash_offer(arg)} ;;"


# -- zsh


def _zsh() -> str:
    lines = ["#compdef ninep ninepd", "# zsh completion of ninep and ninepd", "_ninep() {", "  local verb=$words[2]"]
    lines += ["  if [[ ${words[1]:t} == ninepd ]]; then verb=ninepd", "  elif (( CURRENT == 2 )); then"]
    lines += ["    local -a verbs=("]
    lines += [f"      {_quoted(f'{verb.name}:{verb.summary}')}" for verb in shown()]
    lines += ["    )", "    _describe verb verbs; return", "  else shift words; (( CURRENT-- ))", "  fi"]
    lines += ["  case $verb in"]
    for verb in _all():
        specs = [_zsh_option(arg) for arg in verb.all_args() if arg.is_option]
        specs += [_zsh_operand(arg) for arg in verb.args if not arg.is_option]
        lines.append(f"    {verb.name}) _arguments -s -S {' '.join(specs)} ;;")
    lines += ["  esac", "}", 'if [[ $funcstack[1] == _ninep ]]; then _ninep "$@"; else compdef _ninep ninep ninepd; fi']
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")


def _zsh_action(arg: Arg) -> str:
    if words := words_for(arg):
        return f"({' '.join(word.replace(':', chr(92) + ':') for word in words)})"
    return {"file": "_files", "dir": "_files -/"}.get(takes_files(arg), "")


def _zsh_option(arg: Arg) -> str:
    names = arg.names[0] if len(arg.names) == 1 else "{" + ",".join(arg.names) + "}"
    star = "*" if arg.kind in ("list", "count") else ""
    value = f":{_zsh_text(arg.meta or arg.dest)}:{_zsh_action(arg)}" if arg.takes_value else ""
    tail = _quoted(f"[{_zsh_text(arg.help)}]{value}")
    return f"{_quoted(star) if star else ''}{names}{tail}"


def _zsh_operand(arg: Arg) -> str:
    star = "*" if arg.shape in ("*", "+", "...") else ":" if arg.shape == "?" else ""
    return _quoted(f"{star}:{_zsh_text(arg.meta)}:{_zsh_action(arg)}")


# -- fish


def _fish() -> str:
    lines = ["# fish completion of ninep and ninepd", "complete -c ninep -f", "complete -c ninepd -f"]
    for verb in shown():
        lines.append(f"complete -c ninep -n __fish_use_subcommand -a {verb.name} -d {_fish_quoted(verb.summary)}")
    for verb in _all():
        head = "complete -c ninepd"
        if verb.program == "ninep":
            head = f"complete -c ninep -n '__fish_seen_subcommand_from {verb.name}'"
        for arg in verb.all_args():
            if arg.is_option:
                lines.append(f"{head}{_fish_names(arg)}{_fish_value(arg)} -d {_fish_quoted(arg.help)}")
        arg_ = operand(verb)
        if words := words_for(arg_):
            lines.append(f"{head} -a '{' '.join(words)}'")
        if takes_files(arg_):
            lines.append(f"{head} -F")
    return "\n".join(lines) + "\n"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_names(arg: Arg) -> str:
    return "".join(f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in arg.names)


def _fish_value(arg: Arg) -> str:
    if not arg.takes_value:
        return ""
    if words := words_for(arg):
        return f" -x -a '{' '.join(words)}'"
    return " -r -F" if takes_files(arg) else " -x"
