"""Draw a graph of checkpoints in text, as `git log --graph` does. Pure: ids in, lines out.

Each column ("lane") waits for one id. A checkpoint is a `*` in its lane; lanes that wait for the
same checkpoint join, and a checkpoint with several parents opens lanes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def order(parents: Mapping[str, Sequence[str]]) -> list[str]:
    """The ids, each before its parents and each branch in one run, else in the order given."""
    waiting = dict.fromkeys(parents, 0)
    for id in parents:
        for parent in _known(id, parents):
            waiting[parent] += 1
    ready = [id for id in reversed(list(parents)) if not waiting[id]]
    ordered: list[str] = []
    while ready:
        id = ready.pop()
        ordered.append(id)
        for parent in reversed(_known(id, parents)):
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)
    return ordered


def draw(parents: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str | None]]:
    """Yield pairs of a drawn line and the id it shows; None on a line that only moves lanes.

    Args:
        parents: The parents of each id. The lane of a parent that is not a key stays open.
    """
    lanes: list[str] = []
    for id in order(parents):
        if id not in lanes:
            lanes.append(id)
        column = lanes.index(id)
        yield _checkpoint(column, len(lanes)), id
        first, *others = dict.fromkeys(parents[id]) or (None,)
        for position, other in enumerate(others, start=column + 1):
            yield _opening(position, len(lanes)), None
            lanes.insert(position, other)
        if first is None:
            if column < len(lanes) - 1:
                yield _closing(column, len(lanes)), None
            del lanes[column]
        else:
            lanes[column] = first
        yield from _joining(lanes)


def _known(id: str, parents: Mapping[str, Sequence[str]]) -> list[str]:
    return [parent for parent in dict.fromkeys(parents[id]) if parent in parents]


def _joining(lanes: list[str]) -> Iterator[tuple[str, None]]:
    """Join lanes that wait for the same id, the right one into the left one."""
    while len(set(lanes)) < len(lanes):
        right = next(lane for lane, id in enumerate(lanes) if id in lanes[:lane])
        for line in _joins(lanes.index(lanes[right]), right, len(lanes)):
            yield line, None
        del lanes[right]


def _checkpoint(column: int, width: int) -> str:
    return _line({2 * lane: "*" if lane == column else "|" for lane in range(width)})


def _opening(position: int, width: int) -> str:
    """A lane opens at this position: the lanes from there on move right."""
    moving = {2 * lane + 1: "\\" for lane in range(position - 1, width)}
    return _line(_upright(position) | moving)


def _closing(column: int, width: int) -> str:
    """The lane at this column has ended: the lanes to its right move left."""
    return _line(_upright(column) | _moving_left(column + 1, width))


def _joins(left: int, right: int, width: int) -> list[str]:
    """The lane at `right` joins the lane at `left`; the lanes to its right move left."""
    bridge = dict.fromkeys(range(2 * left + 3, 2 * right - 2, 2), "_")
    lines = [_line(_upright(right) | bridge | _moving_left(right, width))]
    if right > left + 1:
        lines.append(_line(_upright(width - 1) | {2 * left + 1: "/"}))
    return lines


def _upright(width: int) -> dict[int, str]:
    return dict.fromkeys(range(0, 2 * width, 2), "|")


def _moving_left(first: int, width: int) -> dict[int, str]:
    return {2 * lane - 1: "/" for lane in range(first, width)}


def _line(marks: Mapping[int, str]) -> str:
    return "".join(marks.get(position, " ") for position in range(max(marks) + 1))
