"""Whole folders of Hugging Face: a model, a checkpoint of Trainer, accelerate or PEFT.

The state has the contents of the files that can be opened, each under a key of its own: "model" for
the weights, "optimizer", "scheduler", "adapter_model" and so on. The key "files" has the folder
itself: bytes for a file that is kept as it is, and for one that was opened the key of its contents.
From both the folder is written again: .safetensors and kept files with the same bytes, files of
torch.save with the same contents.

A file that could run code, such as training_args.bin, is kept as bytes, and never opened. A folder
of nothing but weights is read as these weights. See docs/adr/0073.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.file import OpenFile
from ckptstore.arrays.strided import FileArray
from ckptstore.commit.flatten import flatten
from ckptstore.documents.names import escape_key
from ckptstore.errors import InvalidInputError, NotFoundError, shown
from ckptstore.formats import first_bytes, safetensors, sharded, trainer_state, zip_directory
from ckptstore.formats.names import nested
from ckptstore.formats.torch import file as torch_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from ckptstore.arrays.lazy import LazyArray
    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.flatten import Flat

    _Names = tuple[str, ...]  # of a file, after those of the folders that lead to it

FILES = "files"  # the key of the folder in the state
PART, HEADER, NAMES, ARRAYS = "part", "header", "names", "arrays"  # the keys of an opened file
FILES_MAX = 1_000  # each is open until it has been read
DEPTH_MAX = 8
NAME_BYTES_MAX = 255
SHARD_BYTES = 50_000_000_000  # of weights that fit no header any more; as Hugging Face's own limit

_SAFETENSORS, _TORCH, _INDEX = ".safetensors", ".bin", ".index.json"
_WEIGHTS = "model"
_MARKS = re.compile(
    r".*\.safetensors|.*\.(safetensors|bin)\.index\.json|pytorch_model.*\.bin|adapter_model\.bin"
    r"|trainer_state\.json|optimizer(_\d+)?\.(pt|bin)|random_states_\d+\.pkl"
)
_KEPT = re.compile(
    r"rng_state(_\d+)?\.pth|random_states_\d+\.pkl|training_args\.bin"
    r"|.*\.distcp|\.metadata"  # of torch.distributed.checkpoint: several archives in one file
)
_ELSEWHERE = re.compile(r"checkpoint-\d+|\.git|\.cache|__pycache__|runs|wandb")
_MODEL = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors(\.index\.json)?")
_SHARD = re.compile(r"-\d{5,}-of-\d{5,}$")
_ZIP = b"PK\x03\x04"


def is_folder(names: list[str]) -> bool:
    """Return whether the names in a folder are those of one that is read here."""
    return any(map(_MARKS.fullmatch, names))


def read(path: Path) -> tuple[Any, ...]:
    """Return the state in a folder, its metadata, and the names of what is not part of it."""
    names = os.listdir(path)
    indices = [name for name in names if name.endswith(_INDEX)]
    for suffix in (_SAFETENSORS, _TORCH):
        if len(indices) < 2 and all(name.endswith((suffix, suffix + _INDEX)) for name in names):
            weights, meta, others = sharded.read(path)
            if not others and (indices or suffix == _SAFETENSORS):
                return weights, meta
    reading = _Reading()
    tree = reading.folder(path, "", 0)
    parts = reading.parts
    first = {name: parts[name] for name in (_WEIGHTS,) if name in parts}
    return first | parts | {FILES: tree}, {}, reading.left_out


def facts(path: Path, state: Any) -> dict[str, Any]:  # noqa: ARG001 - of other formats
    """Return the step, the epoch and the metrics of a folder, as far as Trainer wrote them."""
    if not os.path.lexists(path / trainer_state.NAME):
        return {}
    return trainer_state.read(sharded.inside(path, trainer_state.NAME))


def holds_folder(state: object) -> bool:
    """Return whether a state is one that `read` returned, of which a folder can be written."""
    tree = state.get(FILES) if isinstance(state, dict) else None
    return isinstance(tree, dict) and bool(tree) and all(type(name) is str for name in tree)


@dataclass(slots=True)
class _Reading:
    """A folder as it is read.

    Attributes:
        parts: The contents of the files that were opened.
        left_out: The paths of folders that are not part of it.
        count: The number of files so far.
    """

    parts: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    count: int = 0

    def folder(self, path: Path, prefix: str, depth: int) -> dict[str, Any]:
        """The tree of a folder, whose path begins with a prefix."""
        if depth > DEPTH_MAX:
            raise InvalidInputError(f"{path} is more than {DEPTH_MAX} folders deep.")
        names, tree = [], {}
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                _check_name(entry.name, path)
                if not entry.is_dir(follow_symlinks=False):
                    names.append(entry.name)
                elif _ELSEWHERE.fullmatch(entry.name):
                    self.left_out.append(f"{prefix}{entry.name}/")
                else:
                    inside = f"{prefix}{entry.name}/"
                    tree[entry.name] = self.folder(path / entry.name, inside, depth + 1)
        self.count += len(names)
        if self.count > FILES_MAX:
            raise InvalidInputError(
                f"{path} and what is around it have more than {FILES_MAX} files, which no "
                "checkpoint has. Commit a folder with less in it, or its files one by one."
            )
        return tree | self.files(path, prefix, names)

    def files(self, path: Path, prefix: str, names: list[str]) -> dict[str, Any]:
        """What stands for each file of one folder."""
        tree: dict[str, Any] = {}
        for suffix in (_SAFETENSORS, _TORCH):
            for index in (name for name in names if name.endswith(suffix + _INDEX)):
                places = sharded.read_index(path / index, suffix)
                if _is_there(path, names, index, places):
                    key = self.key(prefix, index.removesuffix(suffix + _INDEX), names)
                    tree |= self.shards(path, key, places, suffix)
        others = [name for name in names if name.endswith(_SAFETENSORS) and name not in tree]
        sharded.check_numbers(path, others)
        for stem in dict.fromkeys(map(_stem, others)):
            own = [name for name in others if _stem(name) == stem]
            tree |= self.shards(
                path, self.key(prefix, stem, names, own[0]), None, _SAFETENSORS, own
            )
        for name in names:
            if name not in tree:
                file = sharded.inside(path, name)
                opened = None if _KEPT.fullmatch(name) else _opened(file)
                if opened is None:
                    tree[name] = _kept(file)
                    continue
                key = self.key(prefix, name.rpartition(".")[0] or name, names, name)
                self.parts[key], arrays = opened
                tree[name] = {PART: key, ARRAYS: arrays}
        return {name: tree[name] for name in names}

    def key(self, prefix: str, stem: str, names: list[str], name: str = "") -> str:
        """A free key for the contents of a file, or of several with the same stem."""
        if stem == "pytorch_model" and not any(map(_MODEL.fullmatch, names)):
            stem = _WEIGHTS
        begin = prefix.replace("/", ".")
        free = begin + stem
        if free in self.parts or free == FILES:
            free = begin + (name or stem)
        while free in self.parts or free == FILES:
            free += "_"
        self.parts[free] = {}
        return free

    def shards(
        self,
        path: Path,
        key: str,
        places: Mapping[str, str] | None,
        suffix: str,
        names: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Open the files of one set of tensors; what stands for each.

        places: the file of each tensor, if there is an index; otherwise names are those of files.
        """
        tensors: dict[str, Any] = {}
        homes: dict[str, str] = {}
        tree: dict[str, Any] = {}
        for name in names if places is None else sorted(set(places.values())):
            file = sharded.inside(path, name)
            own: Mapping[str, LazyArray]
            if suffix == _SAFETENSORS:
                own, _, header = safetensors.read_all(file, follow=False)
                tree[name] = {PART: key, HEADER: header}
            else:
                own, _ = torch_file.read_tensors(file, follow=False)
                tree[name] = {PART: key, NAMES: list(own)}
            sharded.check_places(path / name, own, homes, places)
            homes |= dict.fromkeys(own, name)
            tensors |= own
        if places is not None:
            sharded.check_complete(path, tensors, places)
        if len(tensors) > sharded.TENSORS_MAX:
            raise InvalidInputError(
                f"{path} has more than {sharded.TENSORS_MAX} tensors, which no checkpoint holds."
            )
        self.parts[key] = nested(tensors) if suffix == _SAFETENSORS else tensors
        return tree


