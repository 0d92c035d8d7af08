"""The command `remem`, with one module for each of its commands."""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from remem_jax.storage import streams


class Command(NamedTuple):
    """A command of `remem`.

    Attributes:
        module: Its module, which has `main(argv)`; imported only when it runs.
        summary: What it does, in a line of `remem --help`.
    """

    module: str
    summary: str


COMMANDS = {
    "distil": Command(
        "remem_jax.commands.distil", "make a small model from images in a given time"
    ),
    "data": Command("remem_jax.commands.data", "look at images before a run"),
    "clean": Command("remem_jax.commands.clean", "remove what a finished run does not need"),
    "export": Command("remem_jax.export.__main__", "write a student as ONNX or another format"),
    "models": Command("remem_jax.commands.models", "list teachers and students"),
    "predict": Command("remem_jax.predict", "classify images with a student or an export"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line of `remem`; returns the exit code."""
    from absl import logging

    from remem_jax.export import command

    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        streams.print_error(f"remem: there is no command {name!r}: {', '.join(COMMANDS)}.")
        return 2
    command.begin()
    logging.use_absl_handler()  # Or absl's first message adds a handler to that of the display.
    return importlib.import_module(COMMANDS[name].module).main(rest)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: remem COMMAND ...",
            "",
            *lines,
            "",
            "remem COMMAND --help lists the options of a command.",
            "",
        ]
    )
