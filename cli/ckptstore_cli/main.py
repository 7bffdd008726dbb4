"""The program `ckptstore`: its commands, imported when they are used, and its exit codes.

0 done, 1 an error with a message, 2 wrong usage, 130 interrupted, 141 the reader of the output
went away.
"""

from __future__ import annotations

from importlib import import_module

import click

from ckptstore import __version__
from ckptstore.errors import CkptStoreError
from ckptstore_cli import hints, output
from ckptstore_cli.repo import repo_option

COMMANDS = (
    "init",
    "commit",
    "log",
    "show",
    "ls",
    "checkout",
    "diff",
    "branch",
    "tag",
    "undo",
    "gc",
    "config",
    "verify",
    "usage",
)
EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # as a shell reports a program that SIGPIPE ended


class Program(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order in which one meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of this name; None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"ckptstore_cli.commands.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name those that look like it."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None

    def invoke(self, ctx: click.Context) -> None:
        """Run the command, and turn what stops it into a message and an exit code."""
        try:
            super().invoke(ctx)
            output.flush()
        except KeyboardInterrupt:
            output.error("interrupted.")
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            output.abandon()
            ctx.exit(EXIT_BROKEN_PIPE)
        except (CkptStoreError, OSError) as error:
            output.error(hints.with_options(str(error)))
            ctx.exit(EXIT_ERROR)


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Learn more of a command with: ckptstore COMMAND --help",
)
@repo_option
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Keep the checkpoints of your trainings: each array once, every step found again.

    A branch is the newest checkpoint of one training and all before it; a tag is a name that stays.
    A revision (REV) names a checkpoint: a branch, a tag, an id or its first 6 digits or more,
    main~2, main@step=1000, best:val_loss, main@best:accuracy:max, latest.
    """


def main() -> None:
    """Run the program on the arguments of this process."""
    output.prepare()
    cli(prog_name="ckptstore")
