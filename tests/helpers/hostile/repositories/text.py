"""Repositories with bad or excessive JSON, tried in each kind of document."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

from tests.helpers.hostile.cases import Case, repository
from tests.helpers.hostile.forge import Forge, digest_of

if TYPE_CHECKING:
    from collections.abc import Callable


class _Runs:
    """Its pickle runs a command when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('canary', 'w').close()",)


TEXTS: dict[str, Callable[[], bytes]] = {
    "100,000 brackets deep": lambda: b'{"structure":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "900 brackets deep": lambda: b'{"structure":' + b"[" * 900 + b"]" * 900 + b"}",
    "10,000,000 values long": lambda: b'{"structure":[' + b"0," * 10_000_000 + b"0]}",
    "900,000 empty objects long": lambda: b'{"structure":[' + b"{}," * 450_000 + b"0]}",
    "900,000 numbers long, the last of them wrong": lambda: (
        b'{"structure":[' + b"0.5," * 900_000 + b"NaN]}"
    ),
    "30 MB of one string long, and cut": lambda: b'{"structure":"' + b"x" * (30 << 20),
    "an integer of 100,000 digits": lambda: b'{"structure":' + b"7" * 100_000 + b"}",
    "NaN": lambda: b'{"structure":NaN}',
    "1e999": lambda: b'{"structure":1e999}',
    "a key that stands twice": lambda: b'{"structure":1,"structure":2}',
    "not UTF-8": lambda: b'{"structure":"\xc3\x28"}',
    "UTF-16": lambda: '{"structure":1}'.encode("utf-16"),
    "followed by another document": lambda: b'{"structure":1}{"structure":2}',
    "a pickle that runs code": lambda: pickle.dumps(_Runs()),
    "a torch.save of old that runs code": lambda: (
        pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(_Runs())
    ),
}


def _structure(story: str, make: Callable[[], bytes]) -> Case:
    return repository(
        f"a structure that is {story}",
        lambda forge: forge.honest(structure_bytes=make()),
        verbs=("open", "show", "checkout", "into", "verify"),
    )


def _page(story: str, make: Callable[[], bytes]) -> Case:
    return repository(
        f"a page that is {story}",
        lambda forge: forge.honest(page=make()),
        verbs=("open", "show", "checkout", "into", "verify"),
    )


def _manifest(story: str, make: Callable[[], bytes]) -> Case:
    def given(forge: Forge) -> None:
        forge.honest()
        forge.operation(heads={"main": forge.manifest_bytes(make())})

    return repository(
        f"a manifest that is {story}",
        given,
        refused=("resolve", "log", "checkout", "verify"),
        verbs=("open", "resolve", "log", "checkout", "verify"),
    )


def _operation(story: str, make: Callable[[], bytes]) -> Case:
    """Sealed as far as text like this can be."""

    def given(forge: Forge) -> None:
        forge.honest()
        inner = make()
        seal = b'{"blake3":"' + digest_of(inner).encode() + b'","operation":' + inner + b"}"
        forge.operation_path().write_bytes(seal)

    return repository(
        f"an operation that is {story}",
        given,
        refused=("refs", "checkout", "verify", "commit"),
        verbs=("open", "refs", "checkout", "verify", "commit"),
    )


CASES = tuple(
    make_case(story, make)
    for make_case in (_structure, _page, _manifest, _operation)
    for story, make in TEXTS.items()
)
