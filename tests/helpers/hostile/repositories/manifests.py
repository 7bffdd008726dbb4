"""Repositories whose manifest lies."""

from __future__ import annotations

import json
from typing import Any

from tests.helpers.hostile.cases import Case, repository
from tests.helpers.hostile.forge import MISSING, Forge, digest_of, dumps

SHOWING = ("resolve", "log", "checkout", "into", "verify")


def _fields(story: str, **fields: Any) -> Case:
    return repository(f"a manifest {story}", lambda forge: forge.honest(**fields), refused=SHOWING)


def _text(story: str, old: bytes, new: bytes) -> Case:
    """A manifest whose JSON is edited by hand."""

    def given(forge: Forge) -> None:
        id = forge.honest()
        text = forge.manifest_path(id).read_bytes()
        assert text.count(old) == 1
        forge.operation(heads={"main": forge.manifest_bytes(text.replace(old, new))})

    return repository(f"a manifest {story}", given, refused=SHOWING)


def _page_ref(story: str, **ref: Any) -> Case:
    return repository(f"a manifest {story}", lambda forge: forge.honest(ref=ref))


def _same_page_twice(forge: Forge) -> None:
    forge.honest()
    entry = {
        "first": "w",
        "digest": forge.object(dumps({"arrays": [forge.entry()]})),
        "arrays": 1,
        "bytes": 8,
    }
    forge.operation(heads={"main": forge.checkpoint(pages=[entry, entry])})


def _pages_out_of_order(forge: Forge) -> None:
    forge.honest()
    refs = [
        {
            "first": path,
            "digest": forge.object(dumps({"arrays": [forge.entry(path=path)]})),
            "arrays": 1,
            "bytes": 8,
        }
        for path in ("w", "a")
    ]
    forge.operation(heads={"main": forge.checkpoint(pages=refs)})


def _hundred_thousand_pages(forge: Forge) -> None:
    forge.honest()
    refs = [
        {"first": f"{number}", "digest": digest_of(b"%d" % number), "arrays": 1, "bytes": 8}
        for number in range(100_000)
    ]
    forge.operation(heads={"main": forge.checkpoint(pages=refs)})


def _cycle(forge: Forge) -> None:
    """As far as hashes allow one: the parent's file holds the child's bytes."""
    forge.marker()
    parent = digest_of(b"a parent that is its own grandchild")
    child = forge.checkpoint(parents=[parent])
    forge.manifest_path(parent).write_bytes(forge.manifest_path(child).read_bytes())
    forge.operation(heads={"main": child})


def _long_history(forge: Forge) -> None:
    """2,000 generations, the first of which has a parent that is not there."""
    forge.marker()
    id = MISSING
    for step in range(2_000):
        id = forge.checkpoint(parents=[id], step=step)
    forge.operation(heads={"main": id})


def _wide_history(forge: Forge) -> None:
    """Generations of 16 with all 16 before as parents: 16^60 ways through 960 checkpoints."""
    forge.marker()
    parents: list[str] = []
    for generation in range(60):
        parents = [
            forge.checkpoint(parents=parents, step=generation * 16 + number) for number in range(16)
        ]
    forge.operation(heads={"main": forge.checkpoint(parents=[*parents[:15], MISSING])})


def _confused(story: str, **swap: str) -> Case:
    """A digest of one kind of document where another kind is expected."""

    def given(forge: Forge) -> None:
        id = forge.honest()
        document = json.loads(forge.manifest_path(id).read_bytes())
        digests = {
            "page": document["pages"][0]["digest"],
            "structure": document["structure"],
            "chunk": forge.object(bytes(8)),
        }
        if "page" in swap:
            document["pages"][0]["digest"] = digests[swap["page"]]
        if "structure" in swap:
            document["structure"] = digests[swap["structure"]]
        forge.operation(heads={"main": forge.manifest(**document)})

    return repository(f"a manifest {story}", given)


