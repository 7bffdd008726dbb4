import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore.state.selection import Selection
from ckptstore_cli.changes import sentence, unchanged_groups


@pytest.mark.parametrize(
    ("paths", "changed", "groups"),
    [
        (["backbone/a", "backbone/b/c", "head/w"], ["head/w"], ["backbone/**"]),
        (["model/enc.0.w", "model/enc.0.b", "model/head.w"], ["model/head.w"], ["model/enc.*"]),
        (["m/a.w", "m/a.b", "m/c.w", "m/c.b"], ["m/a.w"], ["m/c.*"]),
        (["a/1", "a/2", "b/1"], ["a/1", "b/1"], []),
        (["w", "b"], ["w"], []),
    ],
)
def test_groups(paths, changed, groups):
    assert unchanged_groups(paths, changed) == groups


PATHS = st.lists(st.text("ab./", min_size=1, max_size=8), unique=True, max_size=20).filter(
    lambda paths: all("//" not in path and path.strip("/") == path for path in paths)
)


@given(PATHS, st.data())
def test_no_group_holds_an_array_that_changed(paths, data):
    changed = data.draw(st.lists(st.sampled_from(paths), unique=True)) if paths else []
    for glob in unchanged_groups(paths, changed):
        selected = [*filter(Selection.of(glob, ()), paths)]
        assert len(selected) > 1
        assert not {*selected} & {*changed}


def test_the_sentence_says_what_a_commit_changed():
    repo = ckptstore.init("memory://")
    state = {name: {"w": np.ones(30_000), "b": np.ones(3)} for name in ("backbone", "neck", "head")}
    first = repo.commit(state)

    def said(state):
        made = repo.commit(state)
        paths = [array.path for array in made.arrays]
        return sentence(made, repo.diff(made.parents[0], made.id), paths)

    assert said(state) == f"nothing changed since {first.id.short}"
    state["head"]["w"] = np.zeros(30_000)
    assert said(state).startswith("1 of 6 arrays changed; backbone/**, neck/** unchanged; +24")
    assert said(state | {"lr": 1}).startswith("0 of 6 arrays changed; ")
    del state["neck"]
    assert said({**state, "lr": 2}).startswith("0 of 4 arrays changed, 2 removed; ")
