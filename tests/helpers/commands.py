"""All commands of the program, those of groups too."""

from __future__ import annotations

import click

from ckptstore_cli.main import cli


def commands() -> dict[str, click.Command]:
    """Each command by its words, such as "log" or "bisect start"."""
    found: dict[str, click.Command] = {}
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= {f"{name} {word}": each for word, each in command.commands.items()}
        else:
            found[name] = command
    return found
