"""`ckptstore bisect`: find the first bad checkpoint between a good and a bad one."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import click

from ckptstore.errors import InvalidInputError
from ckptstore_cli import output, text
from ckptstore_cli.answers import Answers, forget
from ckptstore_cli.children import environment, filled
from ckptstore_cli.options import common, complete_refs, revisions_argument
from ckptstore_cli.repo import command, open_repository, repo_option
from ckptstore_cli.search import GIVEN, Search

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ckptstore import Checkpoint, Repository
    from ckptstore.bisection import Answer

SKIP_CODE = 125
NOT_RUN_CODES = (126, 127)  # what a shell returns if it cannot run a command
CODE_MAX = 127  # a higher one, or a signal, ends the search


@click.group(no_args_is_help=True)
@repo_option
def bisect() -> None:
    """Find the first bad checkpoint by binary search.

    Between a good and a bad one, of a thousand checkpoints ten are tested. Each was made from the
    one before it: its first parent. Expired checkpoints cannot be tested and are left out.

    The answers are kept in a file of yours (in $XDG_STATE_HOME, or ~/.local/state), one for each
    repository. The repository itself is only read, so gc may expire a checkpoint meanwhile; the
    search then goes on without it.

    \b
    Examples:
      ckptstore bisect start main main@step=1000
      ckptstore bisect run python evaluate.py {id}
      ckptstore bisect reset
    """


@bisect.command()
@click.argument(
    "bad",
    metavar="[BAD]",
    required=False,
    shell_complete=complete_refs(),
    help="A checkpoint that is bad.",
)
@click.argument(
    "good",
    metavar="[GOOD]",
    required=False,
    shell_complete=complete_refs(),
    help="An older one that is good.",
)
@common
@click.pass_context
def start(ctx: click.Context, bad: str | None, good: str | None, as_json: bool) -> None:
    """Begin a search.

    The checkpoint to test first is printed.

    \b
    Examples:
      ckptstore bisect start main main@step=1000
      ckptstore bisect start
    """
    repo = open_repository(ctx)
    answers = Answers(url=repo.url)
    if bad is not None:
        answers = answers.plus([repo.resolve(bad).id], "bad")
    if good is not None:
        answers = answers.plus([repo.resolve(good).id], "good")
    named = [id for id, _ in answers.given]
    if len(named) > len({*named}):
        raise InvalidInputError(f"{bad} and {good} are the same checkpoint, {named[0].short}.")
    search = Search(repo, answers)
    answers.save(is_new=True)
    search.show(ctx, as_json=as_json)


def _answering(answer: Answer, help: str) -> click.Command:
    """The command that gives an answer."""

    @click.command(answer, help=help)
    @revisions_argument("The checkpoint.  [default: the one to test next]")
    @common
    @click.pass_context
    def give(ctx: click.Context, revs: tuple[str, ...], as_json: bool) -> None:
        repo = open_repository(ctx)
        answers = Answers.load(repo.url)
        ids = [repo.resolve(rev).id for rev in revs] or [Search(repo, answers).next.id]
        answers = answers.plus(ids, answer)
        search = Search(repo, answers)
        answers.save()
        search.show(ctx, as_json=as_json)

    return give


bisect.add_command(
    _answering(
        "good",
        """Call a checkpoint good.

        The one to test next is printed. The last answer for a checkpoint counts.
        """,
    )
)
bisect.add_command(
    _answering(
        "bad",
        """Call a checkpoint bad.

        The one to test next is printed. The last answer for a checkpoint counts.
        """,
    )
)
bisect.add_command(
    _answering(
        "skip",
        """Leave out a checkpoint that cannot be tested.

        The one to test next is printed. In the end, one that was left out is named with the others
        that may be the first bad one.
        """,
    )
)


@bisect.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument(
    "words",
    metavar="COMMAND...",
    nargs=-1,
    required=True,
    type=click.UNPROCESSED,
    help="The command and its arguments. {id} and {step} are those of the checkpoint.",
)
@common
@click.pass_context
def run(ctx: click.Context, words: tuple[str, ...], as_json: bool) -> None:
    """Let a command test the checkpoints.

    It is run for one after the other until the first bad one is found. Its exit code is the answer:
    0 for good, 125 for a checkpoint that cannot be tested, any other up to 127 for bad. A higher
    one, or a signal, ends the search; run it again to go on.

    In the environment of the command, CKPTSTORE_REV is the id of the checkpoint and CKPTSTORE_REPO
    the repository. With --json, its output goes to stderr.

    \b
    Examples:
      ckptstore bisect run python evaluate.py {id}
      ckptstore bisect run sh -c './test.sh $CKPTSTORE_REV'
    """
    repo = open_repository(ctx)
    child = _Child(repo, words, as_json=as_json)
    while True:
        answers = Answers.load(repo.url)
        search = Search(repo, answers)
        if search.state is None or search.state.next is None:
            break
        tested = search.next
        output.note(f"Testing {text.checkpoint(tested.id, tested.step)} ({search.rest}).")
        answer = child.answer(tested, good=search.checkpoints[search.state.good])
        if answer == "bad" and repo.resolve(tested.id).expired:
            output.note(f"{tested.id.short} has expired meanwhile, so it is left out.")
            continue
        output.note(f"{tested.id.short} is {GIVEN[answer]}.")
        Answers.load(repo.url).plus([tested.id], answer).save()  # others may have been added
    if search.state is None:
        raise InvalidInputError(search.missing(ctx))
    search.show(ctx, as_json=as_json)


@bisect.command()
@common
@click.pass_context
def log(ctx: click.Context, as_json: bool) -> None:
    """Print the answers so far, and what comes next.

    The answers are printed as the commands that give them again.
    """
    repo = open_repository(ctx)
    search = Search(repo, Answers.load(repo.url))
    if not as_json:
        output.line(command(ctx, "bisect", "start"))
        for id, answer in search.answers.given:
            output.line(f"{command(ctx, 'bisect', answer, id.short)}  # {search.described(id)}")
    search.show(ctx, as_json=as_json)


@bisect.command()
@common
@click.pass_context
def reset(ctx: click.Context, as_json: bool) -> None:
    """End the search and forget the answers."""
    was_there = forget(open_repository(ctx).url)
    if as_json:
        output.document({"reset": was_there})
    else:
        output.line("The bisect has ended." if was_there else "No bisect was under way.")


class _Child:
    """Runs a command for checkpoints, and takes its exit code as the answer."""

    def __init__(self, repo: Repository, words: Sequence[str], *, as_json: bool) -> None:
        self._repo, self._words = repo, words
        self._options: Mapping[str, Any] = {"stdout": 2} if as_json else {}  # JSON goes there
        self._is_known_to_run = False

    def answer(self, tested: Checkpoint, *, good: Checkpoint) -> Answer:
        """Return the answer about a checkpoint.

        Raises:
            InvalidInputError: The command gives none, or cannot be run.
        """
        code = self._run(tested)
        if code in NOT_RUN_CODES and not self._is_known_to_run and self._run(good) == code:
            raise InvalidInputError(
                f"The command ends with exit code {code} for the good checkpoint {good.id.short} "
                "too, as one that cannot be run. No answer was recorded."
            )
        self._is_known_to_run = True
        if not 0 <= code <= CODE_MAX:
            how = f"exit code {code}" if code > 0 else f"signal {-code}"
            raise InvalidInputError(
                f"The command ended with {how} for {tested.id.short}, which is no answer: 0 is "
                f"good, {SKIP_CODE} skips, others up to {CODE_MAX} are bad. None was recorded."
            )
        return "good" if not code else "skip" if code == SKIP_CODE else "bad"

    def _run(self, checkpoint: Checkpoint) -> int:
        words = [filled(word, checkpoint) for word in self._words]
        env = environment(self._repo, checkpoint)
        try:
            done = subprocess.run(words, env=env, check=False, **self._options)  # noqa: S603 - asked
        except (OSError, ValueError) as error:  # no such program, or a NUL in an argument
            raise InvalidInputError(f"The command cannot be run: {error}.") from None
        return done.returncode