def _stem(name: str) -> str:
    """The name of a file without its suffix and its number."""
    return _SHARD.sub("", name.removesuffix(_SAFETENSORS))


def _is_there(path: Path, names: Collection[str], index: str, places: Mapping[str, str]) -> bool:
    """Whether the files of an index are in its folder; error if some are missing.

    Those of another format need not be there, as where only one was downloaded.
    """
    files = set(places.values())
    missing = files - set(names)
    if missing == files and any(name.endswith((_SAFETENSORS, _TORCH)) for name in names):
        return False
    if missing:
        raise NotFoundError(f"{path} lacks {shown(min(missing))}, which {index} names.")
    return True


def _opened(path: Path) -> tuple[Any, int] | None:
    """What is in a file of torch.save, and how many arrays; None for a file to keep as it is.

    Raises:
        InvalidInputError: The file is damaged, or a pointer to it is in its place.
    """
    file = OpenFile(path, follow=False)
    head = file.read(0, min(file.nbytes, first_bytes.HEAD_BYTES))
    kind = first_bytes.identify(head, size=file.nbytes)
    if kind == first_bytes.POINTER:
        raise InvalidInputError(f"{path} is {kind.what}. {kind.way_out}.")
    if kind != first_bytes.TORCH:
        return None
    from ckptstore.formats.torch.load import load

    try:
        state = load(file)
        return state, len(flatten(state).arrays)
    except InvalidInputError:  # it could run code, or no checkpoint can hold what is in it
        if head.startswith(_ZIP):
            _check_zip(file)
        return None


