"""zarr-python's own suites, against the store of a session and the store of a checkpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from zarr.core.buffer import Buffer, cpu
from zarr.testing.stateful import ZarrHierarchyStateMachine, ZarrStoreStateMachine
from zarr.testing.store import StoreTests

import ckptstore
from ckptstore.zarr import CheckpointStore, SessionStore
from tests.helpers.committed_store import BRANCH, CommittedStore

PLACES = ["memory", "folder"]
# zarr-python's machines draw dtypes of fixed-length bytes and texts too, of which it warns.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")


def url_of(place: str, request: pytest.FixtureRequest, tmp_path: Any) -> str:
    if place == "folder":
        return str(tmp_path / "store")
    return f"memory://{abs(hash(request.node.nodeid))}"


class TestSessionStore(StoreTests[SessionStore, cpu.Buffer]):
    store_cls = SessionStore
    buffer_cls = cpu.Buffer

    @pytest.fixture(params=PLACES)
    def session(self, request, tmp_path):
        repo = ckptstore.init(url_of(request.param, request, tmp_path))
        with repo.session(BRANCH) as session:
            yield session

    @pytest.fixture
    def store_kwargs(self, session) -> dict[str, Any]:
        return {"session": session}

    async def set(self, store: SessionStore, key: str, value: Buffer) -> None:
        store._session.staged().put(key, memoryview(value.to_bytes()))

    async def get(self, store: SessionStore, key: str) -> Buffer:
        staged = store._session.staged()
        content = staged.contents[key]
        return self.buffer_cls.from_bytes(content.read(staged.objects, 0, content.size))

    def test_store_repr(self, store: SessionStore) -> None:
        assert repr(store) == "SessionStore('main')"

    def test_store_supports_writes(self, store: SessionStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: SessionStore) -> None:
        assert store.supports_listing


class TestCheckpointStore(StoreTests[CommittedStore, cpu.Buffer]):
    store_cls = CommittedStore
    buffer_cls = cpu.Buffer

    @pytest.fixture(params=PLACES)
    def store_kwargs(self, request, tmp_path) -> dict[str, Any]:
        url = url_of(request.param, request, tmp_path)
        ckptstore.init(url)
        return {"url": url}

    async def set(self, store: CommittedStore, key: str, value: Buffer) -> None:
        with ckptstore.open(store.url).session(BRANCH) as session:
            session.staged().put(key, memoryview(value.to_bytes()))
            session.commit()

    async def get(self, store: CommittedStore, key: str) -> Buffer:
        newest = store.newest()
        content = newest._view().contents[key]
        return self.buffer_cls.from_bytes(content.read(newest._view().objects, 0, content.size))

    def test_store_repr(self, store: CommittedStore) -> None:
        id = ckptstore.open(store.url).resolve(BRANCH).id
        assert repr(store.newest()) == f"CheckpointStore({store.url!r}, {id.short!r})"

    def test_store_supports_writes(self, store: CommittedStore) -> None:
        assert not store.newest().supports_writes
        assert not store.newest().supports_deletes

    def test_store_supports_listing(self, store: CommittedStore) -> None:
        assert store.newest().supports_listing


def test_a_checkpoint_store_refuses_to_be_written_to(tmp_path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    store = CheckpointStore(repo.url, repo.commit({}).id)
    assert store.read_only
    with pytest.raises(ckptstore.InvalidInputError, match=r"repo\.session"):
        store.with_read_only(read_only=False)


MACHINES = [ZarrStoreStateMachine, ZarrHierarchyStateMachine]


def _settings(divisor: int) -> settings:
    count = max(2, settings().max_examples // divisor)
    return settings(max_examples=count, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.__name__)
def test_a_session_behaves_as_zarrs_state_machines_want(machine, tmp_path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    with repo.session(BRANCH) as session:
        store = session.store
        run_state_machine_as_test(lambda: machine(store), settings=_settings(4))


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.__name__)
def test_checkpoints_behave_as_zarrs_state_machines_want(machine, tmp_path) -> None:
    ckptstore.init(tmp_path / "store")
    store = CommittedStore(str(tmp_path / "store"))
    run_state_machine_as_test(lambda: machine(store), settings=_settings(25))
    assert json.loads(json.dumps(ckptstore.open(store.url).verify().ok))
