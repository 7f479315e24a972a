"""`loradesk chat`: the window's chat in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from loradesk_engine.activation import none_active
from loradesk_engine.cli.estimate import print_estimate, warn_if_short
from loradesk_engine.cli.model_options import add_model_options, add_sampling_options, load_settings, sampling
from loradesk_engine.commands import Message, Sampling
from loradesk_engine.errors import LoradeskError, RequestError

if TYPE_CHECKING:
    from loradesk_engine.serving.api import Answer, Engine

BAR = 24  # characters of a full bar
HELP = """\
/adapters              list the adapters and which are active
/activate A B=0.5 ...  make these the active ones, each with a weight (default 1); none: the base model
/scalings              X-LoRA: what the experts did in the last answer
/new                   begin a new conversation
/help                  this list
/quit                  leave (also Ctrl+D); Ctrl+C stops an answer"""


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "chat", help="chat in the terminal", description="Chat with a model in the terminal; /help lists the commands."
    )
    add_model_options(parser)
    parser.add_argument("--activate", metavar="A,B=0.5", help="adapters to activate at first")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this once and exit")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    add_sampling_options(parser)
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Handler of the subcommand; returns the exit code."""
    wanted = sampling(options)
    settings = load_settings(options)
    if options.estimate:
        return print_estimate(settings)
    warn_if_short(settings)
    from loradesk_engine.serving.api import Engine

    with _Progress() as progress:
        engine = Engine.from_settings(settings, progress)
    with engine:
        if options.activate is not None:
            engine.activate_adapters(parse_weights(options.activate.replace(",", " ").split()))
        else:
            warn_if_none_active(engine)
        chat = TerminalChat(engine, wanted, options.system)
        if options.prompt is not None:
            chat.say(options.prompt)
            return 0
        print(describe(engine))
        print("Type a message, or /help.")
        chat.loop()
    return 0