CASES = (
    _fields("of a newer format", format=3),
    _fields("whose pages are an object", pages={}),
    _fields("whose page is a string", pages=["w"]),
    _fields("whose page is null", pages=[None]),
    _fields("whose parent is no digest", parents=["HEAD"]),
    _fields("whose parents are one string", parents=MISSING),
    _fields("with 17 parents", parents=[f"{number:064x}" for number in range(17)]),
    _fields("whose branch is null", branch=None),
    _fields("whose branch is a list", branch=["main"]),
    _fields("whose branch has no name", branch=""),
    _fields("whose branch is a path", branch="../../etc/passwd"),
    _fields("whose branch steers a terminal", branch="\x1b]0;owned\x07"),
    _fields("whose branch has a million characters", branch="x" * 10**6),
    _fields("with a step of 1.5", step=1.5),
    _fields("with a step that is text", step="1"),
    _fields("with a step of 2^64", step=2**64),
    _fields("made before 1970", created=-1),
    _fields("made after the year 9999", created=10**30),
    _fields("made at a fraction of a microsecond", created=1.5),
    _fields("that stored a negative number of bytes", new_bytes=-1),
    _fields("whose metrics are a list", metrics=[]),
    _fields("whose metric is a list", metrics={"loss": [1]}),
    _fields("whose metric is true", metrics={"loss": True}),
    _fields("whose metric is NaN without quotes", metrics={"loss": float("nan")}),
    _fields("whose metric is Infinity without quotes", metrics={"loss": float("inf")}),
    _fields("whose metric is null", metrics={"loss": None}),
    _fields("whose metric is an integer of 4,000 digits", metrics={"loss": 10**4000}),
    _fields("whose metric's name has a million characters", metrics={"x" * 10**6: 1}),
    _fields("whose metric's name has a NUL", metrics={"loss\0": 1}),
    _fields("whose metric's name steers a terminal", metrics={"\x1b]0;owned\x07": 1}),
    _fields("whose metric has no name", metrics={"": 1}),
    _fields("with a million characters of message", message="x" * 10**6),
    _fields("whose message is a list", message=["x"]),
    _fields("whose meta is a list", meta=[]),
    _fields("whose meta is 400 levels deep", meta={"a": json.loads("[" * 400 + "]" * 400)}),
    _fields("whose meta holds an integer of 4,000 digits", meta={"a": 10**4000}),
    _text("that says its step twice", b'"step":1', b'"step":1,"step":2'),
    _text("with an integer of 100,000 digits", b'"step":1', b'"step":' + b"1" * 100_000),
    _text("with a step of 1e999", b'"step":1', b'"step":1e999'),
    _text("whose message is not ASCII", b'"message":""', '"message":"é"'.encode()),
    _text("whose message is not UTF-8", b'"message":""', b'"message":"\xff"'),
    _text("whose structure is no digest", b'"structure":"', b'"structure":"../'),
    _text("without a structure", b'"structure":', b'"Structure":'),
    _page_ref("that says its page has 2 arrays", arrays=2),
    _page_ref("that says its page has -1 arrays", arrays=-1),
    _page_ref("that says its page has 9 bytes", bytes=9),
    _page_ref("that says its page has 2^80 bytes", bytes=2**80),
    _page_ref("that says its page begins elsewhere", first="v"),
    _page_ref("that says its page begins with a million characters", first="w" * 10**6),
    _page_ref("whose page is not there", digest=MISSING),
    _page_ref("whose page is no digest", digest="objects/../../x"),
    repository("a manifest that lists a page twice", _same_page_twice),
    repository("a manifest whose pages are not in order", _pages_out_of_order),
    repository("a manifest of 100,000 pages that are not there", _hundred_thousand_pages),
    repository("a checkpoint that is its own grandparent", _cycle, refused=("log", "verify")),
    repository(
        "a history that ends in a parent that is not there", _long_history, refused=("verify",)
    ),
    repository("a history with 16^60 ways through it", _wide_history, refused=("verify",)),
    _confused("whose page is its structure", page="structure"),
    _confused("whose page is a chunk", page="chunk"),
    _confused("whose structure is its page", structure="page"),
    _confused("whose structure is a chunk", structure="chunk"),
)
