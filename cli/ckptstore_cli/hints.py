"""Hints: command-line options in place of the keyword arguments that library messages name."""

from __future__ import annotations

import re
import shlex

_OPTIONS = {
    "overwrite=True": "--force",
    "force=True": "--force",
    "Pull first;": "Use pull first;",
    "drop_values=True": "--drop-values",
    "retry=True": "--retry",
    "(include)": "(--include)",
    "(shard_bytes)": "(--shard-size)",
    "(bytes_max=": "(--unpack-max=",
    "Choose one of them": "Choose one of them (--tensor)",
    "use ckptstore.init": "use 'ckptstore init'",
    "to which reset_branch moves": "to which 'ckptstore branch --reset' moves",
    "use plan_import with ": "ckptstore import ",
    "Open it instead.": "Use it with -r, or choose another folder.",
    "register_codec for its type": "commit it from Python with a codec for its type",
}
_PART = re.compile(r"\bPass part='([^']*)'")
_UNDO = re.compile(r"\bundo\(([0-9]+)\)")
_EXISTS = re.compile(r"^(Branch|Tag) ('?)([^']+)\2 already exists, .*or delete it first")
_OTHER_NAME = re.compile(r"(?P<way>under another name), branches=\{'[^']*': 'NAME'\}")
_NOTHING_MATCHES = re.compile(r"^Nothing in checkpoint (\w+) matches .*$")

_QUOTED = re.compile(r"is quoted: (.+)\.$")
_BEST_EXPIRED = re.compile(
    r"^'(?:([^'@~ ]+)@)?best:([^'@~ ]+)' cannot be used\. .* that is stored is \w+\.$"
)


def with_options(message: str) -> str:
    """The message of the library with options in place of keyword arguments."""
    for argument, option in _OPTIONS.items():
        message = message.replace(argument, option)
    message = _PART.sub(lambda found: f"Pass --part {shlex.quote(found[1])}", message)
    message = _UNDO.sub(r"'ckptstore undo \1'", message)
    message = _OTHER_NAME.sub(r"\g<way> with --as NAME", message)
    message = _EXISTS.sub(_deleting, message)
    message = _BEST_EXPIRED.sub(_listing, message)
    message = _QUOTED.sub(_for_shell, message)
    return _NOTHING_MATCHES.sub(r"\g<0> List paths with: ckptstore ls \1", message)


def _deleting(found: re.Match[str]) -> str:
    """The message of a name in use, with the command that deletes it."""
    return f"{found[0]}: ckptstore {found[1].lower()} -d {found[3]}"


def _for_shell(found: re.Match[str]) -> str:
    """The message about a name to quote, with it as a shell passes it on."""
    return f"is quoted, and once more for the shell: {shlex.quote(found[1])}"


def _listing(found: re.Match[str]) -> str:
    """The message of an expired best checkpoint, with the command that lists stored ones."""
    branch = f" {found[1]}" if found[1] else ""
    return f"{found[0]} List more with: ckptstore best {found[2]}{branch}"
