"""A folder of .safetensors files, into which Hugging Face divides large models, and its index.

The index names the file of each tensor. Older models are divided into .bin files of torch.save with
an index of the same form; these are only read. A folder with other files, such as config.json, is
one of `hugging_face`.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import json_document
from ckptstore.arrays.file import OpenFile
from ckptstore.errors import InvalidInputError, NotFoundError, shown
from ckptstore.formats import safetensors
from ckptstore.formats.names import nested
from ckptstore.formats.torch import file as torch_file

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from ckptstore.arrays.lazy import LazyArray
    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.flatten import Flat

FILES_MAX = 1_000  # each is open until its tensors have been read
TENSORS_MAX = 250_000  # of all files; a structure names no more
METADATA_LENGTH_MAX = 16 << 20
_SUFFIX, _TORCH_SUFFIX, _INDEX = ".safetensors", ".bin", ".index.json"
_READERS: Mapping[str, Callable[..., tuple[Mapping[str, LazyArray], Mapping[str, str]]]] = {
    _SUFFIX: safetensors.read_tensors,
    _TORCH_SUFFIX: torch_file.read_tensors,
}
METADATA: Mapping[str, str] = {"format": "pt"}  # some loaders refuse a file without it
_NUMBERED = re.compile(r"(.+)-(\d{5,})-of-(\d{5,})\.safetensors")
_OURS = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors|model\.safetensors\.index\.json")


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return the tensors of all files by name, nested where the names are paths, and metadata.

    The third value lists the names of the other files in the folder.
    """
    names = sorted(os.listdir(path))
    has_safetensors = any(name.endswith((_SUFFIX, _SUFFIX + _INDEX)) for name in names)
    suffix = _SUFFIX if has_safetensors else _TORCH_SUFFIX
    indices = [name for name in names if name.endswith(suffix + _INDEX)]
    places = read_index(path / indices[0], suffix) if indices else None
    files = sorted(set(places.values())) if places is not None else _files(path, names)
    if len(files) > FILES_MAX:
        raise InvalidInputError(
            f"{path} has {len(files)} files of tensors; at most {FILES_MAX} are read."
        )
    tensors: dict[str, LazyArray] = {}
    homes: dict[str, str] = {}
    metadata: dict[str, str] = {}
    left = METADATA_LENGTH_MAX
    for file in files:
        own_tensors, own_metadata = _READERS[suffix](inside(path, file), follow=False)
        check_places(path / file, own_tensors, homes, places)
        tensors |= own_tensors
        homes |= dict.fromkeys(own_tensors, file)
        metadata |= own_metadata
        left -= sum(len(name) + len(text) for name, text in own_metadata.items())
        if len(tensors) > TENSORS_MAX or left < 0:
            raise InvalidInputError(
                f"{path} has more than {TENSORS_MAX} tensors, or {METADATA_LENGTH_MAX} characters "
                "of metadata, which no checkpoint holds. Commit its files one by one."
            )
    if places is not None:
        check_complete(path / indices[0], tensors, places)
    left_out = [name for name in names if name not in {*files, *indices}]
    return nested(tensors), {"safetensors": metadata} if metadata else {}, left_out


def read_index(path: Path, suffix: str) -> dict[str, str]:
    """The file of each tensor."""
    file = OpenFile(inside(path.parent, path.name), follow=False)
    try:
        places = dict(json_document.parse(json_document.read(file))["weight_map"].items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            f"{path} is not an index of {suffix} files: JSON with a weight_map is expected "
            f"({str(error)[:100]})."
        ) from error
    if not places:
        raise InvalidInputError(f"{path} names no tensor.")
    for name, place in places.items():
        if not isinstance(place, str) or not is_plain(place, suffix):
            raise InvalidInputError(
                f"{path} states that {shown(name)} is in {shown(place)}, which is not the name of "
                f"a {suffix} file beside it."
            )
    return places


def is_plain(name: str, suffix: str) -> bool:
    """Whether a name can only lead to a file in the same folder."""
    return name.endswith(suffix) and not set(name) & {"/", "\\", "\0"}


