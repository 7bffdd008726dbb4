"""What the command line adds to the library's messages: its options in place of keyword arguments."""

from __future__ import annotations

_OPTIONS = {
    "overwrite=True": "--force",
    "drop_values=True": "--drop-values",
    "retry=True": "--retry",
    "(include)": "(--include)",
    "(shard_bytes)": "(--shard-size)",
    "Choose one of them": "Choose one of them (--tensor)",
}


def with_options(message: str) -> str:
    """Returns a message of the library as a user of the command line can act on it."""
    for argument, option in _OPTIONS.items():
        message = message.replace(argument, option)
    return message
