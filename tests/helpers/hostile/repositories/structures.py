"""Repositories whose structure lies."""

from __future__ import annotations

import json
from typing import Any

from tests.helpers.hostile.cases import Case, repository
from tests.helpers.hostile.forge import Forge

W = ["w", {"tensor": "w"}]


def _node(story: str, node: Any, *, says: str = "") -> Case:
    """A structure that holds the honest array and one hostile node beside it."""
    return repository(
        f"a structure {story}",
        lambda forge: forge.honest(structure={"dict": [W, ["x", node]]}),
        says=says,
    )


def _root(story: str, root: Any) -> Case:
    return repository(f"a structure {story}", lambda forge: forge.honest(structure=root))


def _type(story: str, name: object, value: Any, *, says: str = "") -> Case:
    """Only building the state refuses these: verify knows no codecs."""
    return repository(
        f"a structure that holds {story}",
        lambda forge: forge.honest(structure={"dict": [W, ["x", {"type": name, "value": value}]]}),
        refused=("checkout", "show"),
        says=says,
    )


def _into_optimizer(story: str, root: Any) -> Case:
    """A state that an optimizer's load_state_dict does not take."""
    return repository(
        f"a structure that {story}",
        lambda forge: forge.honest(structure=root),
        refused=("optimizer",),
    )


def _nested(levels: int) -> Any:
    return json.loads("[" * levels + "]" * levels)


def _typed(levels: int) -> Any:
    node: Any = 1
    for _ in range(levels):
        node = {"type": "torch.Size", "value": node}
    return node


def _odd_metadata(forge: Forge) -> None:
    """An OrderedDict whose _metadata is not what torch hangs there."""
    forge.honest(structure={"ordered_dict": [W], "metadata": [1, 2]})


SLOT: dict[str, Any] = {"dict": [["w", {"tensor": "w"}]]}

