"""Settings fall into parts that can be put back one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.documents.settings import former_names, parts, renamed, ttl_seconds, with_part
from ckptstore.errors import InvalidInputError

NAMES = st.sampled_from(("a", "b", "runs/c"))
POLICIES = st.sampled_from(({"kind": "keep_all"}, {"kind": "max_to_keep", "n": 3}))
PARTS = st.dictionaries(
    st.one_of(
        st.just("retention"),
        NAMES.map(lambda name: f"branch_retention/{name}"),
    ),
    POLICIES,
) | st.dictionaries(NAMES.map(lambda name: f"leases/{name}"), st.just({"id": "x", "until": 1}))


@given(PARTS, PARTS)
def test_setting_every_part_gives_the_settings_again(
    wanted: dict[str, object], others: dict[str, object]
) -> None:
    settings: dict[str, object] = {}
    for name, value in others.items():
        settings = with_part(settings, name, value)
    assert parts(settings) == others
    for name in others.keys() | wanted.keys():
        settings = with_part(settings, name, wanted.get(name))
    assert parts(settings) == wanted
    assert settings or not wanted


@pytest.mark.parametrize("value", [5, [5], "x"])
@pytest.mark.parametrize("key", ["branch_retention", "leases", "renamed", "begun"])
def test_a_setting_in_a_form_of_a_later_version_is_not_changed(key: str, value: object) -> None:
    for change in (None, {"kind": "keep_all"}):
        with pytest.raises(InvalidInputError, match=f"The setting {key} is .*does not know"):
            with_part({key: value}, f"{key}/main", change)
    assert with_part({key: value}, key, None) == {}


def test_the_name_of_an_unknown_setting_may_have_a_slash() -> None:
    settings = with_part({"other": 1}, "of/later", 5)
    assert parts(settings) == settings == {"other": 1, "of/later": 5}


@pytest.mark.parametrize("value", [None, 5, [], [5], {"a": 1}, [{"branches": "a", "policy": {}}]])
@pytest.mark.parametrize("key", ["branch_retention", "other"])
def test_what_is_in_no_known_form_is_one_part(key: str, value: object) -> None:
    found = parts({key: value})
    assert found == ({key: value} if found else {})
    assert bool(found) == (value != [] or key == "other")


def test_a_branch_that_is_renamed_keeps_its_policy_and_remembers_its_names() -> None:
    settings = {"branch_retention": [{"branches": ["a", "z"], "policy": {"kind": "keep_all"}}]}
    settings = renamed(renamed(settings, "a", "b"), "b", "c")
    assert parts(settings) == {
        "branch_retention/c": {"kind": "keep_all"},
        "branch_retention/z": {"kind": "keep_all"},
        "renamed/c": ["a", "b"],
    }
    assert former_names(settings, "c") == ("a", "b")
    assert former_names(renamed(settings, "c", "a"), "a") == ("b", "c")
    assert former_names(settings, "z") == ()


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [("6h", 21600), ("90min", 5400), ("90m", 5400), ("2d", 172800), ("1.5 h", 5400), (30, 30)],
)
def test_a_ttl_is_a_number_of_seconds_or_a_text(ttl: object, seconds: float) -> None:
    assert ttl_seconds(ttl) == seconds


@pytest.mark.parametrize(
    "ttl",
    [0, -1, True, None, "6", "h", "6 years", "-6h", float("nan"), float("inf"), 1e12, "9" * 9],
)
def test_what_is_no_time_is_refused(ttl: object) -> None:
    with pytest.raises(InvalidInputError, match="The ttl is"):
        ttl_seconds(ttl)
