"""The program `ckptstore`: its commands, imported on first use, and its exit codes.

0: done; 1: an error with a message; 2: wrong usage; 130: interrupted; 141: the reader of the output
has closed it. SIGTERM and SIGHUP end it as they end any program, once what is half written is gone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from typing import Any

import click
from click.shell_completion import add_completion_class

from ckptstore import __version__
from ckptstore.errors import CkptStoreError
from ckptstore_cli import hints, output
from ckptstore_cli.completion import WholeWords
from ckptstore_cli.repo import repo_option
from ckptstore_cli.signals import ended_by_signals
from ckptstore_cli.verbs import COMMANDS

_MODULES = {"import": "import_"}  # `import` is a keyword of Python
EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended

add_completion_class(WholeWords)


class Program(click.Group):
    """A group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of a first session."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of this name; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"ckptstore_cli.commands.{_MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, _MODULES.get(cmd_name, cmd_name))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest similar names."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Parse the arguments before the command."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            is_json = isinstance(error, click.NoSuchOption) and error.option_name == "--json"
            _show(
                click.UsageError("--json goes after the command.", error.ctx) if is_json else error
            )
            raise click.exceptions.Exit(error.exit_code) from None

    def invoke(self, ctx: click.Context) -> None:
        """Run the command, and turn errors into a message and an exit code."""
        try:
            super().invoke(ctx)
            output.flush()
        except KeyboardInterrupt:
            output.error("interrupted.")
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            output.abandon()
            ctx.exit(EXIT_BROKEN_PIPE)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            ctx.exit(error.exit_code)
        except click.UsageError as error:
            _show(error)
            ctx.exit(error.exit_code)
        except (CkptStoreError, OSError) as error:
            output.error(hints.with_options(str(error)))
            ctx.exit(EXIT_ERROR)


def _show(error: click.UsageError) -> None:
    """Print a wrong usage as other errors are printed, below the usage of the command."""
    if error.ctx is not None:
        output.usage(error.ctx.get_usage())
        output.usage(f"Help: {error.ctx.command_path} --help")
    output.error(" ".join(error.format_message().split()))


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Help for a command: ckptstore COMMAND --help",
)
@repo_option
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Store training checkpoints, with every array stored once.

    A branch refers to the newest checkpoint of a training run and its history; a tag names one
    checkpoint. A revision (REV) names a checkpoint: a branch, a tag, an id or at least its first 6
    digits, main~2, main@step=1000, best:val_loss, main@best:accuracy:max, latest.
    """


def main() -> None:
    """Run the program on the arguments of this process."""
    output.prepare()
    _import_torch_elsewhere()
    with ended_by_signals():
        cli(prog_name="ckptstore")


def _import_torch_elsewhere() -> None:
    """Import torch in another folder if the working folder is gone, where it ends the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        gone = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        os.chdir("/")
        with suppress(ImportError):
            import_module("torch")
        os.fchdir(gone)  # relative paths lead nowhere, as before
        os.close(gone)
