"""Where a bisect stands: its checkpoints, and what is printed about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.bisection import bisection
from ckptstore.errors import InvalidInputError
from ckptstore_cli import documents, output, text
from ckptstore_cli.fields import one_line
from ckptstore_cli.repo import command

if TYPE_CHECKING:
    import click

    from ckptstore import Checkpoint, Digest, Repository
    from ckptstore.bisection import Answer, Bisection
    from ckptstore_cli.answers import Answers

GIVEN = {"good": "good", "bad": "bad", "skip": "skipped"}


class Search:
    """Where a search stands, by its answers and what the repository has now.

    Attributes:
        answers: The answers.
        checkpoints: The checkpoints, by id: the newest bad one and its first parents.
        state: The state of the search; None while no good or no bad checkpoint is named.

    Raises:
        InvalidInputError: The answers contradict each other, or are about another history.
    """

    def __init__(self, repo: Repository, answers: Answers) -> None:
        self._repo = repo
        self.answers = answers
        bad = answers.of("bad")
        self.checkpoints = _first_parents(repo, bad[0]) if bad else {}
        self.state: Bisection[Digest] | None = None
        if bad:
            for id, answer in answers.given:
                self._check(id, answer, newest=bad[0])
        latest = dict(answers.given).values()
        if "good" in latest and "bad" in latest:
            self.state = bisection(
                [*reversed(self.checkpoints)],
                answers.given,
                untestable={c.id for c in self.checkpoints.values() if c.expired},
            )

    @property
    def next(self) -> Checkpoint:
        """The checkpoint to test next."""
        if self.state is None or self.state.next is None:
            raise InvalidInputError("There is no checkpoint to test next. Name one.")
        return self.checkpoints[self.state.next]

    @property
    def rest(self) -> str:
        """How much is left: "7 left, about 3 tests"."""
        assert self.state is not None
        tests = text.count(self.state.steps, "test")
        return f"{len(self.state.left):,} left, about {tests}"

    def described(self, id: Digest) -> str:
        """A checkpoint without its id, for a comment."""
        known = self.checkpoints.get(id)
        return one_line(known or self._repo.resolve(id)).removeprefix(id.short).strip()

    def missing(self, ctx: click.Context) -> str:
        """How to name what is missing before the search can begin."""
        latest = dict(self.answers.given).values()
        words = [word for word in ("bad", "good") if word not in latest]
        lines = " and ".join(command(ctx, "bisect", word, "REV") for word in words)
        return f"Name a {' and a '.join(words)} checkpoint: {lines}"

    def show(self, ctx: click.Context, *, as_json: bool) -> None:
        """Print the checkpoint to test next, or the first bad one.

        Exits with 1 where the search has ended and several may be the first.
        """
        if as_json:
            output.document(self._document())
        elif self.state is None:
            output.note(self.missing(ctx))
        elif self.state.next is not None:
            output.note(f"To test next ({self.rest}):")
            output.line(one_line(self.next))
            output.note("Then: ckptstore bisect good, bad or skip.")
        else:
            self._show_end(ctx, self.state)
        if self.state is not None and self.state.next is None and self.state.found is None:
            ctx.exit(1)

    def _show_end(self, ctx: click.Context, state: Bisection[Digest]) -> None:
        for id in state.suspects:
            output.line(one_line(self.checkpoints[id]))
        good = self.checkpoints[state.good]
        last_good = f"The last good one is {text.checkpoint(good.id, good.step)}."
        if state.found is None:
            count = len(state.suspects)
            output.note(
                f"The first bad checkpoint is one of these {count}: all but the last could not be "
                f"tested. {last_good}"
            )
        else:
            output.note(f"This is the first bad checkpoint. {last_good}")
        if not good.expired and not self.checkpoints[state.bad].expired:
            compare = command(ctx, "diff", good.id.short, state.bad.short, "--numeric")
            output.note(f"To compare them: {compare}")

    def _check(self, id: Digest, answer: Answer, *, newest: Digest) -> None:
        """Raise InvalidInputError for an answer about another history."""
        if id in self.checkpoints:
            return
        theirs = _first_parents(self._repo, id)
        common = next((other for other in theirs if other in self.checkpoints), None)
        if newest in theirs:
            hint = (
                "It is newer: name it first, in a new bisect."
                if answer == "bad"
                else (
                    "It is newer. A bisect finds where good became bad; for the other way round, "
                    "exchange the two words in all answers."
                )
            )
        elif common is None:
            hint = "They have no checkpoint in common."
        else:
            shared = self.checkpoints[common]
            hint = f"Both were made from {text.checkpoint(shared.id, shared.step)}."
        raise InvalidInputError(
            f"Checkpoint {id.short} cannot be called {GIVEN[answer]}: it is not in the history of "
            f"{newest.short}, which is bad. {hint}"
        )

    def _document(self) -> documents.Document:
        state = self.state
        following = None if state is None or state.next is None else state.next
        return {
            "bad": None if state is None else state.bad,
            "good": None if state is None else state.good,
            "next": None if following is None else documents.checkpoint(self.next),
            "left": None if state is None else len(state.left),
            "steps": None if state is None else state.steps,
            "first_bad": None if state is None or following else state.found,
            "suspects": [] if state is None else list(state.suspects),
            "answers": [{"id": id, "answer": answer} for id, answer in self.answers.given],
        }


def _first_parents(repo: Repository, id: Digest) -> dict[Digest, Checkpoint]:
    """A checkpoint, its first parent, the first parent of that, and so on, by id."""
    history = {checkpoint.id: checkpoint for checkpoint in repo.log(id)}
    found: dict[Digest, Checkpoint] = {}
    at: Digest | None = id
    while at in history and at not in found:
        found[at] = history[at]
        at = next(iter(found[at].parents), None)
    return found