CASES = (
    _node("with a node of no tag", {}),
    _node("with an unknown tag", {"pickle": "gASVAAAA"}),
    _node("with a tag beside its own", {"tuple": [], "exec": "print(1)"}),
    _node("with two tags", {"tuple": [], "bytes": ""}),
    _node("with a companion that is another tag's", {"tuple": [], "metadata": 1}),
    _node("that names an array which no page lists", {"tensor": "v"}),
    _node("that ties an array to nowhere", {"tensor": "w2", "tied": "nowhere"}),
    _node("that ties an array to a list", {"tensor": "w2", "tied": ["w"]}),
    _node("whose array is a list", {"tensor": ["w"]}),
    _node("whose array is null", {"tensor": None}),
    _node("whose array's path has a million characters", {"tensor": "w" * 10**6}),
    _node("whose array's path has a NUL", {"tensor": "w\0"}),
    _node("whose array's path is absolute", {"tensor": "/etc/passwd"}),
    _node("whose tuple is an object", {"tuple": {}}),
    _node("whose dict is an object", {"dict": {"a": 1}}),
    _node("whose dict is a list of numbers", {"dict": [1, 2]}),
    _node("whose dict has pairs of three", {"dict": [["a", 1, 2]]}),
    _node("whose dict has a key twice", {"dict": [["a", 1], ["a", 2]]}),
    _node("whose dict has a key twice in disguise", {"dict": [["a", 1], [{"str": "61"}, 2]]}),
    _node("whose dict has an integer twice in disguise", {"dict": [[1, 1], [{"int": "1"}, 2]]}),
    _node("whose key is a list", {"dict": [[["a"], 1]]}),
    _node("whose key is 1.5", {"dict": [[1.5, 1]]}),
    _node("whose key is true", {"dict": [[True, 1]]}),
    _node("whose key is null", {"dict": [[None, 1]]}),
    _node("whose key is an array", {"dict": [[{"tensor": "w"}, 1]]}),
    _node("whose key is an integer of 16,000 digits", {"dict": [[{"int": "f" * 16_000}, 1]]}),
    _node("with a float of 15 digits", {"float": "7ff000000000000"}),
    _node("with a float that is a number", {"float": 1}),
    _node("with a float that is text", {"float": "not a number....."}),
    _node("with a complex number that is an object", {"complex": {}}),
    _node("with a complex number that is null", {"complex": None}),
    _node("with a complex number of one part", {"complex": ["7ff0000000000000"]}),
    _node("with an integer of 100,000 digits", {"int": "f" * 100_000}),
    _node("with an integer that is text", {"int": "twelve"}),
    _node("with an integer that is a list", {"int": ["1"] * 10}),
    _node("with an integer of 65 bits in the open", 2**64),
    _node("with an integer of 4,000 digits in the open", 10**4000),
    _node("with bytes that are not base64", {"bytes": "%%%%"}),
    _node("with bytes that are a number", {"bytes": 10**9}),
    _node("with a bytearray of a negative length", {"bytearray": -1}),
    _node("with a string that is not hexadecimal", {"str": "xyz"}),
    _node("with a string that is not UTF-8", {"str": "ff"}),
    _node("101 levels deep", _nested(102)),
    _node("with 500 values in one another", _typed(300)),
    _node("with NaN in the open", float("nan")),
    _node("with Infinity in the open", float("-inf")),
    _node("with a typed node without a value", {"type": "torch.Size"}),
    _node("with a type that is a list", {"type": ["torch.Size"], "value": 1}),
    _root("that is one array which no page lists", {"tensor": "array"}),
    _type("builtins.eval", "builtins.eval", "open('canary', 'w')", says="builtins.eval"),
    _type("builtins.exec", "builtins.exec", "import os; os.system('touch canary')"),
    _type("os.system", "os.system", "touch canary", says="os.system"),
    _type("posix.system", "posix.system", "touch canary"),
    _type("subprocess.Popen", "subprocess.Popen", ["touch", "canary"]),
    _type(
        "pickle.loads", "pickle.loads", {"bytes": "Y29zCnN5c3RlbQooUyd0b3VjaCBjYW5hcnknCnRSLg=="}
    ),
    _type("torch.load", "torch.load", "canary"),
    _type("ckptstore.state.codecs.register_codec", "ckptstore.state.codecs.register_codec", 1),
    _type("a type with no name", "", 1),
    _type("a type of a million characters", "t" * 10**6, 1),
    _type("the torch dtype nn", "torch.dtype", "nn"),
    _type("the torch dtype _dynamo, which importing would take seconds", "torch.dtype", "_dynamo"),
    _type("the torch dtype load", "torch.dtype", "load"),
    _type("the torch dtype 5", "torch.dtype", 5),
    _type("a torch dtype that is a list", "torch.dtype", ["float32"]),
    _type("a torch.Size of text", "torch.Size", "abc"),
    _type("a torch.Size of floats", "torch.Size", [1.5]),
    _type("a torch device of no kind", "torch.device", "quantum:1"),
    _type("a torch device numbered 10^30", "torch.device", "cuda:1" + "0" * 30),
    _type("a torch device that is a dict", "torch.device", {"dict": []}),
    _type("a numpy scalar of objects", "numpy.scalar", ["O", "00" * 8]),
    _type("a numpy scalar of 9 GB of nothing", "numpy.scalar", ["V9999999999", "00"]),
    _type("a numpy scalar of fields", "numpy.scalar", ["f8,O", "00" * 16]),
    _type("a numpy scalar that is a string", "numpy.scalar", ["S8", "00" * 8]),
    _type("a numpy scalar of too many bytes", "numpy.scalar", ["float32", "00" * 8]),
    _type("a numpy scalar of too few bytes", "numpy.scalar", ["float64", "00" * 4]),
    _type("a numpy scalar of no dtype", "numpy.scalar", [None, "00" * 8]),
    _type("a numpy scalar that is a number", "numpy.scalar", 5),
    repository("a structure whose _metadata is a list", _odd_metadata, refused=("optimizer",)),
    _into_optimizer("an optimizer does not take: a list", [1, {"tensor": "w"}]),
    _into_optimizer("an optimizer does not take: no groups", SLOT),
    _into_optimizer(
        "an optimizer does not take: groups that are numbers",
        {"dict": [W, ["state", 5], ["param_groups", [1, 2]]]},
    ),
    _into_optimizer(
        "an optimizer does not take: groups without parameters",
        {"dict": [W, ["state", {"dict": []}], ["param_groups", [{"dict": []}]]]},
    ),
)
