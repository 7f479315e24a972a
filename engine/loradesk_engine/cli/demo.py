"""`loradesk demo`: the demo pack in the window, or in the terminal where there is no display."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from loradesk_engine.cli.window import open_window
from loradesk_engine.commands import AdapterMode, Sampling

NO_DISPLAY = 3  # exit code of the application
TOUR = (
    "Hello, who are you?",
    "What is 17 + 25?",
    "What is the capital of Japan?",
    "What is 12 + 30, and what is the capital of France?",
)


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo", help="the demo pack: in the window, or in the terminal without a display"
    )
    parser.add_argument("--mode", choices=["none", "lora", "xlora"], default="xlora")
    parser.add_argument("--terminal", action="store_true", help="in the terminal, also where there is a display")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Handler of the subcommand; returns the exit code."""
    if not options.terminal:
        code = open_window(["--demo", options.mode])
        if code != NO_DISPLAY:
            return code
        print("So here is the same demo as a chat in the terminal.\n")
    return _terminal(options.mode)


def _terminal(mode: AdapterMode) -> int:
    """A short tour, then the chat."""
    from loradesk_engine.cli.chat import TerminalChat, describe, scalings_table
    from loradesk_engine.serving.api import Engine

    with Engine.demo(mode) as engine:
        print(describe(engine))
        chat = TerminalChat(engine, Sampling(max_tokens=200))
        for question in TOUR:
            print(f"\n> {question}")
            chat.say(question)
        if mode == "xlora":
            print("\nWhat the experts did (/scalings):")
            print(scalings_table(engine, chat.last))
        if sys.stdin.isatty():
            print("\nNow you. /help lists the commands.")
        chat.begin()
        chat.loop()
    return 0