class TerminalChat:
    """A conversation on the terminal.

    Args:
        engine: the loaded model.
        wanted: how answers are sampled.
        system: system message.
    """

    def __init__(self, engine: Engine, wanted: Sampling, system: str | None = None) -> None:
        self.engine = engine
        self._sampling = wanted
        self._system = system
        self._messages: list[Message] = []
        self.last: Answer | None = None
        self._commands: dict[str, Callable[[list[str]], None]] = {
            "/adapters": lambda _words: print(adapters_table(engine)),
            "/activate": self._activate,
            "/scalings": lambda _words: print(scalings_table(engine, self.last)),
            "/new": lambda _words: self.begin(),
            "/help": lambda _words: print(HELP),
        }

    def begin(self) -> None:
        """Forget the conversation."""
        self._messages.clear()
        self.last = None
        print("A new conversation.")

    def loop(self) -> None:
        """Read messages and commands until the end of the input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - line editing and history
        while True:
            try:
                line = input("\n> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                break
            except KeyboardInterrupt:
                print()
                continue
            if line in ("/quit", "/exit"):
                break
            try:
                self.take(line)
            except LoradeskError as problem:
                print(problem, file=sys.stderr)

    def take(self, line: str) -> None:
        """A line of input: a command, or a message to answer."""
        words = line.split()
        if not words:
            return
        if words[0].startswith("/"):
            command = self._commands.get(words[0])
            if command is None:
                raise RequestError(f"There is no command {words[0]}.", remedy="/help lists them.")
            command(words[1:])
        else:
            self.say(line)

    def say(self, text: str) -> None:
        """Answer a message, printing the answer as it comes."""
        system = [Message("system", self._system)] if self._system else []
        conversation = [*system, *self._messages, Message("user", text)]
        answer = self.engine.chat(conversation, **asdict(self._sampling))
        try:
            for piece in answer:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            answer.cancel()
            for piece in answer:
                print(piece, end="", flush=True)
        print()
        self.last = answer
        self._messages += [Message("user", text), Message("assistant", answer.text)]
        if sys.stdout.isatty() and answer.finished is not None:
            end = answer.finished
            guesses = f", look-ahead {end.look_ahead.rate:.0%}" if end.look_ahead is not None else ""
            print(f"\033[2m{end.completion_tokens} tokens, {end.tokens_per_second:.0f} tokens/s{guesses}\033[0m")

    def _activate(self, words: list[str]) -> None:
        self.engine.activate_adapters(parse_weights(words))
        print(adapters_table(self.engine))


def parse_weights(words: list[str]) -> dict[str, float]:
    """`name` or `name=weight`, each.

    Raises:
        RequestError: a weight is not a number.
    """
    weights = {}
    for word in words:
        name, sign, number = word.rpartition("=")
        if not sign:
            weights[word] = 1.0
            continue
        try:
            weights[name] = float(number)
        except ValueError:
            raise RequestError(f"{number!r} is not a weight.", field=name, remedy="Write NAME=0.5.") from None
    return weights


def warn_if_none_active(engine: Engine) -> None:
    """Say on stderr that adapters were loaded and none answers; otherwise the base model would, without a word."""
    notice = none_active([adapter.name for adapter in engine.adapters], engine.active_adapters)
    if notice is not None:
        remedy = "Activate some with --activate NAME, or with /activate NAME in the chat."
        print(f"Note: {notice} {remedy}", file=sys.stderr)


def describe(engine: Engine) -> str:
    """What is loaded, in a few lines."""
    info = engine.info
    mode = {"none": "base model", "lora": "LoRA", "xlora": "X-LoRA"}[info.mode]
    lines = [
        f"{info.name}: {info.architecture}, {info.parameters / 1e6:,.1f} M parameters, {info.dtype} on {info.device}, "
        f"{mode}, loaded in {info.load_seconds:.2f} s"
    ]
    lines += [f"Warning: {warning}" for warning in info.warnings]
    return "\n".join(lines + ([adapters_table(engine)] if info.adapters else []))


def adapters_table(engine: Engine) -> str:
    """The adapters, a line each: active or not, weight, rank, modules."""
    if not engine.adapters:
        return "No adapters are loaded."
    active = engine.active_adapters
    width = max(len(adapter.name) for adapter in engine.adapters)
    return "\n".join(
        f"  {'●' if adapter.name in active else '○'} {adapter.name:<{width}}  {active.get(adapter.name, 0.0):5.2f}  "
        f"rank {adapter.rank}, {adapter.applied}"
        for adapter in engine.adapters
    )


def scalings_table(engine: Engine, answer: Answer | None) -> str:
    """The experts of the last answer: means over its layers and tokens, and the strongest one of each token."""
    if engine.info.mode != "xlora":
        return "Only X-LoRA models have scalings."
    if answer is None or answer.scalings is None:
        return "There is no answer yet."
    assert answer.started is not None
    first = max(0, answer.started.prompt_tokens - 1 - answer.scalings_start)  # this row makes the answer's first token
    rows = answer.scalings[first:].mean(axis=1)  # [tokens, adapters]
    names = [adapter.name for adapter in engine.adapters]
    width = max(map(len, names))
    lines = ["Mean over the answer:"]
    for name, mean in zip(names, rows.mean(axis=0).tolist(), strict=True):
        lines.append(f"  {name:<{width}}  {mean:5.2f}  {'█' * round(BAR * min(mean, 1.0))}")
    lines.append("Strongest expert by token:")
    texts = [*answer.scaling_tokens[first + 1 :], "(end)"]
    for text, row in zip(texts, rows, strict=False):
        best = int(row.argmax())
        lines.append(
            f"  {text!r:<16} {names[best]:<{width}}  {row[best]:5.2f}  {'█' * round(BAR * min(float(row[best]), 1.0))}"
        )
    return "\n".join(lines)


class _Progress:
    """One line of progress on a terminal's stderr, gone when the load is done."""

    def __enter__(self) -> _Progress:
        return self

    def __call__(self, stage: str, fraction: float | None) -> None:
        if sys.stderr.isatty():
            share = "" if fraction is None else f" {fraction:4.0%}"
            print(f"\r\033[K{stage}{share}", end="", file=sys.stderr, flush=True)

    def __exit__(self, *problem: object) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
