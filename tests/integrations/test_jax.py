"""JAX: arrays, random keys and pytrees in commits, new pytrees in checkouts, states in managers."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import ckptstore
from ckptstore import CheckoutMismatchError, InvalidInputError, UnsupportedValueError, formats
from ckptstore.arrays import jax as arrays_of_jax
from ckptstore.checkout import slots
from ckptstore.integrations.jax import JaxState
from ckptstore.testing import strategies
from ckptstore.training import CheckpointManager

pytestmark = pytest.mark.framework

STORED = (
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "float32"),
    *("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    *("float8_e8m0fnu", "complex64"),
)
WIDE = ("int64", "uint64", "float64", "complex128")  # with jax_enable_x64
REFUSED = ("int4", "uint4", "int2", "float8_e4m3", "float8_e3m4", "float4_e2m1fn")
P = PartitionSpec


@pytest.fixture
def repo() -> ckptstore.Repository:
    return ckptstore.init("memory://")


def is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def bits(leaf: Any) -> Any:
    """What makes two leaves the same."""
    if is_key(leaf):
        return "key", str(jax.random.key_impl(leaf)), bits(jax.random.key_data(leaf))
    if isinstance(leaf, (jax.Array, np.ndarray)):
        weak = getattr(leaf, "weak_type", False)
        kind = np.ndarray if isinstance(leaf, np.ndarray) else jax.Array
        return kind, str(leaf.dtype), leaf.shape, weak, np.asarray(leaf).tobytes()
    return repr(leaf)


def assert_same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert [*map(bits, jax.tree.leaves(one))] == [*map(bits, jax.tree.leaves(other))]


def zeros(tree: Any) -> Any:
    """A pytree of the same structure with other values."""

    def zero(leaf: Any) -> Any:
        if is_key(leaf):
            data = jax.random.key_data(leaf)
            impl = jax.random.key_impl(leaf)
            return jax.random.wrap_key_data(jnp.zeros_like(data), impl=impl)
        if isinstance(leaf, jax.Array):
            if leaf.weak_type:
                return jnp.full(leaf.shape, 0 if leaf.dtype == "int32" else 0.0)
            return jnp.asarray(np.zeros(leaf.shape, leaf.dtype))
        if isinstance(leaf, np.ndarray):
            return np.zeros_like(leaf)
        return 0 if type(leaf) is int else leaf

    return jax.tree.map(zero, tree)


def round_trip(repo: ckptstore.Repository, tree: Any) -> Any:
    repo.commit(tree)
    return repo.checkout(into=zeros(tree))


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5, 7), (300, 301)])
def test_an_array_comes_back_bit_for_bit(
    repo: ckptstore.Repository, dtype: str, shape: tuple[int, ...]
) -> None:
    count = int(np.prod(shape))
    item = np.dtype(jnp.dtype(dtype))
    raw = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 256, count * item.itemsize)
    array = jnp.asarray(raw.astype(np.uint8).view(item).reshape(shape))
    assert_same(round_trip(repo, [array]), [array])
    (stored,) = repo.checkout()
    assert type(stored) is np.ndarray
    assert stored.dtype == array.dtype
    assert stored.tobytes() == np.asarray(array).tobytes()


@pytest.mark.parametrize("dtype", WIDE)
def test_arrays_of_64_bits_come_back_where_jax_has_them(
    repo: ckptstore.Repository, dtype: str
) -> None:
    with jax.enable_x64(True):
        array = jnp.arange(5, dtype=dtype)
        assert_same(round_trip(repo, [array]), [array])
    with pytest.raises(InvalidInputError, match="jax_enable_x64"):
        repo.checkout(into=[array])


@pytest.mark.parametrize("dtype", REFUSED)
def test_a_dtype_that_no_checkpoint_holds_is_an_error_with_a_way_out(
    repo: ckptstore.Repository, dtype: str
) -> None:
    with pytest.raises(UnsupportedValueError, match=rf"'w' has the dtype {dtype}.*astype\('"):
        repo.commit({"w": jnp.zeros(3, dtype)})


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("count", [None, 0, 3])
def test_a_random_key_comes_back_with_its_implementation(
    repo: ckptstore.Repository, impl: str, count: int | None
) -> None:
    key = jax.random.key(7, impl=impl)
    key = key if count is None else jax.random.split(key, count)
    assert_same(round_trip(repo, {"key": key}), {"key": key})
    assert_same(repo.checkout(), {"key": key})


def test_a_key_of_another_implementation_does_not_fit(repo: ckptstore.Repository) -> None:
    repo.commit({"key": jax.random.key(0), "old": jax.random.PRNGKey(0)})
    with pytest.raises(CheckoutMismatchError, match=r"key \(.*threefry2x32, .*rbg\)"):
        repo.checkout(into={"key": jax.random.key(0, impl="rbg"), "old": jax.random.PRNGKey(0)})
    with pytest.raises(CheckoutMismatchError, match="old"):
        repo.checkout(into={"key": jax.random.key(0), "old": jax.random.key(0)})


def test_traced_and_deleted_arrays_are_errors(repo: ckptstore.Repository) -> None:
    with pytest.raises(UnsupportedValueError, match="outside of jit"):
        jax.jit(lambda x: repo.commit({"x": x}))(jnp.zeros(3))
    gone = jnp.zeros(3)
    gone.delete()
    with pytest.raises(UnsupportedValueError, match="'x' is a JAX array that was deleted"):
        repo.commit({"x": gone})


@partial(jax.tree_util.register_dataclass, data_fields=["w", "more"], meta_fields=["name"])
@dataclasses.dataclass
class Registered:
    w: Any
    more: Any
    name: str


class Custom:
    """A node whose children have positions."""

    def __init__(self, *items: Any) -> None:
        self.items = items


jax.tree_util.register_pytree_node(
    Custom, lambda node: (node.items, None), lambda _, items: Custom(*items)
)


def linen_params() -> Any:
    from flax import linen

    return linen.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))


def train_state(seed: int = 0, width: int = 3) -> Any:
    from flax import linen
    from flax.training.train_state import TrainState

    model = linen.Dense(width)
    params = model.init(jax.random.key(seed), jnp.ones((1, 2)))["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=optax.adamw(1e-2))


def frozen() -> Any:
    return FrozenDict({"a": {"b": jnp.arange(3)}, "c": 4})


def nnx_state() -> Any:
    from flax import nnx

    return nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))


def equinox_model(seed: int = 0) -> Any:
    import equinox as eqx

    return eqx.nn.Sequential(
        [
            eqx.nn.Linear(2, 3, key=jax.random.key(seed)),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(seed + 1)),
        ]
    )


NODES = {
    "plain": lambda: {"a": [jnp.ones(2), (3, jnp.zeros(1))], "b": OrderedDict(c=jnp.ones(1))},
    "registered dataclass": lambda: Registered(jnp.ones(2), [jnp.zeros(1)], "kept"),
    "custom node": lambda: Custom(jnp.ones(2), {"a": jnp.arange(3)}, None),
    "empty node": lambda: {"node": Custom(), "w": jnp.ones(1)},
    "optax": lambda: optax.chain(optax.clip(1.0), optax.adam(1e-3)).init({"w": jnp.ones(2)}),
    "linen": linen_params,
    "FrozenDict": frozen,
    "TrainState": train_state,
    "nnx state": nnx_state,
    "equinox": equinox_model,
    "one array": lambda: jnp.arange(3),
    "numpy beside": lambda: {"a": jnp.ones(2), "b": np.arange(4), "text": "x", "none": None},
}


@pytest.mark.parametrize("name", NODES)
def test_a_pytree_of_any_nodes_comes_back_as_itself(repo: ckptstore.Repository, name: str) -> None:
    tree = NODES[name]()
    template = zeros(tree)
    before = [*map(bits, jax.tree.leaves(template))]
    found = round_trip(repo, tree)
    assert_same(found, tree)
    assert [*map(bits, jax.tree.leaves(template))] == before, "the template has changed"


def jax_arrays() -> st.SearchStrategy[Any]:
    """Arrays of any bits, of the dtypes that JAX has without jax_enable_x64."""
    found = strategies.ndarrays().filter(lambda array: array.dtype.name in STORED)
    return found.map(lambda array: jnp.asarray(np.ascontiguousarray(array)))


class Pair(NamedTuple):
    left: Any
    right: Any


def pytrees() -> st.SearchStrategy[Any]:
    """Pytrees of JAX arrays, random keys, numpy arrays and plain values, in nodes of any kind."""
    keys = st.integers(0, 99).map(jax.random.key)
    plain = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3)
    leaves = jax_arrays() | jax_arrays() | keys | plain | strategies.ndarrays()
    names = st.sampled_from(["a", "b/c", "0", "", "%", "é"])

    def nodes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        named = st.dictionaries(names, inner, max_size=3)
        return (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | named
            | named.map(OrderedDict)
            | named.map(FrozenDict)
            | st.lists(inner, max_size=3).map(lambda items: Custom(*items))
            | st.builds(Pair, inner, inner)
            | st.builds(Registered, inner, inner, st.just("static"))
        )

    return st.recursive(leaves, nodes, max_leaves=8)


@given(tree=pytrees(), array=jax_arrays())
def test_any_pytree_comes_back_as_itself(tree: Any, array: Any) -> None:
    """With an array at its side, as without one a dict is filled in place."""
    state = {"tree": tree, "array": array}
    template = zeros(state)
    before = [*map(bits, jax.tree.leaves(template))]
    assert_same(round_trip(ckptstore.init("memory://"), state), state)
    assert [*map(bits, jax.tree.leaves(template))] == before


def test_a_checkout_without_a_template_has_dicts_lists_and_numpy(
    repo: ckptstore.Repository,
) -> None:
    repo.commit(
        {"d": Registered(jnp.ones(2), None, "x"), "c": Custom(jnp.ones(1), 2), "f": frozen()}
    )
    found = repo.checkout()
    assert list(found["d"]) == ["w", "more"]
    assert found["d"]["w"].tolist() == [1, 1]
    assert found["c"][1] == 2
    assert found["f"]["a"]["b"].tolist() == [0, 1, 2]
    assert [array.path for array in repo.resolve("main").arrays] == ["c/0", "d/w", "f/a/b"]


def test_static_fields_and_functions_are_those_of_the_template(repo: ckptstore.Repository) -> None:
    repo.commit(Registered(jnp.ones(2), 1, "of the checkpoint"))
    assert repo.checkout(into=Registered(jnp.zeros(2), 0, "of the template")).name.endswith(
        "template"
    )
    model, template = equinox_model(0), equinox_model(5)
    repo.commit({"model": model})
    found = repo.checkout(into={"model": template})["model"]
    assert found(jnp.ones(2)).tolist() == model(jnp.ones(2)).tolist()


def test_an_object_that_is_no_function_is_never_left_out(repo: ckptstore.Repository) -> None:
    class Calls:
        def __call__(self) -> None: ...

    kept = [jax.nn.relu, jnp.float32, np.sin, partial(jax.nn.gelu, approximate=True), len]
    repo.commit(Custom(jnp.ones(1), kept))
    assert repo.checkout(into=Custom(jnp.zeros(1), kept)).items[1] == kept
    for held in (Calls(), partial(jnp.add, jnp.ones(2))):
        with pytest.raises(UnsupportedValueError, match="'1' is of type"):
            repo.commit(Custom(jnp.ones(1), held))


def test_every_difference_is_listed(repo: ckptstore.Repository) -> None:
    repo.commit(Custom(jnp.ones(2), {"a": jnp.ones(3), "b": jnp.ones(4), "old": jnp.ones(1)}))
    template = Custom(
        jnp.ones(2, jnp.bfloat16), {"a": jnp.ones(5), "b": jnp.ones(4), "new": jnp.ones(1)}
    )
    with pytest.raises(CheckoutMismatchError) as caught:
        repo.checkout(into=template)
    found = caught.value.incompatible
    assert found.missing == ("1/new",)
    assert found.unexpected == ("1/old",)
    assert [text.split(" ")[0] for text in found.mismatched] == ["0", "1/a"]
    with pytest.warns(UserWarning, match="in part"):
        partly = repo.checkout(into=template, strict=False)
    assert partly.items[1]["b"].tolist() == [1, 1, 1, 1]
    assert partly.items[1]["a"] is template.items[1]["a"]


def test_a_renamed_layer_fits_by_what_the_error_proposes(repo: ckptstore.Repository) -> None:
    repo.commit({"params": {"old": {"w": jnp.arange(3.0)}}, "step": 3})
    template = {"params": {"new": {"w": jnp.zeros(3)}}, "step": 0}
    with pytest.raises(CheckoutMismatchError) as caught:
        repo.checkout(into=template)
    found = repo.checkout(into=template, rename=caught.value.rename)
    assert found["params"]["new"]["w"].tolist() == [0, 1, 2]


def test_a_part_goes_into_a_template_of_that_part(repo: ckptstore.Repository) -> None:
    state = {"params": {"w": jnp.arange(3)}, "opt": jnp.ones(2)}
    repo.commit(state)
    assert_same(repo.checkout(part="params", into={"w": jnp.zeros(3, int)}), state["params"])
    assert_same(
        ckptstore.load_weights({"w": jnp.zeros(3, int)}, repo, part="params"), state["params"]
    )


def test_a_number_may_have_become_an_array_and_an_array_may_have_been_a_number(
    repo: ckptstore.Repository,
) -> None:
    before = train_state()
    after = jax.jit(lambda state: state.replace(step=state.step + 1))(before)
    repo.commit(after)
    assert_same(repo.checkout(into=before), after)
    repo.commit(before)
    assert repo.checkout(into=after).step.dtype == after.step.dtype
    assert int(repo.checkout(into=after).step) == 0
    repo.commit({"step": 300})
    with pytest.raises(CheckoutMismatchError, match="step"):
        repo.checkout(into={"step": jnp.zeros((), jnp.int8)})


@pytest.mark.parametrize("value", [3, -0.0, float("nan")])
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_a_dtype_that_yields_to_others_is_that_of_the_template(
    repo: ckptstore.Repository, value: float, shape: tuple[int, ...]
) -> None:
    """What a sum of it and of bfloat16 is depends on that."""
    tree = {
        "weak": jnp.full(shape, value),
        "strong": jnp.asarray(np.full(shape, value, np.float32)),
    }
    assert tree["weak"].weak_type
    assert_same(round_trip(repo, tree), tree)
    assert_same(
        round_trip(repo, jax.device_put(tree, jax.devices()[1])),
        jax.device_put(tree, jax.devices()[1]),
    )


def test_a_described_template_is_enough(repo: ckptstore.Repository) -> None:
    state = {"ts": train_state(), "key": jax.random.split(jax.random.key(0, impl="rbg"), 2)}
    repo.commit(state)
    described = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state))
    found = repo.checkout(into=described)
    assert_same(found["ts"].params, state["ts"].params)
    assert_same(found["key"], state["key"])


def test_an_array_that_came_through_zarr_goes_into_a_pytree(repo: ckptstore.Repository) -> None:
    import zarr

    with repo.session("main") as session:
        zarr.open_group(session.store)["loss"] = np.array([0.5, 0.25], np.float32)
        session.commit()
    assert_same(repo.checkout(into={"loss": jnp.zeros(2)}), {"loss": jnp.asarray([0.5, 0.25])})


def test_metrics_and_steps_may_be_arrays_of_jax(repo: ckptstore.Repository) -> None:
    made = repo.commit([1], step=jnp.asarray(4), metrics={"loss": jnp.asarray(0.5, jnp.bfloat16)})
    assert (made.step, made.metrics) == (4, {"loss": 0.5})


def test_a_state_is_compared_with_a_checkpoint(repo: ckptstore.Repository) -> None:
    state = {"w": jnp.arange(3), "key": jax.random.key(0)}
    repo.commit(state)
    assert repo.diff("main", state).arrays == ()
    assert [a.path for a in repo.diff("main", state | {"w": jnp.ones(3, int)}).arrays] == ["w"]


def test_a_checkpoint_with_a_key_is_read_lazily_and_exported(
    repo: ckptstore.Repository, tmp_path: Path
) -> None:
    import torch

    state = {"w": jnp.arange(3), "key": jax.random.key(7)}
    repo.commit(state)
    lazy = repo.checkout(lazy=True)
    assert_same(lazy["key"], state["key"])
    assert repo.commit(lazy, branch="copy").new_bytes == 0
    for name in ("state.zarr", "state.pt"):
        formats.write_file(repo.checkout(), tmp_path / name)
    found = torch.load(tmp_path / "state.pt", weights_only=False)
    assert found["key"].tolist() == jax.random.key_data(state["key"]).tolist()
    repo.commit(formats.read_file(tmp_path / "state.zarr").state, branch="zarr")
    assert_same(repo.checkout("zarr")["key"], state["key"])


def test_torch_beside_jax_is_an_error(repo: ckptstore.Repository) -> None:
    import torch

    module = torch.nn.Linear(1, 1)
    repo.commit({"w": jnp.ones(1), "m": module})
    with pytest.raises(InvalidInputError, match=r"'m' is of type .*Linear"):
        repo.checkout(into={"w": jnp.ones(1), "m": module})


# --- several devices


def mesh(*sizes: int) -> jax.sharding.Mesh:
    names = ("x", "y")[: len(sizes)]
    devices = np.asarray(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
    return jax.sharding.Mesh(devices, names)


def layouts() -> dict[str, Any]:
    return {
        "rows": NamedSharding(mesh(8), P("x")),
        "columns": NamedSharding(mesh(8), P(None, "x")),
        "both": NamedSharding(mesh(4, 2), P("x", "y")),
        "some": NamedSharding(mesh(4, 2), P("y")),
        "replicated": NamedSharding(mesh(2, 2), P()),
        "one": jax.sharding.SingleDeviceSharding(jax.devices()[3]),
    }


@pytest.mark.parametrize("new", [*layouts()])
@pytest.mark.parametrize("old", [*layouts()])
def test_a_sharded_array_goes_to_any_other_layout(old: str, new: str) -> None:
    """In chunks that lie across the edges of shards, and shards of several chunks."""
    repo = ckptstore.init("memory://", chunk_size=1 << 16)
    values = np.arange(256 * 512, dtype=np.float32).reshape(256, 512)
    small = values[:8, :8].copy()
    state = jax.device_put({"w": values, "b": small}, layouts()[old])
    repo.commit(state)
    template = jax.device_put({"w": values * 0, "b": small * 0}, layouts()[new])
    found = repo.checkout(into=template)
    for name, array in found.items():
        assert array.sharding == layouts()[new]
        assert array.committed
        assert np.asarray(array).tobytes() == np.asarray(state[name]).tobytes()


def test_a_template_whose_sharding_does_not_divide_it_is_an_error(
    repo: ckptstore.Repository,
) -> None:
    repo.commit({"w": jnp.arange(4)})
    there = NamedSharding(mesh(8), P("x"))
    with pytest.raises(InvalidInputError, match="partitioned 8 times"):
        repo.checkout(into={"w": jax.ShapeDtypeStruct((4,), int, sharding=there)})


def test_a_checkpoint_is_the_same_whatever_devices_held_it(repo: ckptstore.Repository) -> None:
    values = np.random.default_rng(0).random((512, 512), np.float32)
    repo.commit({"w": values})
    for layout in layouts().values():
        made = repo.commit({"w": jax.device_put(values, layout)})
        assert made.new_bytes == 0


def test_no_sharded_array_is_ever_whole_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit copies a chunk for each thread, a checkout fills some boxes at a time."""
    repo = ckptstore.init("memory://", chunk_size=1 << 18)
    values = np.arange(1 << 22, dtype=np.float32).reshape(2048, 2048)
    sharded = jax.device_put(values, layouts()["columns"])
    del values
    tracemalloc.start()  # which numpy counts in, and JAX does not
    try:
        repo.commit({"w": sharded})
        held = tracemalloc.get_traced_memory()[1] - repo.resolve("main").new_bytes
    finally:
        tracemalloc.stop()
    assert held < sharded.nbytes / 4
    batches = []
    read = slots.read_boxes

    def read_boxes(pages: Any, wanted: Any, **more: Any) -> None:
        batches.append(sum(part.target.nbytes for parts in wanted.values() for part in parts))
        read(pages, wanted, **more)

    monkeypatch.setattr(slots, "read_boxes", read_boxes)
    monkeypatch.setattr(slots, "HOST_BYTES_MAX", sharded.nbytes // 4)
    template = {"w": jax.ShapeDtypeStruct((2048, 2048), jnp.float32, sharding=layouts()["both"])}
    found = repo.checkout(into=template)["w"]
    assert batches == [sharded.nbytes // 4] * 4
    assert found.sharding == layouts()["both"]
    assert jnp.array_equal(jax.device_put(found, layouts()["columns"]), sharded)


def test_an_array_takes_over_the_memory_that_it_was_read_to(repo: ckptstore.Repository) -> None:
    """On the CPU: nothing is copied between the check of its bytes and its use."""
    w = jnp.arange(1 << 20)
    repo.commit({"w": w, "s": jax.device_put(w, NamedSharding(mesh(8), P("x")))})
    read = []
    put = jax.device_put

    def device_put(arrays: Any, *more: Any) -> Any:
        read.extend(array.ctypes.data for array in arrays)
        return put(arrays, *more)

    template = {"w": w, "s": jax.device_put(w, NamedSharding(mesh(8), P("x")))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_put", device_put)
        found = repo.checkout(into=template)
    places = {found["w"].unsafe_buffer_pointer()}
    places |= {shard.data.unsafe_buffer_pointer() for shard in found["s"].addressable_shards}
    assert places == {*read}


@pytest.mark.parametrize("layout", ["rows", "columns", "both", "replicated", "one"])
def test_arrays_on_accelerators_are_copied_in_pieces(
    monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """As if the devices here had memory of their own."""
    repo = ckptstore.init("memory://", chunk_size=1 << 16)
    values = np.arange(200 * 304, dtype=np.float32).reshape(200, 304)
    state = jax.device_put({"w": values, "b": values[:8, :8].copy()}, layouts()[layout])
    state |= {"s": jnp.asarray(3), "e": jnp.zeros((0, 2))}
    repo.commit(state)
    monkeypatch.setattr(arrays_of_jax, "is_in_host_memory", lambda array: False)
    assert repo.commit(state, branch="again").new_bytes == 0
    assert repo.diff("main", "again").arrays == ()


@pytest.mark.parametrize("layout", [*layouts()])
def test_a_sharded_state_is_saved_in_the_background(layout: str) -> None:
    values = np.arange(256 * 512, dtype=np.float32).reshape(256, 512)
    state = JaxState(params=jax.device_put({"w": values}, layouts()[layout]))
    with CheckpointManager("memory://", **state) as manager:
        manager.save(1)
        state.params["w"].delete()
    state.params = {"w": jax.ShapeDtypeStruct((256, 512), jnp.float32, sharding=layouts()["both"])}
    CheckpointManager(manager.repository, **state).restore()
    assert np.asarray(state.params["w"]).tobytes() == values.tobytes()


def test_an_uncommitted_template_gives_an_uncommitted_array(repo: ckptstore.Repository) -> None:
    repo.commit({"w": jnp.arange(3)})
    assert not repo.checkout(into={"w": jnp.zeros(3, int)})["w"].committed


# --- training


@partial(jax.jit, donate_argnums=(0, 1))
def update(params: Any, opt_state: Any, key: Any) -> Any:
    key, used = jax.random.split(key)
    x = jax.random.normal(used, (16, 4))

    def loss(params: Any) -> Any:
        return ((x @ params["w"] + params["b"] - x.sum(1, keepdims=True)) ** 2).mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = optax.adamw(1e-2).update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, key, value


def begun() -> JaxState:
    params = {"w": jnp.ones((4, 1)), "b": jnp.zeros(1)}
    state = optax.adamw(1e-2).init(params)
    return JaxState(params=params, opt_state=state, key=jax.random.key(3))


def train(state: JaxState, steps: range, manager: CheckpointManager | None = None) -> list[float]:
    losses = []
    for step in steps:
        state.params, state.opt_state, state.key, loss = update(
            state.params, state.opt_state, state.key
        )
        losses.append(float(loss))
        if manager is not None:
            manager.save(step + 1)
    return losses


@pytest.mark.parametrize("async_save", [True, False])
def test_a_resumed_training_is_bit_for_bit_the_same(async_save: bool) -> None:
    whole = begun()
    losses = train(whole, range(10))
    first = begun()
    with CheckpointManager("memory://", **first, async_save=async_save) as manager:
        before = train(first, range(5), manager)
    again = begun()
    resumed = CheckpointManager(manager.repository, **again)
    start = resumed.restore_or_initialize()
    assert start == 5
    assert before + train(again, range(start, 10)) == losses
    assert_same(vars(again), vars(whole))


def test_a_train_state_of_flax_resumes_bit_for_bit() -> None:
    @jax.jit
    def step(state: Any) -> Any:
        x = jax.random.normal(jax.random.fold_in(jax.random.key(0), state.step), (8, 2))
        loss = jax.grad(lambda params: (state.apply_fn({"params": params}, x) ** 2).mean())
        return state.apply_gradients(grads=loss(state.params))

    first, again = JaxState(train=train_state()), JaxState(train=train_state(seed=9))
    with CheckpointManager("memory://", **first) as manager:
        for number in range(3):
            first.train = step(first.train)
            manager.save(number + 1)
    assert CheckpointManager(manager.repository, **again).restore_or_initialize() == 3
    whole, resumed = (jax.tree.leaves(step(state.train)) for state in (first, again))
    assert [*map(bits, resumed)] == [*map(bits, whole)]


def test_a_model_of_nnx_is_updated_in_place_or_made_anew(repo: ckptstore.Repository) -> None:
    from flax import nnx

    def made(seed: int) -> Any:
        model = nnx.Linear(2, 3, rngs=nnx.Rngs(seed))
        return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    trained, optimizer = made(0)
    optimizer.update(trained, nnx.grad(lambda model: model(jnp.ones(2)).sum())(trained))
    repo.commit({"model": nnx.state(trained), "optimizer": nnx.state(optimizer)})
    model, other = made(1)
    found = repo.checkout(into={"model": nnx.state(model), "optimizer": nnx.state(other)})
    nnx.update(model, found["model"])
    nnx.update(other, found["optimizer"])
    assert_same(nnx.state(model), nnx.state(trained))
    assert_same(nnx.state(other), nnx.state(optimizer))
    anew = repo.checkout(part="model", into=made(2)[0])
    assert_same(nnx.state(anew), nnx.state(trained))


def test_arrays_that_are_donated_after_a_save_do_not_reach_it() -> None:
    state = begun()
    manager = CheckpointManager("memory://", **state)
    manager.save(0)
    expected = jax.tree.map(np.array, state.params)
    old = state.params
    train(state, range(1))
    assert old["w"].is_deleted()
    manager.wait()
    found = manager.repository.checkout(part="params")
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


def test_a_restored_state_can_be_donated_and_leaves_no_trace_in_the_checkpoint() -> None:
    state = begun()
    manager = CheckpointManager("memory://", **state, async_save=False)
    manager.save(1)
    manager.restore()
    restored = jax.tree.map(np.array, state.params)
    train(state, range(1))
    manager.restore()
    assert_same(jax.tree.map(np.array, state.params), restored)


def test_a_manager_says_what_differs_and_changes_nothing() -> None:
    state = begun()
    manager = CheckpointManager("memory://", **state, async_save=False)
    manager.save(1)
    other = JaxState(params={"w": jnp.ones((5, 1)), "b": jnp.zeros(1)}, key=jax.random.key(0))
    before = other.params
    with pytest.raises(CheckoutMismatchError, match=r"params/w \(checkpoint: float32 \[4, 1\]"):
        CheckpointManager(manager.repository, branch="other", **other).restore("main")
    assert other.params is before


def test_a_follower_replaces_what_has_changed_and_keeps_the_rest() -> None:
    trained, served = begun(), begun()
    del vars(served)["opt_state"]
    repo = ckptstore.init("memory://")
    repo.commit(vars(trained))
    follower = repo.follow()
    chosen = ["params", "key"]
    first = follower.update({**served}, include=chosen)
    assert set(first.changed) == {"params/w", "params/b", "key"}
    kept = served.params["w"]
    trained.params = {**trained.params, "b": jnp.ones(1)}
    repo.commit(vars(trained))
    assert set(follower.update({**served}, include=chosen).changed) == {"params/b", "key"}
    assert served.params["w"] is kept
    assert_same(served.params, trained.params)
    served.params = {"w": kept + 1, "b": jnp.ones(1)}
    follower.update({**served}, include=chosen)
    assert_same(served.params, trained.params)
    with pytest.raises(InvalidInputError, match="JaxState"):
        follower.update(served.params)


def test_the_memory_of_a_donated_array_is_known_to_have_ended() -> None:
    """Another array may be there by the next update, while the old one still has a name."""
    array = jnp.zeros(3)
    is_gone = arrays_of_jax.Jax().end_of(array)
    assert not is_gone()
    jax.jit(lambda x: x + 1, donate_argnums=0)(array)
    assert is_gone()


def test_a_bare_pytree_cannot_be_tracked_and_the_error_names_the_way() -> None:
    with pytest.raises(InvalidInputError, match="JaxState"):
        CheckpointManager("memory://", params={"w": jnp.ones(3)})


def test_a_state_may_have_plain_values_and_nodes_without_leaves() -> None:
    def made(*values: Any) -> JaxState:
        step, history, name = values
        params = {"w": jnp.full(2, step)}
        state = optax.sgd(0.1).init(params)
        return JaxState(
            params=params, state=state, step=step, history=history, name=name, none=None
        )

    saved, other = made(3, [1, 2], "x"), made(0, [], "y")
    with CheckpointManager("memory://", **saved) as manager:
        manager.save(1)
    CheckpointManager(manager.repository, **other).restore()
    assert_same(vars(other), vars(saved))


def test_a_pytree_that_would_get_nothing_is_an_error_also_in_part() -> None:
    with CheckpointManager("memory://", **JaxState(params={"w": jnp.ones(2)})) as manager:
        manager.save(1)
    other = JaxState(params={"v": jnp.ones(2)})
    with pytest.raises(CheckoutMismatchError, match="Nothing in the checkpoint fits 'params'"):
        CheckpointManager(manager.repository, **other).restore(strict=False)


def test_the_names_of_a_state() -> None:
    state = JaxState(a=1)
    assert (repr(state), [*state]) == ("JaxState(a)", ["a"])
    with pytest.raises(InvalidInputError, match="keys"):
        JaxState(keys=1)
    with pytest.raises(InvalidInputError, match="'a' is tracked"):
        del state.a
    with pytest.raises(KeyError):
        state["b"]