def inside(folder: Path, name: str) -> Path:
    """The path of a file in a folder. A link may not lead out of it, but for the hub's cache."""
    path = folder / name
    if not os.path.lexists(path):
        raise NotFoundError(f"{folder} lacks {shown(name)}, which its index names.")
    if not path.is_symlink():
        return path
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # a broken link, or one to itself
        target = None
    root = folder.resolve()
    # The cache of huggingface_hub has the files of a model beside the folders of links to them.
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if target is None or target.parent not in (root, blobs):
        raise InvalidInputError(
            f"{path} is a link out of its folder, and is not followed. Copy the folder with the "
            "files that its links lead to (cp -rL)."
        )
    return target


def _files(path: Path, names: list[str]) -> list[str]:
    """The files of a folder without an index. If they are numbered, all must be there."""
    files = [name for name in names if name.endswith(_SUFFIX)]
    check_numbers(path, files)
    return files


def check_numbers(path: Path, files: Collection[str]) -> None:
    """Refuse numbered files if there are fewer than the number of one states."""
    for name in files:
        if (match := _NUMBERED.fullmatch(name)) and int(match[3]) > len(files):
            raise InvalidInputError(
                f"{path} has {len(files)} files, and {name} is one of {int(match[3])}. Get the "
                "others."
            )


def check_places(
    path: Path,
    names: Iterable[str],
    homes: Mapping[str, str],
    places: Mapping[str, str] | None,
) -> None:
    """Refuse a tensor that is not where the index states or, without an index, is in two files."""
    for name in names:
        if places is not None and places.get(name) != path.name:
            where = f"in {shown(places[name])}" if name in places else "nowhere"
            raise InvalidInputError(
                f"{path} has {shown(name)}, which is {where} by the index. Write the index again, "
                "or commit the file alone."
            )
        if name in homes:
            raise InvalidInputError(
                f"{path} has {shown(name)}, and so has {shown(homes[name])}. Commit one of the "
                "files by its name."
            )


def check_complete(path: Path, names: Collection[str], places: Mapping[str, str]) -> None:
    """Refuse an index that names a tensor which is not in its file."""
    if missing := places.keys() - set(names):
        name = min(missing)
        raise InvalidInputError(
            f"{path} states that {shown(name)} is in {shown(places[name])}, and it is not. Is the "
            "file another one?"
        )


def is_exported(path: Path) -> bool:
    """Return whether everything in a folder is what `write` makes."""
    with os.scandir(path) as entries:
        return all(
            _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            for entry in entries
        )


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool, shard_bytes: int) -> None:
    """Write every array under its path, to files with at most `shard_bytes` bytes of arrays."""
    safetensors.check(flat, drop_values=drop_values)
    path.mkdir()
    write_shards(flat.arrays, path, shard_bytes=shard_bytes)


def write_shards(
    tensors: Mapping[str, ArraySource],
    path: Path,
    *,
    shard_bytes: int,
    stem: str = "model",
    metadata: Mapping[str, str] = METADATA,
) -> None:
    """Write tensors to one new file in a folder, or to several and their index.

    Args:
        tensors: The tensors by name.
        path: The folder.
        shard_bytes: The most bytes of tensors in each file.
        stem: The beginning of the files' names.
        metadata: The texts in the header of each file.
    """
    shards = list(_shards(tensors, shard_bytes)) or [{}]
    if len(shards) == 1:
        safetensors.write_tensors(shards[0], path / f"{stem}{_SUFFIX}", metadata=metadata)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}{_SUFFIX}"
        safetensors.write_tensors(shard, path / name, metadata=metadata)
        places |= dict.fromkeys(shard, name)
    total = sum(source.nbytes for source in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (path / f"{stem}{_SUFFIX}{_INDEX}").write_text(text, encoding="utf-8")


def _shards(
    arrays: Mapping[str, ArraySource], shard_bytes: int
) -> Iterator[dict[str, ArraySource]]:
    """The arrays of each file, divided as huggingface_hub does it.

    A larger array gets a file of its own, and the file before it goes on after it.
    """
    shard: dict[str, ArraySource] = {}
    size = 0
    for name, source in arrays.items():
        if source.nbytes > shard_bytes:
            yield {name: source}
            continue
        if size + source.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = source
        size += source.nbytes
    if shard:
        yield shard
