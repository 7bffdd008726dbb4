"""Group: the ranks of one training, which make and restore each checkpoint together.

Rank 0 decides and publishes. Each rank puts the boxes that it holds of sharded arrays, and what
differs between ranks: random states, positions in the data, modules that are not replicas. Of all
else the copy of rank 0 is kept. ADR 0069.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from blake3 import blake3

from ckptstore.arrays.dtensor import any_sharded, is_sharded
from ckptstore.arrays.frameworks import is_module
from ckptstore.arrays.modules import is_replicated, plain_name
from ckptstore.checkout.handover import is_optimizer
from ckptstore.commit.rank_state import RankState
from ckptstore.commit.shards import PutShards, grids_of, put_shards
from ckptstore.documents.facts import Facts
from ckptstore.documents.names import escape_key
from ckptstore.documents.nodes import ArrayNode, DictNode
from ckptstore.errors import ConflictError, InvalidInputError, RankError, check_choice
from ckptstore.rank_group import RankGroup
from ckptstore.state import tree
from ckptstore.state.paths import join
from ckptstore.state.tree import path_of
from ckptstore.training.mirrored import checked_timeout
from ckptstore.training.ranks import rank_and_size
from ckptstore.training.tracked import PROGRESS, RANDOM, RANKS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.commit.committer import Begun, Committer
    from ckptstore.commit.shards import Shard
    from ckptstore.commit.staging import Staging
    from ckptstore.digest import Digest
    from ckptstore.documents.nodes import Key, Node
    from ckptstore.rank_group import Meeting
    from ckptstore.repository import Repository
    from ckptstore.training.preemption import Preemption
    from ckptstore.training.tracked import Stateful

Value = TypeVar("Value")

RANK_CHOICES = ("all", "first")
RANK_SECONDS = 600.0  # to wait for another rank, unless the caller sets another time


class Group:
    """The ranks of one training.

    Args:
        repository: The repository, which each rank opens by itself.
        branch: The branch.
        seconds: How long a rank may take to come to what all do together.
        replicas: The names of tracked modules that torch keeps equal on all ranks.
    """

    def __init__(
        self, repository: Repository, branch: str, *, seconds: float, replicas: Collection[str]
    ) -> None:
        self._repository = repository
        # The second is used in the background, where meetings have an order of their own.
        self._calls = RankGroup(f"manager of {branch}", timeout=seconds)
        self._saves = RankGroup(f"saves to {branch}", timeout=seconds)
        self._replicas = frozenset(replicas)
        self._is_told = False
        self._flags = self._asks = 0  # of all ranks on rank 0, elsewhere of this rank

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return self._calls.rank

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self._calls.size

    def told(self, decide: Callable[[], Value], purpose: str) -> Value:
        """Return on all ranks what rank 0 decides, which waits for none.

        Raises:
            RankError: Rank 0 failed, or does not come. On rank 0, its error itself.
        """
        with own_errors(self.rank), self._calls.meeting(purpose) as meeting:
            return meeting.told(decide)

    def together(self, act: Callable[[], Value], purpose: str) -> Value:
        """Do something on all ranks, which all fail where one does.

        Raises:
            RankError: Another rank failed, or does not come. Where an error happened, it itself.
        """
        result: list[Value] = []
        with own_errors(self.rank), self._calls.meeting(purpose) as meeting:
            meeting.agree(lambda: result.append(act()), lambda _: None)
        return result[0]

    def end(self, error: BaseException) -> None:
        """Have the other ranks raise an error where they wait for this one."""
        for group in (self._calls, self._saves):
            with suppress(BaseException), group.meeting("run"):
                raise error

    def carry(self, preemption: Preemption) -> None:
        """Carry signals of other ranks to rank 0, which decides what is saved."""
        if not preemption.signals or self.size == 1:
            return
        if self.rank == 0:
            if (flags := self._calls.flags) != self._flags:
                self._flags = flags
                self._read_flags(preemption)
            return
        if (preemption.is_asked and not self._is_told) or preemption.is_save_asked:
            self._is_told = preemption.is_asked
            self._asks += preemption.is_save_asked
            preemption.is_save_asked = False
            number = int(preemption.asked_by) if preemption.is_asked else 0
            self._calls.raise_flag(f"{number} {self._asks}")

    def _read_flags(self, preemption: Preemption) -> None:
        asks = 0
        for rank in range(1, self.size):
            number, of_rank = map(int, (self._calls.flag(rank) or b"0 0").split())
            if number:
                preemption.note_of_other(number)
            asks += of_rank
        preemption.is_save_asked |= asks > self._asks
        self._asks = asks

    def save(self, step: int) -> GroupSave:
        """Begin a save, the same on all ranks, which is numbered now, whenever it runs."""
        meeting = self._saves.meeting(f"save of step {step}")
        return GroupSave(self._repository, self._saves, meeting, self._replicas)


@contextmanager
def own_errors(rank: int) -> Iterator[None]:
    """Raise the error of this rank itself where it made all ranks fail."""
    try:
        yield
    except RankError as error:
        own = error.failures.get(rank)
        if isinstance(own, Exception) and not isinstance(own, TimeoutError):
            raise own from None
        if any("has not come" in str(failure) for failure in error.failures.values()):
            hint = (
                "Every rank has to make the CheckpointManager, and to call save, restore and close "
                "alike. Pass ranks='first' where rank 0 alone is to save, or a longer rank_timeout."
            )
            raise RankError(f"{error} {hint}", error.failures) from error.__cause__
        raise


def checked_ranks(ranks: object, timeout: object) -> float | None:
    """Return the seconds to wait for other ranks; None where rank 0 alone is to save.

    Raises:
        InvalidInputError: One of the arguments is invalid.
    """
    check_choice(ranks, RANK_CHOICES, name="ranks")
    seconds = checked_timeout(timeout, name="rank_timeout")
    if not seconds > 0:
        raise InvalidInputError("rank_timeout is 0; a number of seconds above 0 is expected.")
    return seconds if ranks == "all" else None


def joined_group(
    repository: Repository,
    branch: str,
    given: Mapping[str, object],
    tracked: Mapping[str, object],
    *,
    seconds: float | None,
) -> Group | None:
    """Return the group of a manager; None in a single process, or if rank 0 alone is to save.

    Args:
        repository: The repository.
        branch: The branch.
        given: The objects by name, in their wrappers.
        tracked: The same without wrappers.
        seconds: What `checked_ranks` returned.
    """
    is_shared = rank_and_size()[1] > 1 or any(
        any_sharded(item) for item in tracked.values() if is_module(item)
    )
    if seconds is None or not is_shared:
        return None
    replicas = {name for name in tracked if is_replicated(given[name])}
    return Group(repository, branch, seconds=seconds, replicas=replicas)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begin:
    """The message of rank 0 at the start of a save.

    begun: the state of the branch. prints: of what it has that may differ between ranks, by name.
    sharded: the names of its sharded tensors, as a digest.
    """

    begun: Begun
    prints: Mapping[str, str]
    sharded: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """The message of a rank after its puts: these, and the nodes of its own objects by name."""

    put: PutShards
    nodes: Mapping[str, Node]


@dataclass(slots=True)
class GroupSave:
    """One save of all ranks.

    Attributes:
        repository: The repository.
        group: The ranks.
        meeting: That of this save.
        replicas: The names of modules that are equal on all ranks.
    """

    repository: Repository
    group: RankGroup
    meeting: Meeting
    replicas: frozenset[str]
    _part: _Part | None = None

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Have the other ranks know of an error before this rank comes to do its part."""
        try:
            yield
        except BaseException:
            if self._part is None:  # else the error is one of `run`
                with suppress(BaseException), self.meeting:
                    raise
            raise

    def take(
        self, state: dict[str, Any], tracked: Mapping[str, Stateful], staging: Staging | None
    ) -> None:
        """Take what this rank has to save apart, and copy it if there is a staging."""
        part = _Part.of(state, tracked, rank=self.group.rank, replicas=self.replicas)
        if staging is not None:
            part.state = part.state.staged(staging.copy_arrays(part.state.flat))
        self._part = part

    def run(
        self,
        branch: str,
        commit: Callable[[Callable[..., Checkpoint]], Checkpoint],
        put: Callable[[Callable[[], PutShards]], PutShards],
    ) -> Checkpoint:
        """Do the part of this rank, and return the checkpoint.

        Args:
            branch: The branch.
            commit: Called on rank 0 with a function that takes the arguments of
                `Repository.commit`, in place of which it joins what all ranks have put. It may be
                called again.
            put: Called with a function that puts what this rank holds, likewise.

        Raises:
            RankError: Another rank failed, or does not come.
            CkptStoreError: This rank failed.
        """
        part, committer = self._taken, self.repository._committer()  # noqa: SLF001

        def begin() -> _Begin | None:
            if self.group.rank:
                return None
            prints = part.prints() if self.group.size > 1 else {}
            return _Begin(begun=committer.begin(branch), prints=prints, sharded=part.sharded)

        def sent() -> _Sent:
            names = part.names_of_rank(begun.prints) if self.group.rank else []
            part.check_alike(begun.sharded)
            shards = [*self._shards(begun.begun.head), *part.wholes(names)]
            done = put(lambda: self._put(shards, begun.begun.head))
            return _Sent(put=done, nodes={name: part.node_of(name, names) for name in names})

        def publish(all_sent: Sequence[_Sent]) -> Digest:
            make = partial(self._published, committer, begun.begun, all_sent)
            return commit(make).id

        meter = self.repository._side().catalog.objects.meter  # noqa: SLF001
        advance = meter.also_heard_by(lambda _: self.group.advance())
        with own_errors(self.group.rank), self.meeting as meeting, advance:
            begun = meeting.agree(begin, _first)
            made = meeting.agree(sent, publish)
        return self.repository.resolve(made)

    def _published(
        self,
        committer: Committer,
        begun: Begun,
        sent: Sequence[_Sent],
        state: object,  # noqa: ARG002 - the parts of it were put
        *,
        branch: str,
        parent: Digest | None,
        retry: bool,
        **facts: Any,
    ) -> Checkpoint:
        """Join what all ranks have put, and publish it, as `Repository.commit` does."""
        head = begun.head
        if parent not in (None, head):
            raise ConflictError(
                f"Branch {branch!r} is at {head.short if head else 'no checkpoint'}, not at "
                f"{parent.short if parent else ''}, which was to be the parent. Nothing was "
                "committed."
            )
        made, _ = committer.commit_shards(
            self._root(sent),
            [one.put for one in sent],
            branch=branch,
            facts=Facts.of(**facts),
            retry=retry,
            begun=begun,
        )
        return self.repository.resolve(made)

    @property
    def _taken(self) -> _Part:
        assert self._part is not None, "a state is taken before it is put"
        return self._part

    def _root(self, sent: Sequence[_Sent]) -> Node:
        root = self._taken.state.flat.root
        nodes: dict[Key, Node] = {
            str(rank): DictNode(dict(one.nodes.items()))
            for rank, one in enumerate(sent)
            if one.nodes
        }
        if not nodes or not isinstance(root, DictNode):
            return root
        return replace(root, items={**root.items, RANKS: DictNode(nodes)})

    def _shards(self, parent: Digest | None) -> Iterable[Shard]:
        side = self.repository._side()  # noqa: SLF001
        state = self._taken.state
        grids = grids_of(parent, side.catalog) if state.layouts else {}
        return state.shards(self.group.rank, grids=grids, chunk_bytes=side.chunk_bytes)

    def _put(self, shards: Sequence[Shard], parent: Digest | None) -> PutShards:
        side = self.repository._side()  # noqa: SLF001
        paths = {shard.path for shard in shards}
        tied = self._taken.state.flat.tied
        return put_shards(
            shards,
            tied={path: first for path, first in tied.items() if {path, first} <= paths},
            catalog=side.catalog,
            parent=parent,
            chunk_bytes=side.chunk_bytes,
        )


