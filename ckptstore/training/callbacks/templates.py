"""Templates: texts with fields for the numbers of a training, and the file names of Keras.

A repository has no file for each checkpoint. The name of one becomes a tag (docs/adr/0057).
"""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING

from ckptstore.documents.names import REF_NAME_LENGTH_MAX, check_ref_name
from ckptstore.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FOLDER = ".ckptstore"  # the repository of a folder, where the command line finds it too
ENDINGS = (".h5", ".hdf5", ".keras", ".ckpt", ".pt", ".pth", ".safetensors")  # of model files

_ILLEGAL = re.compile(r"[^A-Za-z0-9._+-]")
_FIRST = re.compile(r"[A-Za-z0-9_]")


class Template:
    """A text with fields such as {epoch} or {val_loss:.3f}, to be filled with numbers.

    Args:
        text: The text.
        what: What it is, for messages.
        known: The names of the whole numbers that there will be. Any other is that of a metric.
    """

    def __init__(self, text: str, *, what: str, known: Sequence[str]) -> None:
        self._known = known
        try:
            self._fields = [
                name for _, name, _, _ in string.Formatter().parse(text) if name is not None
            ]
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"The {what} {shown(text)} is no template: {error}.") from error
        self._text, self._what = text, what

    @property
    def has_fields(self) -> bool:
        """False for a constant text."""
        return bool(self._fields)

    def sample(self) -> str:
        """The text filled with ones, to see before a training whether that gives what it should.

        Raises:
            InvalidInputError: No number fits.
        """
        return self.fill(_Ones(dict.fromkeys(self._known, 1)))

    def fill(self, numbers: Mapping[str, object]) -> str:
        """The text with these numbers.

        Raises:
            InvalidInputError: There is no number of a name, or its field cannot show it.
        """
        try:
            return self._text.format_map(numbers)
        except (LookupError, ArithmeticError, ValueError, AttributeError, TypeError) as error:
            raise InvalidInputError(
                f"The {self._what} {shown(self._text)} cannot be filled ({error!r}). "
                f"Available: {', '.join(numbers)}."
            ) from error


class _Ones(dict[str, object]):
    """Numbers by name, among them every metric there may be; metrics are floats."""

    def __missing__(self, name: str) -> object:
        if name == "batch":
            raise KeyError(name)
        return 1.0


def split_path(path: str) -> tuple[str, str]:
    """The repository of a path, and the template of a file name in it; "" if it names no file.

    A path names a file if it has a field or the ending of a model file. The repository is then in
    the folder before the first field. The query of a URL, its options, belongs to the repository.
    """
    place, mark, query = path.partition("?") if "://" in path else (path, "", "")
    parts = place.split("/")
    name_at = next((at for at, part in enumerate(parts) if "{" in part or "}" in part), None)
    if name_at is None:
        if not place.lower().endswith(ENDINGS):
            return path, ""
        name_at = len(parts) - 1
    folder = "/".join([*parts[:name_at], FOLDER])
    return f"{folder}{mark}{query}", "/".join(parts[name_at:])


def tag_name(text: str) -> str:
    """The tag for a file name: each character that no tag can have is a _ in it.

    Raises:
        InvalidInputError: The name is empty.
    """
    parts = [_ILLEGAL.sub("_", part) for part in text.split("/") if part]
    parts = [part if _FIRST.match(part) else f"_{part}" for part in parts]
    name = re.sub(r"\.{2,}", ".", "/".join(parts))[:REF_NAME_LENGTH_MAX].rstrip("/.")
    if name.endswith(".lock") or name in ("latest", "best", "HEAD"):
        name = f"{name[: REF_NAME_LENGTH_MAX - 1]}_"
    return check_ref_name(name, kind="tag")
