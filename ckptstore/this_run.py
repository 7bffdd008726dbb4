"""This run: the host, program, arguments and git revision of this process, as meta of a commit.

Arguments are recorded as given, except for values that look like secrets: those of names such as
`hf_token`, `api_key=` or `"password":`, credentials in URLs, and text in the form of well-known
tokens. That is a safety net and no promise (docs/adr/0042).
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore.errors import printable
from ckptstore.regular_file import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ARGUMENTS_MAX = 100
ARGUMENT_LENGTH_MAX = 1000
GIT_FILE_BYTES_MAX = 4 << 20  # of packed-refs; 60,000 branches
HIDDEN = "***"
_SECRET_WORDS = frozenset(
    {"apikey", "auth", "credential", "credentials", "key", "pass", "passphrase", "passwd"}
    | {"password", "pat", "pwd", "secret", "signature", "token"}
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_ASSIGNED = re.compile(  # a=b, a: b, "a": "b c"
    r"""(?<![\w.+-])([\w.+-]+)(["']?\s*[=:]\s*)("[^"]*"?|'[^']*'?|[^\s"',&}]+)"""
)
_SECRET = re.compile(
    r"(?<=://)[^/@\s]+(?=@)"  # user and password of a URL
    r"|\b(?:hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abps]-|AKIA|eyJ)[\w.-]{12,}"
)
_REVISION = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def run_meta(folder: str | Path | None = None) -> dict[str, Any]:
    """Describe this run for `Repository.commit(meta=)`. Managers do this by themselves.

    Args:
        folder: Where to look for a git repository, here or above; the folder of the program when
            None.

    Returns:
        "host", "program", "argv" (without values that look like secrets), and, in a git repository,
        "git": the revision that is checked out. Uncommitted changes are not detected.

    Example:
        >>> import ckptstore
        >>> sorted(ckptstore.run_meta("/"))
        ['argv', 'host', 'program']
    """
    revision = git_revision(_program_folder() if folder is None else Path(folder))
    return {
        "host": printable(os.uname().nodename),
        "program": program(),
        "argv": without_secrets(sys.argv[1:]),
        **({"git": revision} if revision else {}),
    }


def program() -> str:
    """Return the name of the running script, or of the package that `python -m` runs."""
    folder, name = os.path.split(sys.argv[0] if sys.argv else "")
    if name == "__main__.py":
        name = os.path.basename(folder)
    return "python" if name in ("", "-", "-c") else printable(name)


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """Return arguments as text, with *** in place of values that look like secrets."""
    return [*_hidden(arguments[:ARGUMENTS_MAX])]


def git_revision(folder: Path) -> str | None:
    """Return the git revision that is checked out in a folder or above it; None without git.

    It is read from git's files, as running git could take long or start a hook.
    """
    try:
        git = next(place for place in _upward(folder) if place.exists())
        if git.is_file():  # of a worktree or a submodule
            git = git.parent / _read(git).removeprefix("gitdir:").strip()
        head = _read(git / "HEAD").strip()
        name = head.removeprefix("ref:").strip()
        found = head if name == head else _ref(git, name)
    except (OSError, ValueError, StopIteration):
        return None
    return found if found and _REVISION.fullmatch(found) else None


def _hidden(arguments: Sequence[str]) -> Iterator[str]:
    is_value = False
    for argument in arguments:
        text = printable(argument[:ARGUMENT_LENGTH_MAX])[:ARGUMENT_LENGTH_MAX]
        if is_value and not text.startswith("-"):
            yield HIDDEN
        else:
            text = _ASSIGNED.sub(lambda found: _assigned(*found.groups()), text)
            yield _SECRET.sub(HIDDEN, text)
        is_value = text.startswith("-") and "=" not in text and _is_secret(text)


def _assigned(name: str, sign: str, value: str) -> str:
    return f"{name}{sign}{HIDDEN if _is_secret(name) else value}"


def _is_secret(name: str) -> bool:
    """Return True if a name ends in a word such as token, in any of its usual spellings."""
    words = [word.lower() for word in _WORD.findall(name)]
    return bool(words) and words[-1] in _SECRET_WORDS


def _program_folder() -> Path:
    """The folder of the running script; the working folder in an interactive session."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(file).absolute().parent if file else Path()


def _upward(folder: Path) -> Iterator[Path]:
    folder = folder.absolute()
    for place in (folder, *folder.parents):
        yield place / ".git"


def _ref(git: Path, name: str) -> str | None:
    """The revision of a ref, from its file or from the list of packed ones."""
    common = git / "commondir"
    shared = git / _read(common).strip() if common.exists() else git
    for place in (git, shared):
        if (place / name).is_file():
            return _read(place / name).strip()
    lines = (line.split() for line in _read(shared / "packed-refs").splitlines())
    return next((line[0] for line in lines if line[1:] == [name]), None)


def _read(path: Path) -> str:
    descriptor, _ = open_regular(path, follow=True)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(GIT_FILE_BYTES_MAX).decode()
