"""Asking in the terminal for what no flag said, with completion where the platform has readline. Answers may be piped,
a line each.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from loradesk_engine.errors import LoradeskError

Complete = Callable[[str], list[str]]
"""What a word that has been begun may become."""


class MissingFlagError(LoradeskError):
    """Something was not given, and the input has no answer."""


def ask(
    question: str, flag: str, *, hint: str | None = None, complete: Complete | None = None, optional: bool = False
) -> str:
    """The answer to a question; an empty one is asked again unless it is optional.

    Args:
        hint: a line shown before the question.
        complete: what a word that has been begun may become.

    Raises:
        MissingFlagError: the input has ended.
    """
    if hint is not None and _at_terminal():
        print(hint, file=sys.stderr)
    while True:
        try:
            with _Completion(complete):
                answer = _input(f"{question}: ").strip()
        except (EOFError, OSError):  # OSError: no input at all
            if optional:
                return ""
            remedy = "Give it, answer in a terminal, or pipe the answers, a line each."
            raise MissingFlagError(f"{flag} is missing, and the input has ended.", remedy=remedy) from None
        if answer or optional:
            return answer


def ask_list(
    question: str, flag: str, *, hint: str | None = None, names: Sequence[str] = (), optional: bool = False
) -> list[str]:
    """A list separated by commas; the names are completed. Raises as `ask`."""
    question = f"{question}, separated by commas"
    answer = ask(question, flag, hint=hint, complete=lambda word: _starting(names, word), optional=optional)
    return split_list(answer)


def ask_path(question: str, flag: str) -> str:
    """A path; those that exist are completed. Raises as `ask`."""
    return os.path.expanduser(ask(question, flag, complete=_paths))


def confirm(question: str, flag: str = "--force") -> bool:
    """Whether the answer is yes; where the input has ended, no."""
    return ask(f"{question} [y/N]", flag, optional=True).casefold() in ("y", "yes")


def split_list(text: str) -> list[str]:
    """`a, b,` is a and b."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _starting(names: Sequence[str], word: str) -> list[str]:
    return [name for name in names if name.startswith(word)]


def _paths(word: str) -> list[str]:
    found = sorted(glob.glob(glob.escape(os.path.expanduser(word)) + "*"))
    return [path + os.sep if os.path.isdir(path) else path for path in found]


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _input(prompt: str) -> str:
    """`input`, with the question on standard error when standard output is a file or a pipe; piped answers are read
    without questions.
    """
    if sys.stdin is None:
        raise EOFError
    if not _at_terminal():
        return input()
    if sys.stdout.isatty():
        return input(prompt)
    sys.stderr.write(prompt)
    sys.stderr.flush()
    return input()


class _Completion:
    """Sets readline's completion for one question, and puts back what was there."""

    def __init__(self, complete: Complete | None) -> None:
        self.complete = complete
        self.readline: Any = None

    def __enter__(self) -> None:
        if self.complete is None:
            return
        try:
            import readline
        except ImportError:  # Windows without pyreadline: no completion, everything else works
            return
        self.readline = readline
        self.before = readline.get_completer(), readline.get_completer_delims()
        readline.set_completer(self.candidate)
        readline.set_completer_delims(",")  # names may hold dots and dashes, paths spaces
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")

    def __exit__(self, *problem: object) -> None:
        if self.readline is not None:
            self.readline.set_completer(self.before[0])
            self.readline.set_completer_delims(self.before[1])

    def candidate(self, word: str, state: int) -> str | None:
        """readline's protocol: the n-th candidate, or None when there are no more."""
        assert self.complete is not None
        space = word[: len(word) - len(word.lstrip())]
        found = self.complete(word.lstrip())
        return space + found[state] if state < len(found) else None
