"""Repositories whose newest operation lies."""

from __future__ import annotations

from typing import Any

from tests.helpers.hostile.cases import Case, repository
from tests.helpers.hostile.forge import MISSING, Forge, dumps

_AUTHOR = {"role": "save", "user": "", "host": "", "program": "", "pid": 1}
REFS = ("refs", "checkout", "into", "verify")


def _fields(story: str, **fields: Any) -> Case:
    def given(forge: Forge) -> None:
        id = forge.honest()
        forge.operation(**{"heads": {"main": id}, **fields})

    return repository(f"an operation {story}", given, refused=REFS)


def _branch(story: str, name: str) -> Case:
    def given(forge: Forge) -> None:
        id = forge.honest()
        forge.operation(heads={"main": id, name: id})

    return repository(f"a branch {story}", given, refused=REFS)


def _tag(story: str, name: str) -> Case:
    def given(forge: Forge) -> None:
        id = forge.honest()
        forge.operation(heads={"main": id}, tags={name: id})

    return repository(f"a tag {story}", given, refused=REFS)


def _unsealed(forge: Forge) -> None:
    forge.honest()
    forge.operation_path().write_bytes(dumps({"format": 1, "seq": 1, "heads": {}}))


def _many_branches(forge: Forge) -> None:
    forge.honest()
    forge.operation(heads={f"b{number:06}": MISSING for number in range(300_000)})


def _last_number(forge: Forge) -> None:
    id = forge.honest()
    forge.operation(at=10**12 - 1, heads={"main": id})


def _undone_forward(forge: Forge) -> None:
    id = forge.honest()
    for at in (1, 2, 3):
        forge.operation(at=at, heads={"main": id}, undoes=3)


def _odd_names(forge: Forge) -> None:
    forge.honest()
    for name in (
        "1.json",
        "000000000002.JSON",
        "-00000000003.json",
        "+1",
        "٣" * 12 + ".json",
        "\n",
    ):
        (forge.root / "ops" / name).write_bytes(b"{}")


def _condemned(story: str, condemned: object) -> Case:
    def given(forge: Forge) -> None:
        id = forge.honest()
        forge.operation(heads={"main": id}, condemned=condemned)

    return repository(f"an operation that condemns {story}", given, refused=("commit",))


_NOTHING: dict[str, Any] = {"digests": [], "checkpoints": [], "why": ""}

CASES = (
    _fields("that says it is another one", seq=7),
    _fields("of a newer format", format=2),
    _fields("with a number that is a string", seq="1"),
    _fields("with a number that is true", seq=True),
    _fields("from before 1970", time=-1),
    _fields("from after the year 9999", time=10**18),
    _fields("at half a microsecond", time=0.5),
    _fields("at no time", time=float("nan")),
    _fields("whose branches are a list", heads=[]),
    _fields("whose branches are null", heads=None),
    _fields("whose branch is not a digest", heads={"main": "../../../etc/passwd"}),
    _fields("whose branch is a digest in capitals", heads={"main": "A" * 64}),
    _fields("whose branch is a number", heads={"main": 5}),
    _fields("whose branch is a checkpoint that is not there", heads={"main": MISSING}),
    _fields("with a nonce of 10,000 characters", nonce="0" * 10_000),
    _fields("with a million characters of what was done", done="x" * 10**6),
    _fields("that undoes a negative number", undoes=-1),
    _fields("that undoes text", undoes="all"),
    _fields("that reverts itself", reverts=1),
    _fields("that reverts null", reverts=None),
    _fields("by nobody in particular", by=None),
    _fields("by a list", by=[]),
    _fields("by a process without a number", by={**_AUTHOR, "pid": "1"}),
    _fields("by a program of 10,000 characters", by={**_AUTHOR, "program": "x" * 10_000}),
    _fields("by a user who is a number", by={**_AUTHOR, "user": 0}),
    _fields("by a program in no role", by={"user": "", "host": "", "program": "", "pid": 1}),
    _fields("whose settings are a list", settings=[]),
    _branch("named ..", ".."),
    _branch("named ../../etc/passwd", "../../etc/passwd"),
    _branch("with an absolute name", "/etc/passwd"),
    _branch("with a NUL in its name", "main\0"),
    _branch("with a newline in its name", "main\n"),
    _branch("with an escape sequence in its name", "\x1b[2Jmain"),
    _branch("named by a million characters", "b" * 10**6),
    _branch("with no name", ""),
    _branch("named like an option", "--force"),
    _branch("named latest", "latest"),
    _branch("named main.lock", "main.lock"),
    _branch("named a//b", "a//b"),
    _branch("named with a letter that only looks like main", "mаin"),
    _branch("named best:loss", "best:loss"),
    _tag("named ..", ".."),
    _tag("named by a lone surrogate", "\ud800"),
    _tag("named like a revision", "main~1"),
    repository("an operation without its seal", _unsealed, refused=REFS),
    repository("an operation of 300,000 branches", _many_branches, refused=("checkout", "verify")),
    repository("files in ops that are no operations", _odd_names, refused=()),
    repository(
        "the last operation that its number allows", _last_number, refused=("commit", "branch")
    ),
    repository("operations that undo what comes after them", _undone_forward, refused=("undo",)),
    _condemned("a number", {"digests": 5}),
    _condemned("lists", {"digests": [[]]}),
    _condemned("nothing by name", {}),
    _condemned("without being an object", 7),
    _condemned("for an owner alone", {**_NOTHING, "owner": "me"}),
    _condemned("since an operation, for no owner", {**_NOTHING, "since": 1}),
    _condemned("for an owner without a name", {**_NOTHING, "owner": "", "since": 1}),
    _condemned("for an owner that is a list", {**_NOTHING, "owner": ["me"], "since": 1}),
    _condemned("for a million characters", {**_NOTHING, "owner": "x" * 10**6, "since": 1}),
    _condemned("since an operation to come", {**_NOTHING, "owner": "me", "since": 2}),
    _condemned("since before the first operation", {**_NOTHING, "owner": "me", "since": 0}),
    _condemned("since the end of all numbers", {**_NOTHING, "owner": "me", "since": 10**400}),
    _condemned("since true", {**_NOTHING, "owner": "me", "since": True}),
    _condemned("since text", {**_NOTHING, "owner": "me", "since": "1"}),
)
