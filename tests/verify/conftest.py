"""A small repository with every kind of file in it, whole and as a copy to damage."""

from pathlib import Path

import pytest

from tests.helpers.damage import world as worlds
from tests.helpers.damage.world import World


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("whole") / "store")


@pytest.fixture
def world(whole: World, tmp_path: Path) -> World:
    return whole.copy(tmp_path / "store")
