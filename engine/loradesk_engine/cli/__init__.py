"""`loradesk` and its subcommands. No torch here: a subcommand imports what it needs when it runs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from loradesk_engine.cli import bench, chat, demo, ordering, self_test, serve
from loradesk_engine.cli.window import open_window
from loradesk_engine.errors import LoradeskError
from loradesk_engine.log.options import HELP, take_log_options
from loradesk_engine.log.traces import describe
from loradesk_engine.log.trail import Trail

logger = logging.getLogger(__name__)

SUBCOMMANDS = (chat, demo, ordering, serve, bench, self_test)
OPENED_SUFFIXES = (".gguf", ".json", ".safetensors")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each sets `handler`, which takes the parsed arguments and returns the exit
    code.
    """
    parser = argparse.ArgumentParser(
        prog="loradesk",
        description="Run language models with LoRA and X-LoRA adapters. Without a subcommand the window opens.",
        epilog="Options without a subcommand are the window's: `loradesk --demo lora`, `loradesk --startup-trace`. "
        "`loradesk PATH` opens the window with a .gguf file, a model's or adapter's folder, or an ordering file. "
        "The environment variable LORADESK_KERNELS chooses the kernels that compute on the CPU: auto (the best that "
        "the processor runs), vnni, avx512, avx2, c, or torch for none.",
    )
    parser.add_argument("--version", action="version", version=f"loradesk {_version()}")
    subparsers = parser.add_subparsers(title="subcommands", metavar="")
    for subcommand in SUBCOMMANDS:
        subcommand.add_parser(subparsers)
    for each in (parser, *subparsers.choices.values()):
        each.epilog = f"{each.epilog} {HELP}" if each.epilog else HELP
    return parser


def _version() -> str:
    try:
        return version("loradesk")
    except PackageNotFoundError:
        return "(from its source tree)"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `loradesk`. Errors of Loradesk are one clear line and exit code 1."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        log, rest = take_log_options(arguments)
    except LoradeskError as problem:
        print(f"loradesk: {problem}", file=sys.stderr)
        return 2
    if rest[:1] == ["--self-test"]:
        rest[0] = "self-test"
    if not rest or is_for_window(rest[0]):
        return open_window(arguments)
    options = build_parser().parse_args(rest)
    program = "window" if options.handler is demo.run else rest[0]  # the demo opens the window where it can
    with Trail(program, log.levels, stderr=log.stderr):
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    """Run a subcommand; its exit code, or that of the way in which it ended."""
    try:
        code: int = options.handler(options)
        return code
    except LoradeskError as problem:
        logger.warning("Ended by %s", describe(problem))
        print(f"loradesk: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe has left
        sys.stderr.close()
        return 141


def is_for_window(argument: str) -> bool:
    """Whether a first argument is the window's: an option, or a path by its looks or because it is there."""
    if argument.startswith("-"):
        return argument not in ("-h", "--help", "--version")
    if argument in {module.__name__.rpartition(".")[2].replace("_", "-") for module in SUBCOMMANDS}:
        return False
    looks_so = "/" in argument or os.sep in argument or argument.lower().endswith(OPENED_SUFFIXES)
    return looks_so or os.path.exists(argument)
