"""The options of the log, which every subcommand and the window take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from loradesk_engine.log.levels import VARIABLE, Levels

HELP = (
    "Log: --log-level LEVEL or LEVEL,MODULE=LEVEL (debug, info, warning, error; default info, or the variable "
    f"{VARIABLE}) sets how much goes into the log file; --log-stderr shows the log on stderr, too."
)


@dataclass(frozen=True)
class LogOptions:
    """What the command line says about the log.

    Attributes:
        levels: how much is logged.
        stderr: whether the lines are shown on stderr as well.
    """

    levels: Levels
    stderr: bool


def take_log_options(arguments: Sequence[str]) -> tuple[LogOptions, list[str]]:
    """The options of the log, and the arguments without them; they may stand before or after a subcommand.

    Raises:
        RequestError: there is no such level.
    """
    parser = argparse.ArgumentParser(prog="loradesk", add_help=False, allow_abbrev=False)
    parser.add_argument("--log-level", metavar="LEVEL")
    parser.add_argument("--log-stderr", action="store_true")
    found, rest = parser.parse_known_args(arguments)
    return LogOptions(Levels.chosen(found.log_level), found.log_stderr), rest
