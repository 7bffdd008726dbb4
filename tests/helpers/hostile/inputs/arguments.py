"""Arguments that no verb can work with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

import ckptstore
from ckptstore.errors import CkptStoreError
from tests.helpers.hostile.cases import Case, World, call

if TYPE_CHECKING:
    from collections.abc import Callable

HUGE = 1 << 340_000  # an integer of 100,000 digits: Python refuses to write it out


class _Unnamed:
    def __repr__(self) -> str:
        raise RuntimeError("no name")

    __str__ = __repr__


def _revision(story: str, revision: Any) -> Case:
    return call(
        f"the revision {story}", lambda world: world.repo.checkout(revision), error=CkptStoreError
    )


def _name(story: str, name: Any) -> Case:
    """Refused by everything that takes the name of a branch or a tag."""

    def action(world: World) -> object:
        repo = world.repo
        for verb in (repo.branch, repo.tag):
            try:
                verb(name)
            except ckptstore.InvalidInputError:
                continue
            raise AssertionError(f"{verb} took it")
        return repo.commit({"w": torch.zeros(2)}, branch=name)

    return call(f"a branch or tag named {story}", action)


def _gone(story: str, name: Any) -> Case:
    def action(world: World) -> object:
        try:
            world.repo.delete_tag(name)
        except CkptStoreError:
            return world.repo.delete_branch(name)
        raise AssertionError("it was deleted")

    return call(f"a name to delete that is {story}", action, error=CkptStoreError)


def _commit(story: str, make: Callable[[], dict[str, Any]]) -> Case:
    """A commit of an honest state with one hostile argument; nothing may be committed."""

    def action(world: World) -> object:
        before = len(world.repo.log())
        try:
            return world.repo.commit({"w": torch.zeros(2)}, **world.given)
        finally:
            assert len(ckptstore.open(world.store).log()) == before

    return call(f"a commit with {story}", action, given=lambda world: make())


def _selection(story: str, patterns: Any) -> Case:
    def action(world: World) -> object:
        try:
            world.repo.checkout(exclude=patterns, include="nothing")
        except ckptstore.InvalidInputError:
            return world.repo.checkout(include=patterns)
        raise AssertionError("it was taken")

    return call(f"a selection of {story}", action)


def _url(story: str, url: Any) -> Case:
    def action(world: World) -> object:
        try:
            ckptstore.open(url(world) if callable(url) else url)
        except CkptStoreError:
            return ckptstore.init(url(world) if callable(url) else url)
        raise AssertionError("it was opened")

    return call(f"a repository at {story}", action, error=CkptStoreError)


def _nested_meta(levels: int) -> Any:
    meta: Any = 1
    for _ in range(levels):
        meta = {"a": meta}
    return meta


def _laughing_meta() -> Any:
    meta: Any = 1
    for _ in range(48):
        meta = [meta, meta]
    return {"a": meta}


def _meta_inside_itself() -> Any:
    meta: dict[str, Any] = {}
    meta["a"] = meta
    return meta


CASES = (
    _revision("of no characters", ""),
    _revision("of a million characters", "m" * 10**6),
    _revision("None", None),
    _revision("5", 5),
    _revision("of 100,000 digits", HUGE),
    _revision("in bytes", b"main"),
    _revision("in a list", ["main"]),
    _revision("that refuses to say its name", _Unnamed()),
    _revision("with a NUL", "main\0"),
    _revision("that is a path", "../../etc/passwd"),
    _revision("main~~~~", "main" + "~" * 900),
    _revision("main~10^20", "main~100000000000000000000"),
    _revision("main~999999999", "main~999999999"),
    _revision("main@step=10^30", "main@step=1" + "0" * 30),
    _revision("main@step=one", "main@step=one"),
    _revision("main@best:", "main@best:"),
    _revision("best:loss:sideways", "best:loss:sideways"),
    _revision("main@{yesterday}", "main@{yesterday}"),
    _revision("of 6 digits that nothing begins with", "abcdef"),
    _revision("of 65 digits", "0" * 65),
    _revision("in Arabic digits", "main~١"),
    _revision("with a newline behind it", "main\n"),
    _name("..", ".."),
    _name("../x", "../x"),
    _name("/etc/passwd", "/etc/passwd"),
    _name("nothing", ""),
    _name("None", None),
    _name("by a number of 100,000 digits", HUGE),
    _name("by an object that refuses to say its name", _Unnamed()),
    _name("by a list", ["main"]),
    _name("by bytes", b"x"),
    _name("by a million characters", "b" * 10**6),
    _name("with a NUL", "a\0b"),
    _name("with a newline", "a\n"),
    _name("with an escape sequence", "\x1b[2J"),
    _name("with a lone surrogate", "a\udc80"),
    _name("with letters that look like others", "mаin"),
    _name("-rf", "-rf"),
    _name("a:b", "a:b"),
    _name("a~1", "a~1"),
    _name("a@b", "a@b"),
    _name("HEAD", "HEAD"),
    _name("a.lock", "a.lock"),
    _gone("not there", "nothing"),
    _gone("a list", ["main"]),
    _gone("a number of 100,000 digits", HUGE),
    _gone("None", None),
    _gone("a million characters long", "x" * 10**6),
    _gone("an object that refuses to say its name", _Unnamed()),
    _commit("a step of 1.5", lambda: {"step": 1.5}),
    _commit("a step of 2^63", lambda: {"step": 2**63}),
    _commit("a step of 100,000 digits", lambda: {"step": HUGE}),
    _commit("a step that is text", lambda: {"step": "1"}),
    _commit("a step that refuses to say its name", lambda: {"step": _Unnamed()}),
    _commit("metrics in a list", lambda: {"metrics": [1]}),
    _commit("metrics that are a number", lambda: {"metrics": 0.5}),
    _commit("metrics that are text", lambda: {"metrics": "loss=1"}),
    _commit("a metric that is text", lambda: {"metrics": {"loss": "0.5"}}),
    _commit("a metric that is None", lambda: {"metrics": {"loss": None}}),
    _commit("a metric that is complex", lambda: {"metrics": {"loss": 1j}}),
    _commit("a metric of two numbers", lambda: {"metrics": {"loss": torch.zeros(2)}}),
    _commit("a metric of two numpy numbers", lambda: {"metrics": {"loss": numpy.zeros(2)}}),
    _commit(
        "a metric on the meta device", lambda: {"metrics": {"loss": torch.zeros(1, device="meta")}}
    ),
    _commit("a metric of 100,000 digits", lambda: {"metrics": {"loss": HUGE}}),
    _commit("a metric named by a number", lambda: {"metrics": {5: 1}}),
    _commit("a metric of a million characters", lambda: {"metrics": {"x" * 10**6: 1}}),
    _commit("a metric without a name", lambda: {"metrics": {"": 1}}),
    _commit("a metric with a NUL", lambda: {"metrics": {"a\0": 1}}),
    _commit("a metric named by a lone surrogate", lambda: {"metrics": {"\udc80": 1}}),
    _commit("500,000 metrics", lambda: {"metrics": {f"m{number}": 1 for number in range(500_000)}}),
    _commit("a message in bytes", lambda: {"message": b"x"}),
    _commit("a message of a million characters", lambda: {"message": "x" * 10**6}),
    _commit("no message", lambda: {"message": None}),
    _commit("meta that is a list", lambda: {"meta": [1]}),
    _commit("meta inside itself", lambda: {"meta": _meta_inside_itself()}),
    _commit("meta 100,000 levels deep", lambda: {"meta": _nested_meta(100_000)}),
    _commit("2^48 values of meta", lambda: {"meta": _laughing_meta()}),
    _commit("5,000,000 values of meta", lambda: {"meta": {"a": [0] * 5_000_000}}),
    _commit("17 MB of meta", lambda: {"meta": {"a": "x" * (17 << 20)}}),
    _commit("a set in meta", lambda: {"meta": {"a": {1}}}),
    _commit("a tuple in meta", lambda: {"meta": {"a": (1,)}}),
    _commit("a tensor in meta", lambda: {"meta": {"a": torch.zeros(2)}}),
    _commit("a numpy number in meta", lambda: {"meta": {"a": numpy.float32(1)}}),
    _commit("NaN in meta", lambda: {"meta": {"a": float("nan")}}),
    _commit("an integer of 100,000 digits in meta", lambda: {"meta": {"a": HUGE}}),
    _commit("a key of meta that is a number", lambda: {"meta": {5: 1}}),
    _commit("a key of meta that refuses to say its name", lambda: {"meta": {_Unnamed(): 1}}),
    _commit("a lone surrogate for a key of meta", lambda: {"meta": {"\udc80": 1}}),
    _selection("5", 5),
    _selection("nothing", ""),
    _selection("a slash", "/"),
    _selection("bytes", b"w"),
    _selection("numbers", [1, 2]),
    _selection("None in a list", [None]),
    _selection("a pattern of a million characters", "*" * 10**6),
    _selection("stars and letters that take 2^1000 steps to fit", "*a" * 1000),
    _selection("**/ a thousand times", "**/" * 1000 + "nothing"),
    _selection("an open bracket", "[" * 2000),
    _selection("a range that runs backwards", "[z-a]"),
    _selection("a regular expression that takes 2^n steps", "(a+)+$"),
    _selection(
        "10,000 patterns that fit nothing", [f"nothing{number}*" for number in range(10_000)]
    ),
    _url("None", None),
    _url("5", 5),
    _url("a list", ["store"]),
    _url("bytes", b"store"),
    _url("an empty path", ""),
    _url("a path with a NUL", "store\0"),
    _url("a path of a million characters", "x" * 10**6),
    _url("a path of a lone surrogate", "\ud800"),
    _url("ftp://host/prefix", "ftp://host/prefix"),
    _url("s3:// with credentials", "s3://user:secret@bucket/prefix"),
    _url("s3:// with an option for a secret", "s3://bucket/prefix?secret_access_key=secret"),
    _url("s3:// and no bucket", "s3:///prefix"),
    _url("s3:// with a range that never ends", "s3://[bucket/prefix"),
    _url("az:// with ..", "az://box/../prefix"),
    _url("javascript://alert", "javascript://alert(1)"),
    _url("file://[", "file://["),
    _url("file:// with a NUL", "file:///x%00"),
    _url("file:// of another machine", "file://elsewhere/store"),
    _url("file:// and nothing", "file://"),
    _url("/dev/null", "/dev/null"),
    _url("/dev/zero/x", "/dev/zero/x"),
    _url("/proc/self", "/proc/self"),
    _url("a file", lambda world: world.outside / "canary"),
    _url("below a file", lambda world: world.outside / "canary" / "store"),
    _url("a folder of other things", lambda world: world.outside),
    *(
        call(
            f"a new repository with chunks of {story}",
            lambda world, size=size: ckptstore.init(world.folder / "new", chunk_size=size),
        )
        for story, size in (
            ("no bytes", 0),
            ("one byte", 1),
            ("-1 bytes", -1),
            ("65536.5 bytes", 65536.5),
            ("NaN bytes", float("nan")),
            ("text", "8MiB"),
            ("None", None),
            ("2^60 bytes", 2**60),
            ("a number of 100,000 digits of bytes", HUGE),
        )
    ),
    call("a log of -1 checkpoints", lambda world: world.repo.log(limit=-1)),
    call("a log of 1.5 checkpoints", lambda world: world.repo.log(limit=1.5)),
    call("a log of text", lambda world: world.repo.log(limit="1")),
    call("a log of a list", lambda world: world.repo.log(["main"])),
    call("a device that is none", lambda world: world.repo.checkout(device="quantum:0")),
    call("a device that is not here", lambda world: world.repo.checkout(device="cuda:77")),
    call("a device that is an object", lambda world: world.repo.checkout(device=object())),
    call("a codec for int", lambda world: ckptstore.register_codec(int, str, int)),
    call("a codec for a name", lambda world: ckptstore.register_codec("os.system", str, str)),
    call(
        "a codec for torch.Size",
        lambda world: ckptstore.register_codec(torch.Size, list, torch.Size),
    ),
    call("a branch at a list", lambda world: world.repo.branch("b", at=["main"])),
    call("a tag at None", lambda world: world.repo.tag("t", at=None)),
    call(
        "the name of a file of a million characters",
        lambda world: ckptstore.formats.read_file("x" * 10**6 + ".pt"),
        given=lambda world: __import__("ckptstore.formats"),
        error=CkptStoreError,
    ),
    call(
        "a checkpoint to write to a folder",
        lambda world: ckptstore.formats.write_file({}, world.given),
        given=lambda world: _folder_named_like_a_file(world),
    ),
    call(
        "a checkpoint to write where a file is",
        lambda world: ckptstore.formats.write_file({}, world.given),
        given=lambda world: _file_that_is_there(world),
    ),
)


def _folder_named_like_a_file(world: World) -> Path:
    path = world.outside / "x.pt"
    path.mkdir()
    return path


def _file_that_is_there(world: World) -> Path:
    path = world.outside / "x.safetensors"
    path.write_bytes(b"")
    return path
