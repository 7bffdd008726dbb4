"""`ckptstore config`: the settings of a repository."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckptstore.errors import shown
from ckptstore.metric_names import known_names
from ckptstore_cli import output, text
from ckptstore_cli.options import Duration, common, complete_refs
from ckptstore_cli.policies import policy_of, policy_options
from ckptstore_cli.refs import note_training
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from ckptstore import Repository
    from ckptstore.retention import Policy


class _Setting(click.Choice[str]):
    """The name of a setting."""

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:
        """Leave out the choices, as the usage shows them."""
        return ""

    def get_invalid_choice_message(self, value: object, ctx: click.Context | None) -> str:
        """Name the settings that there are."""
        return f"There is no setting {value!r}; there are 'retention' and 'grace'."


@click.command()
@click.argument(
    "setting",
    type=_Setting(["retention", "grace"]),
    metavar="{retention|grace}",
    help="The setting.",
)
@click.argument(
    "time",
    type=Duration(),
    required=False,
    metavar="[TIME]",
    help="The grace time, such as 12h or 7d.",
)
@policy_options
@click.option(
    "-b",
    "--branch",
    metavar="NAME",
    shell_complete=complete_refs(tags=False),
    help="The policy of this branch alone, which replaces that of all branches there.",
)
@click.option("--unset", is_flag=True, help="Remove the saved value.")
@common
@click.pass_context
def config(
    ctx: click.Context,
    /,
    setting: str,
    time: float | None,
    branch: str | None,
    unset: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Show or change a setting of the repository.

    retention is the policy that decides which checkpoints gc keeps when it runs without options. A
    branch may have a policy of its own; a CheckpointManager saves its policy for its branch.

    Saving a policy deletes nothing by itself. The next gc without options applies it, and a running
    CheckpointManager applies it at its next save: the policy of its branch, or that of all branches
    if neither the branch nor the manager has one. Try a policy with gc --dry-run first. undo takes
    the change back, but not what was deleted meanwhile.

    grace is the time for which gc keeps checkpoints after they lost their branch or tag; a day if
    it is not set.

    \b
    Examples:
      ckptstore config retention --max-to-keep 5 --keep-best val_loss
      ckptstore config retention --branch run-7 --keep-all
      ckptstore config retention
      ckptstore config retention --unset
      ckptstore config grace 7d
    """
    policy = policy_of(options)
    if unset and (policy is not None or time is not None):
        raise click.UsageError("Give a value to save, or --unset, not both.", ctx)
    repo = open_repository(ctx)
    if setting == "grace":
        if policy is not None or branch is not None:
            raise click.UsageError("grace takes no policy and no branch, only a time.", ctx)
        _grace(repo, time, unset=unset, as_json=as_json)
        return
    if time is not None:
        raise click.UsageError("retention takes no time. See --keep-within.", ctx)
    saved = repo.retention(branch)
    if unset and saved is not None and not as_json:
        output.note(f"Removed the policy: {saved}")
    if unset or policy is not None:
        repo.set_retention(policy, branch=branch)
        saved = policy
    _print(saved, branch, as_json=as_json)
    if branch is not None and (unset or policy is not None):
        note_training(repo, branch, "It applies this at its next save.")
    if policy is not None and not as_json:
        output.note("Saved. gc without options applies it, and a running training when it saves.")
        _note_unknown(repo, policy, branch)


def _note_unknown(repo: Repository, policy: Policy, branch: str | None) -> None:
    """Report a branch and metrics that are not there yet, and may be mistyped."""
    branches = sorted(repo.ref_names()[0])
    if not branches:
        return
    if branch is not None and branch not in branches:
        known = known_names(branch, branches, what="branches")
        output.note(f"There is no branch {shown(branch)} yet. {known}")
    if policy.metrics:
        listed = sorted({name for checkpoint in repo.log() for name in checkpoint.metrics})
        for metric in sorted(policy.metrics.difference(listed)):
            known = known_names(metric, listed, what="metrics")
            output.note(f"No checkpoint has the metric {shown(metric)} yet. {known}")


def _grace(repo: Repository, seconds: float | None, *, unset: bool, as_json: bool) -> None:
    if unset or seconds is not None:
        repo.set_grace(seconds)
    if as_json:
        output.document({"grace_seconds": repo.grace()})
    else:
        output.line(text.duration(repo.grace()) if repo.grace() else "0")


def _print(policy: Policy | None, branch: str | None, *, as_json: bool) -> None:
    if as_json:
        saved = None if policy is None else policy.to_json()
        sentence = None if policy is None else str(policy)
        output.document({"branch": branch, "retention": saved, "sentence": sentence})
    elif policy is not None:
        output.line(str(policy))
    elif branch is not None:
        output.note(f"No retention policy is saved for {branch}. That of all branches applies.")
    else:
        output.note("No retention policy is saved. Without one, gc expires nothing.")
