"""`loradesk` and its subcommands. No torch here: a subcommand imports what it needs when it runs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

from loradesk_engine.cli import chat, demo, ordering, self_test, serve
from loradesk_engine.errors import LoradeskError

SUBCOMMANDS = (chat, demo, ordering, serve, self_test)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each sets `handler`, which takes the parsed arguments and returns the exit
    code.
    """
    parser = argparse.ArgumentParser(
        prog="loradesk",
        description="Run language models with LoRA and X-LoRA adapters. Without a subcommand the window opens.",
        epilog="Options without a subcommand are the window's: `loradesk --demo lora`, `loradesk --startup-trace`.",
    )
    parser.add_argument("--version", action="version", version=f"loradesk {version('loradesk')}")
    subparsers = parser.add_subparsers(title="subcommands", metavar="")
    for subcommand in SUBCOMMANDS:
        subcommand.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `loradesk`. Errors of Loradesk are one clear line and exit code 1."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--self-test"]:
        arguments[0] = "self-test"
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        return open_window(arguments)
    options = build_parser().parse_args(arguments)
    try:
        code: int = options.handler(options)
        return code
    except LoradeskError as problem:
        print(f"loradesk: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe has left
        sys.stderr.close()
        return 141


def open_window(arguments: Sequence[str]) -> int:
    """Start the application, which the engine knows by name only; 3 where there is no display."""
    try:
        app = importlib.import_module("loradesk_app.__main__")
    except ModuleNotFoundError as problem:
        print(f"loradesk: the window is not installed: {problem}", file=sys.stderr)
        return 1
    code: int = app.main(list(arguments))
    return code