def _check_zip(file: OpenFile) -> None:
    """Raise InvalidInputError for a zip archive that ends early."""
    try:
        zip_directory.records(file.read, file.nbytes)
    except zip_directory.TooManyRecordsError:
        return
    except ValueError as error:
        raise InvalidInputError(f"{file.path} is damaged: {error}.") from error


def _kept(path: Path) -> FileArray:
    """The bytes of a file."""
    file = OpenFile(path, follow=False)
    return FileArray(file, kind=safetensors.KIND, dtype="uint8", shape=(file.nbytes,), offset=0)


def _check_name(name: str, where: object) -> str:
    """Return a name that a file in a folder can have, or raise InvalidInputError."""
    if (
        type(name) is not str
        or name in ("", ".", "..")
        or set(name) & set("/\\\0")
        or len(name.encode(errors="replace")) > NAME_BYTES_MAX
        or not name.isprintable()  # surrogates too
    ):
        raise InvalidInputError(
            f"{shown(name)} in {shown(str(where))} cannot name a file in a checkpoint. Rename it."
        )
    return name


def is_exported(path: Path, state: Mapping[str, Any]) -> bool:
    """Return whether all in a folder has a name that `write` gives to something in a state."""
    known = {names for names, _ in _entries(state[FILES])}
    known |= {names[:end] for names in known for end in range(len(names))}
    return all(
        file.relative_to(path).parts in known
        and not file.is_symlink()
        and (file.is_file() or file.is_dir())
        for file in path.rglob("*")
    )


