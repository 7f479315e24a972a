"""A conversation as plain data: turns, what is kept on disk, and what a reader gets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from loradesk_engine.commands import Message

if TYPE_CHECKING:
    from loradesk_engine.events import Problem

State = Literal["done", "waiting", "streaming", "stopped", "failed"]
VERSION = 1


@dataclass
class Turn:
    """One message.

    Attributes:
        role: `user` or `assistant`.
        text: what it says so far.
        state: `waiting` for the model, `streaming`, or how it ended; user turns are `done`.
        request_id: of the request that this answers.
        model, mode: which model answered, and how its adapters were used.
        shares: adapter -> weight (LoRA) or mean scaling over the answer (X-LoRA).
        tokens, prompt_tokens, tokens_per_second, first_token_seconds: as the engine counted.
        look_ahead: share of X-LoRA's right guesses, 0 where there were none.
        problem: why it failed.
    """

    role: Literal["user", "assistant"]
    text: str = ""
    state: State = "done"
    request_id: str = ""
    model: str = ""
    mode: str = "none"
    shares: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    prompt_tokens: int = 0
    tokens_per_second: float = 0.0
    first_token_seconds: float = 0.0
    look_ahead: float = 0.0
    cut_short: bool = False
    problem: Problem | None = None

    @property
    def is_open(self) -> bool:
        """Whether more of it is expected."""
        return self.state in ("waiting", "streaming")


_KEPT = (
    "role",
    "text",
    "state",
    "model",
    "mode",
    "tokens",
    "prompt_tokens",
    "tokens_per_second",
    "first_token_seconds",
    "look_ahead",
    "cut_short",
)


def messages(turns: Iterable[Turn], system: str = "") -> tuple[Message, ...]:
    """What the model is asked to answer: everything said, without answers that failed before their first word."""
    said = [Message(turn.role, turn.text) for turn in turns if turn.role == "user" or turn.text]
    return (Message("system", system), *said) if system.strip() else tuple(said)


def to_json(turns: Iterable[Turn]) -> dict[str, Any]:
    """The conversation as JSON; an answer under way is kept as one that was stopped."""
    kept = []
    for turn in turns:
        entry = {name: getattr(turn, name) for name in _KEPT}
        entry["shares"] = {name: round(share, 4) for name, share in turn.shares.items()}
        if turn.is_open:
            entry["state"] = "stopped"
        kept.append(entry)
    return {"loradesk_conversation": VERSION, "turns": kept}


def from_json(data: Any) -> list[Turn]:
    """The turns of a kept conversation. Entries that are not turns are left out: half a conversation beats none."""
    turns: list[Turn] = []
    entries = data.get("turns") if isinstance(data, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or entry.get("role") not in ("user", "assistant"):
            continue
        turn = Turn(entry["role"])
        for name in _KEPT[1:]:
            value, default = entry.get(name), getattr(turn, name)
            numbers = isinstance(default, int | float) and isinstance(value, int | float)
            if type(value) is type(default) or (numbers and not isinstance(value, bool)):
                setattr(turn, name, value)
        if turn.state not in ("done", "stopped", "failed"):
            turn.state = "stopped"
        shares = entry.get("shares")
        if isinstance(shares, dict):
            turn.shares = {str(name): float(share) for name, share in shares.items() if isinstance(share, int | float)}
        turns.append(turn)
    return turns


def to_markdown(turns: Iterable[Turn]) -> str:
    """The conversation for reading: one section a turn."""
    sections = []
    for turn in turns:
        who = "You" if turn.role == "user" else turn.model or "Model"
        section = f"## {who}\n\n{turn.text}\n"
        if turn.shares and turn.text:
            mixed = ", ".join(f"{name} {share:.2f}" for name, share in turn.shares.items())
            section += f"\n*{mixed}*\n"
        sections.append(section)
    return "# Conversation\n\n" + "\n".join(sections)
