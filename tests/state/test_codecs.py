"""Codecs: registered types survive a round trip; undecodable values are damage."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore.arrays import codecs
from ckptstore.errors import CorruptError, InvalidInputError
from ckptstore.state import codecs as registry
from ckptstore.state.tree import ARRAY
from ckptstore.testing.strategies import NUMPY_DTYPES
from tests.helpers.equality import difference


class Odd:
    """A type whose codec fails."""


@pytest.mark.parametrize(
    "value",
    [
        torch.Size([2, 3]),
        torch.Size([]),
        torch.float8_e4m3fn,
        torch.complex32,
        Counter({80: 1}),
        torch.device("cpu"),
        torch.device("cuda", 3),
        np.float64(-0.0),
        np.bool_(True),
        Counter(),
    ],
    ids=repr,
)
def test_a_type_with_a_form_of_its_own_comes_back(value: Any) -> None:
    found = codecs.decode(*codecs.encode(value) or ("", None))
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=str)
def test_numpy_scalars_keep_their_bits(dtype: np.dtype[Any]) -> None:
    """A NaN's payload and the sign of zero too."""
    for byte in (0x00, 0x01) if dtype == np.bool_ else (0x00, 0x80, 0xFF, 0x7F, 0x55):
        (value,) = np.frombuffer(bytes([byte]) * dtype.itemsize, dtype=dtype)
        name, form = codecs.encode(value) or ("", None)
        found: Any = codecs.decode(name, form)
        assert type(found) is type(value)
        assert found.tobytes() == value.tobytes()


def test_a_scalar_of_another_machines_byte_order_keeps_its_value() -> None:
    (value,) = np.array([1.5], dtype=">f8")
    assert codecs.decode(*codecs.encode(value) or ("", None)) == 1.5


@pytest.mark.parametrize(
    "value",
    [
        np.longdouble(1),
        np.clongdouble(1),
        np.str_("a"),
        np.bytes_(b"a"),
        np.void(b"a"),
        np.datetime64(1, "s"),
        np.timedelta64(1, "s"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_scalar_that_means_something_else_elsewhere_is_refused(value: object) -> None:
    with pytest.raises(InvalidInputError, match="numpy scalar"):
        codecs.encode(value)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("torch.dtype", "load"),
        ("torch.dtype", "float3"),
        ("torch.dtype", 5),
        ("torch.Size", ["a"]),
        ("torch.Size", None),
        ("torch.device", "nowhere:-1"),
        ("torch.device", [1]),
        ("numpy.scalar", ["float64", "00"]),
        ("numpy.scalar", ["float64", "zz" * 8]),
        ("numpy.scalar", ["object", "00" * 8]),
        ("numpy.scalar", ["O8,O8", "00" * 16]),
        ("numpy.scalar", ["float64", "00" * 16]),
        ("numpy.scalar", []),
        ("numpy.scalar", None),
        ("collections.Counter", 5),
    ],
)
def test_a_form_that_no_codec_made_is_damage(name: str, form: object) -> None:
    with pytest.raises(CorruptError):
        codecs.decode(name, form)


def test_a_name_is_never_looked_up_in_a_module() -> None:
    for name in ("os.system", "builtins.eval", "collections.ChainMap", "torch.load", ""):
        with pytest.raises(InvalidInputError, match="register_codec"):
            codecs.decode(name, "x")


@pytest.fixture
def no_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_registered", {})


@pytest.mark.usefixtures("no_codecs")
def test_what_an_encode_function_raises_comes_out_and_nothing_is_committed() -> None:
    def fail(value: object) -> object:
        raise ZeroDivisionError

    ckptstore.register_codec(Odd, fail, fail)
    repo = ckptstore.init("memory://")
    with pytest.raises(ZeroDivisionError):
        repo.commit({"a": Odd()})
    ckptstore.register_codec(Odd, lambda odd: [1, 2], fail)
    repo.commit({"a": Odd()})
    with pytest.raises(CorruptError, match="Odd could not be made"):
        repo.checkout()


@pytest.mark.usefixtures("no_codecs")
def test_a_codec_may_give_what_needs_a_codec_itself() -> None:
    class Box:
        """A value that holds another."""

        def __init__(self, inside: object) -> None:
            self.inside = inside

    ckptstore.register_codec(Box, lambda box: {"inside": box.inside}, lambda form: Box(**form))
    repo = ckptstore.init("memory://")
    weights = torch.arange(5.0)
    state = {"box": Box((torch.Size([1]), Box(weights))), "tied": weights}
    checkpoint = repo.commit(state)
    found = repo.checkout()
    assert found["box"].inside[0] == torch.Size([1])
    assert found["box"].inside[1].inside is found["tied"]
    assert difference(weights, found["tied"]) is None
    assert [a.path for a in checkpoint.arrays] == ["box/inside/1/inside", "tied"]
    assert checkpoint.values == {"box": {"inside": ([1], {"inside": ARRAY})}}
    assert str(checkpoint.values) == "{'box': {'inside': ([1], {'inside': <array>})}}"
    # Chosen by any of its arrays, it comes whole.
    (box,) = repo.checkout(include="box/inside/1/inside").values()
    assert torch.equal(box.inside[1].inside, weights)
