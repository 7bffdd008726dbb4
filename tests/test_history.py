"""The graph of checkpoints: each reachable one once, children before parents."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ckptstore.digest import Digest
from ckptstore.documents.manifest import Manifest
from ckptstore.history import ancestors, first_parents

Graph = dict[Digest, Manifest]


def name(number: int) -> Digest:
    return Digest.of(str(number).encode())


def manifest(parents: list[int], created: int) -> Manifest:
    listed = tuple(map(name, parents))
    return Manifest(pages=(), structure=name(-1), parents=listed, created=created)


@st.composite
def graphs(draw: st.DrawFn, *, honest: bool = True) -> Graph:
    """Up to twelve checkpoints; parents are older only if the clock is honest."""
    count = draw(st.integers(1, 12))
    made = {}
    for number in range(count):
        others = st.integers(0, number - 1 if honest else count - 1)
        parents = draw(st.lists(others, max_size=3, unique=True)) if number or not honest else []
        created = number if honest else draw(st.integers(0, 5))
        made[name(number)] = manifest(parents, created)
    return made


def reachable(graph: Graph, starts: list[Digest]) -> set[Digest]:
    found: set[Digest] = set()
    queue = [start for start in starts if start in graph]
    while queue:
        id = queue.pop()
        if id not in found:
            found.add(id)
            queue += [parent for parent in graph[id].parents if parent in graph]
    return found


@given(graphs(), st.lists(st.integers(0, 14).map(name), max_size=5))
def test_with_an_honest_clock_all_ancestors_come_newest_first(
    graph: Graph, starts: list[Digest]
) -> None:
    found = list(ancestors(starts, graph.get))
    assert dict(found) == {id: graph[id] for id in reachable(graph, starts)}
    assert len(found) == len(dict(found))
    times = [manifest.created for _, manifest in found]
    assert times == sorted(times, reverse=True)


@given(graphs(honest=False), st.lists(st.integers(0, 14).map(name), max_size=5))
def test_any_clock_and_even_a_cycle_give_each_ancestor_once(
    graph: Graph, starts: list[Digest]
) -> None:
    found = [id for id, _ in ancestors(starts, graph.get)]
    assert sorted(found) == sorted(reachable(graph, starts))
    seen = set(starts)
    for id in found:  # each is a start or the parent of one that came before
        assert id in seen
        seen.update(graph[id].parents)


@given(graphs(honest=False), st.integers(0, 14).map(name))
def test_first_parents_follow_one_line_and_end(graph: Graph, start: Digest) -> None:
    found = [id for id, _ in first_parents(start, graph.get)]
    assert len(set(found)) == len(found)
    expected = start if start in graph else None
    for id in found:
        assert id == expected
        parents = graph[id].parents
        expected = parents[0] if parents and parents[0] in graph else None
    assert expected is None or expected in found


def test_of_checkpoints_of_one_moment_the_one_found_first_comes_first() -> None:
    graph = {name(n): manifest([], created=7) for n in range(3)}
    starts = [name(2), name(0), name(1), name(0)]
    assert [id for id, _ in ancestors(starts, graph.get)] == starts[:3]
