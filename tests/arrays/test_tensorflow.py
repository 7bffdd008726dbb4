"""Tensors and variables of TensorFlow: bit for bit, tied, assigned in place, or refused by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore import CheckoutMismatchError, UnsupportedValueError
from ckptstore.documents.dtypes import ML_DTYPES, NUMPY_DTYPES
from ckptstore.training import CheckpointManager
from ckptstore.training.random_state import RandomState

pytestmark = pytest.mark.framework


class Lazy:
    """TensorFlow, imported by the first test that uses it: collecting tests is not to take that."""

    def __getattr__(self, name: str) -> Any:
        import tensorflow

        return getattr(tensorflow, name)


tf: Any = Lazy()
ABSENT = {"float8_e8m0fnu"}  # TensorFlow has no such dtype
WITHOUT_VARIABLES = {"float8_e4m3fnuz", "float8_e5m2fnuz"}
DTYPES = sorted((NUMPY_DTYPES | ML_DTYPES) - ABSENT)


def dtype_of(name: str) -> Any:
    return getattr(tf.dtypes, name, None) or getattr(tf.dtypes.experimental, name)


def bits(name: str, *shape: int) -> np.ndarray:
    """Numbers of every pattern of bits."""
    dtype = np.dtype(dtype_of(name).as_numpy_dtype)
    drawn = np.random.default_rng(3).integers(0, 2 if name == "bool" else 256, size=(*shape, 16))
    return drawn.astype(np.uint8)[..., : dtype.itemsize].copy().view(dtype).reshape(shape)


def is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 5), (40_000,)])
def test_a_tensor_comes_back_as_a_numpy_array_of_the_same_bits(name: str, shape: Any) -> None:
    repo, expected = ckptstore.init("memory://"), bits(name, *shape)
    state = {"tensor": tf.constant(expected)}
    if name not in WITHOUT_VARIABLES:
        state["variable"] = tf.Variable(expected)
    repo.commit(state)
    for found in repo.checkout().values():
        assert type(found) is np.ndarray
        assert is_same(found, expected)
    if name in WITHOUT_VARIABLES:
        return
    target = tf.Variable(np.zeros_like(expected))
    repo.checkout(into={"variable": target}, include="variable")
    assert is_same(np.asarray(target.read_value().numpy()), expected)


def test_a_variable_is_read_and_assigned_in_many_chunks() -> None:
    repo, expected = ckptstore.init("memory://", chunk_size=65536), bits("int32", 600, 100)
    repo.commit({"w": tf.Variable(expected)})
    target = tf.Variable(np.zeros_like(expected))
    repo.checkout(into={"w": target})
    assert is_same(target.numpy(), expected)
    follower = repo.follow()
    assert follower.update({"w": target}).read_bytes == expected.nbytes
    assert follower.update({"w": target}).read_bytes == 0
    expected[-1] += 1
    repo.commit({"w": tf.Variable(expected)})
    assert 0 < follower.update({"w": target}).read_bytes < expected.nbytes
    assert is_same(target.numpy(), expected)


def test_two_names_of_one_variable_are_tied() -> None:
    repo, shared = ckptstore.init("memory://"), tf.Variable([1.0, 2.0])
    repo.commit({"a": shared, "b": shared, "c": tf.Variable([1.0, 2.0])})
    found = repo.checkout()
    assert found["a"] is found["b"]
    assert found["a"] is not found["c"]
    target = tf.Variable([0.0, 0.0])
    repo.checkout(into={"a": target, "b": target}, include=["a", "b"])
    assert target.numpy().tolist() == [1.0, 2.0]
    repo.commit({"a": tf.Variable([3.0, 4.0]), "b": tf.Variable([5.0, 6.0])})
    with pytest.raises(CheckoutMismatchError, match="tied to a"):
        repo.checkout(into={"a": target, "b": target})
    assert target.numpy().tolist() == [1.0, 2.0]


def test_what_does_not_fit_is_named_and_nothing_is_assigned() -> None:
    repo = ckptstore.init("memory://")
    repo.commit({"a": tf.constant([1.0, 2.0]), "b": tf.constant([1, 2])})
    for b, said in (
        (tf.Variable([0.0, 0.0]), r"b \(checkpoint: int32 \[2\], destination: float32 \[2\]\)"),
        (tf.Variable([0]), r"destination: int32 \[1\]"),
        (tf.constant([0, 0]), "the destination is a tf.Tensor, not a tf.Variable"),
    ):
        a = tf.Variable([0.0, 0.0])
        with pytest.raises(CheckoutMismatchError, match=said):
            repo.checkout(into={"a": a, "b": b})
        assert a.numpy().tolist() == [0.0, 0.0]


def test_a_variable_whose_shape_may_change_takes_one_of_its_present_shape() -> None:
    repo, target = ckptstore.init("memory://"), tf.Variable([0.0], shape=tf.TensorShape(None))
    repo.commit({"w": tf.Variable([7.0], shape=tf.TensorShape(None))})
    repo.checkout(into={"w": target})
    assert target.numpy().tolist() == [7.0]


REFUSED: dict[str, Callable[[], Any]] = {
    r"'a/b'.*tf\.RaggedTensor.*flat_values": lambda: tf.ragged.constant([[1], [2, 3]]),
    r"'a/b'.*tf\.SparseTensor.*indices": lambda: tf.sparse.from_dense([[0, 3]]),
    r"'a/b'.*tf\.IndexedSlices.*indices": lambda: tf.IndexedSlices(tf.ones((1, 2)), [0]),
    r"'a/b'.*dtype string": lambda: tf.constant(["text"]),
    r"'a/b'.*dtype qint8": lambda: tf.quantization.quantize([1.0], 0.0, 2.0, tf.qint8).output,
    r"'a/b'.*dtype variant": lambda: tf.raw_ops.EmptyTensorList(
        element_shape=[1], max_num_elements=1, element_dtype=tf.float32
    ),
    r"'a/b'.*dtype resource": lambda: tf.Variable(1.0).handle,
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_has_no_plain_elements_is_refused_with_its_path(said: str) -> None:
    repo = ckptstore.init("memory://")
    with pytest.raises(UnsupportedValueError, match=said):
        repo.commit({"a": {"b": REFUSED[said]()}})
    assert repo.branches() == {}


def test_a_symbolic_tensor_is_refused() -> None:
    repo = ckptstore.init("memory://")

    @tf.function
    def step(x: Any) -> Any:
        with pytest.raises(UnsupportedValueError, match=r"'x'.*symbolic.*tf\.function"):
            repo.commit({"x": x})
        return x

    step(tf.constant([1.0]))


def test_a_save_in_the_background_has_the_values_of_its_time() -> None:
    class Module:
        def __init__(self) -> None:
            self.w = tf.Variable(bits("float32", 30, 40))

        def state_dict(self) -> dict[str, Any]:
            return {"w": self.w}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.w.assign(state["w"])

    module, expected = Module(), bits("float32", 30, 40)
    with CheckpointManager("memory://", module=module) as manager:
        manager.save(1)
        module.w.assign(tf.zeros((30, 40)))
        manager.save(2)
        manager.restore("main@step=1")
        assert is_same(module.w.numpy(), expected)


def test_random_states_of_tensorflow_are_restored() -> None:
    tf.random.set_seed(5)

    def drawn() -> list[Any]:
        generator = tf.random.get_global_generator()
        numbers = [tf.random.normal((2,)), tf.random.uniform((2,)), generator.normal((2,))]
        return [[*map(float, item.numpy())] for item in numbers] + [random.random()]

    drawn()
    repo = ckptstore.init("memory://")
    repo.commit({"rng": RandomState().state_dict()})
    kept = tf.random.get_global_generator().state
    expected = drawn()
    assert drawn() != expected
    RandomState().load_state_dict(repo.checkout()["rng"])
    assert drawn() == expected
    assert tf.random.get_global_generator().state is kept
    tf.random.set_seed(6)
    tf.random.set_global_generator(tf.random.Generator.from_seed(1, alg="threefry"))
    RandomState().load_state_dict(repo.checkout()["rng"])
    assert drawn() == expected