def write(state: Mapping[str, Any], path: Path, *, shard_bytes: int | None = None) -> None:
    """Write a state as the folder that it was read from, but for files whose contents it lacks.

    Args:
        state: What `read` returned, or a checkout of it.
        path: The folder, which is made.
        shard_bytes: The most bytes of weights in each file; None for the files as they were.
    """
    entries = dict(_entries(state[FILES]))
    headers: dict[str, dict[_Names, bytes]] = {}
    for names, entry in entries.items():
        if isinstance(entry, dict) and HEADER in entry:
            headers.setdefault(entry[PART], {})[names] = _bytes_of(entry[HEADER], names)
    path.mkdir()
    for names, entry in entries.items():
        folder = names if entry == {} else names[:-1]
        path.joinpath(*folder).mkdir(parents=True, exist_ok=True)
    replaced: set[_Names] = set()  # indices of shards that are not as they were
    for key, files in headers.items():
        if key in state:
            replaced |= _write_weights(flatten(state[key]), files, path, shard_bytes)
    for names, entry in entries.items():
        place = path.joinpath(*names)
        if not isinstance(entry, dict):
            if names not in replaced:
                with place.open("xb") as file:
                    file.writelines(_source(entry, names).pieces())
        elif HEADER not in entry and entry.get(PART) in state:
            _write_torch(state[entry[PART]], entry, place)


def _write_weights(
    flat: Flat[ArraySource],
    files: Mapping[_Names, bytes],
    path: Path,
    shard_bytes: int | None,
) -> set[_Names]:
    """Write the .safetensors files of one set of tensors; the index that no longer holds, if any.

    They get the headers they had, if these are still those of the tensors.
    """
    headers = {names: safetensors.Header.parse(data) for names, data in files.items()}
    tensors = {
        names: {
            name: flat.arrays[path]
            for name in header.forms
            for path in (name, escape_key(name))
            if path in flat.arrays
        }
        for names, header in headers.items()
        if header is not None
    }
    fits = all(
        header is not None and header.fits(tensors[names]) for names, header in headers.items()
    )
    if fits and shard_bytes is None and sum(map(len, tensors.values())) == len(flat.arrays):
        for names, header in headers.items():
            assert header is not None, "it fits"
            header.write(tensors[names], path.joinpath(*names))
        return set()
    if not flat.arrays:
        return set()
    safetensors.check(flat, drop_values=True)
    *folder, name = next(iter(files))
    stem = _stem(name)
    first = next(iter(headers.values()))
    sharded.write_shards(
        flat.arrays,
        path.joinpath(*folder),
        shard_bytes=shard_bytes or SHARD_BYTES,
        stem=stem,
        metadata=sharded.METADATA if first is None else first.metadata,
    )
    return {(*folder, stem + _SAFETENSORS + _INDEX)}


def _write_torch(part: Any, entry: Mapping[str, Any], place: Path) -> None:
    """Write a file of torch.save, unless its arrays were left out."""
    from ckptstore.formats.torch import save

    if NAMES in entry and isinstance(part, dict):
        part = {name: part[name] for name in entry[NAMES] if name in part}
    flat = flatten(part)
    if flat.arrays or not (entry.get(ARRAYS) or entry.get(NAMES)):
        save.write(flat, place)


def _entries(tree: Any, above: _Names = ()) -> Iterator[tuple[_Names, Any]]:
    """The path of each file and of each empty folder in a tree, with what stands for it."""
    if len(above) > DEPTH_MAX:
        raise InvalidInputError(f"{'/'.join(above)} is more than {DEPTH_MAX} folders deep.")
    for name, entry in tree.items():
        names = (*above, _check_name(name, "/".join(above) or FILES))
        if isinstance(entry, dict) and entry and not isinstance(entry.get(PART), str):
            yield from _entries(entry, names)
        else:
            yield names, entry


def _bytes_of(array: Any, names: _Names) -> bytes:
    """The bytes of a header."""
    source = _source(array, names)
    if source.nbytes > safetensors.HEADER_BYTES_MAX + 8:
        return b""
    return b"".join(map(bytes, source.pieces()))


def _source(array: Any, names: _Names) -> ArraySource:
    """The bytes of a file, to be read."""
    sources = list(flatten([array]).arrays.values())
    if len(sources) != 1 or sources[0].dtype != "uint8" or len(sources[0].shape) != 1:
        raise InvalidInputError(
            f"{FILES}/{'/'.join(names)} is not the contents of a file: an array of bytes is "
            "expected."
        )
    return sources[0]