def _first(values: Sequence[_Begin | None]) -> _Begin:
    """The message of rank 0."""
    assert values[0] is not None, "rank 0 says something"
    return values[0]


@dataclass(slots=True, kw_only=True)
class _Part:
    """The state of one rank, and what of it may differ between ranks.

    base: the path below which that is. names: of what may differ. parameters: of modules among
    these, the paths of parameters below their own path. follows: of optimizers, their modules.
    """

    state: RankState
    base: str
    names: tuple[str, ...]
    parameters: Mapping[str, frozenset[str]]
    follows: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(
        cls,
        state: dict[str, Any],
        tracked: Mapping[str, Any],
        *,
        rank: int,
        replicas: frozenset[str],
    ) -> _Part:
        """Take a state apart. Ranks but the first leave out what is a copy of rank 0's."""
        sharded = {name for name, value in state.items() if _has_shards(value)}
        follows = {
            name: modules
            for name, item in tracked.items()
            if is_optimizer(item) and (modules := _modules_of(item, tracked))
        }
        alike = sharded | replicas | {PROGRESS}
        alike |= {name for name, item in tracked.items() if getattr(item, "is_replica", False)}
        alike |= {name for name, modules in follows.items() if alike.issuperset(modules)}
        own = {name: value for name, value in state.items() if name not in alike}
        base = ""
        if rank > 0:
            base = f"{RANKS}/{rank}"
            shards = {name: value for name, value in state.items() if name in sharded}
            state = shards | {RANKS: {str(rank): own}}
        found = RankState.of(state)
        if rank > 0:
            arrays = {
                path: source
                for path, source in found.flat.arrays.items()
                if path in found.layouts or path.startswith(f"{base}/")
            }
            found = replace(found, flat=replace(found.flat, arrays=arrays))
        return cls(
            state=found,
            base=base,
            names=tuple(own),
            parameters={
                name: frozenset(escape_key(plain_name(each)) for each, _ in item.named_parameters())
                for name, item in tracked.items()
                if name in own and is_module(item)
            },
            follows={name: modules for name, modules in follows.items() if name in own},
        )

    @property
    def sharded(self) -> str:
        """A digest of the paths of sharded tensors."""
        return blake3("\n".join(sorted(self.state.layouts)).encode()).hexdigest()

    def check_alike(self, of_rank_0: str) -> None:
        """Raise InvalidInputError unless rank 0 has the sharded tensors that this rank has."""
        if self.sharded != of_rank_0:
            raise InvalidInputError(
                f"This rank has {len(self.state.layouts)} sharded tensors, and those of rank 0 are "
                "not the same. Ranks save one state together: track the same objects on all."
            )

    def node(self, name: str) -> Node:
        """The node of a name."""
        root: Any = self.state.flat.root
        for key in (*self.base.split("/"), name) if self.base else (name,):
            root = root.items[key]
        node: Node = root
        return node

    def prints(self) -> dict[str, str]:
        """A digest of each object that may differ between ranks; of modules, of parameters."""
        return {
            name: self._print(name)
            for name in self.names
            if name != RANDOM and name not in self.follows
        }

    def _print(self, name: str) -> str:
        home = join(self.base, path_of(name))
        chosen = self.parameters.get(name)
        hasher = blake3()
        if chosen is None:
            short = len(home)
            outline = tree.relabel(
                self.node(name), lambda node: ArrayNode(node.kind, node.path[short:])
            )
            hasher.update(repr(outline).encode())
        for path, source in self.state.flat.arrays.items():
            below = path[len(home) + 1 :]
            if path != home and not path.startswith(f"{home}/"):
                continue
            if chosen is None or below in chosen:
                hasher.update(f"{below}\0{source.dtype}\0{source.shape}\0".encode())
                for piece in source.pieces():
                    hasher.update(piece)
        return hasher.hexdigest()

    def names_of_rank(self, prints: Mapping[str, str]) -> list[str]:
        """The names of what this rank keeps beside rank 0's, of which these are the prints."""
        found = {name for name, own in self.prints().items() if prints.get(name) != own}
        found |= {name for name, modules in self.follows.items() if found.intersection(modules)}
        return [name for name in self.names if name in found or name == RANDOM]

    def wholes(self, names: Iterable[str]) -> Iterator[Shard]:
        """The arrays that this rank has to put whole: on rank 0 all, on others those of names."""
        homes = tuple(join(self.base, path_of(name)) for name in names)
        for shard in self.state.wholes():
            path = shard.path
            if not self.base or path in homes or path.startswith(tuple(f"{h}/" for h in homes)):
                yield shard

    def node_of(self, name: str, names: Iterable[str]) -> Node:
        """The node of a name, whose ties to names that are not kept are cut."""
        kept = {shard.path for shard in self.wholes(names)}

        def cut(node: ArrayNode) -> Node:
            return node if node.tied in kept else ArrayNode(node.kind, node.path)

        return tree.relabel(self.node(name), cut)


def _modules_of(optimizer: Any, tracked: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the tracked modules that have all parameters of an optimizer; () if not all."""
    homes = {
        id(parameter): name
        for name, item in tracked.items()
        if is_module(item)
        for parameter in item.parameters()
    }
    found = [homes.get(id(p)) for group in optimizer.param_groups for p in group["params"]]
    return () if None in found else tuple(dict.fromkeys(name for name in found if name))


def _has_shards(value: Any) -> bool:
    """Whether a state holds DTensors."""
    if isinstance(value, dict):
        return any(map(_has_shards, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_shards, value))
    return is_sharded(value)
