"""One message of a conversation."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # events.py imports numpy, which the window can do without until it is painted
    from loradesk_engine.events import Problem

Role = Literal["user", "assistant"]
State = Literal["done", "waiting", "streaming", "stopped", "failed"]
ROLES: tuple[Role, ...] = ("user", "assistant")
OPEN_STATES: tuple[State, ...] = ("waiting", "streaming")
ENDED_STATES: tuple[State, ...] = ("done", "stopped", "failed")


def new_id() -> str:
    """An identifier that no other message or conversation has."""
    return uuid.uuid4().hex


@dataclass
class Message:
    """One message, and what is known of the answer it holds.

    Attributes:
        role: `user` or `assistant`.
        text: what it says so far.
        id: unique among all conversations.
        parent: id of the message that it follows; None at the start of a conversation.
        state: `waiting` for the model, `streaming`, or how it ended; user messages are `done`.
        created: seconds since the epoch.
        excluded: whether it is left out of prompts.
        request_id: the request that this answers, while it runs.
        model, mode: the model that answered, and how its adapters were used.
        shares: adapter -> weight (LoRA) or mean scaling over the answer (X-LoRA).
        tokens, prompt_tokens, tokens_per_second, first_token_seconds: as the engine counted.
        look_ahead: share of right X-LoRA guesses, 0 to 1; 0 where nothing was guessed.
        cut_short: whether the answer ended at its token limit.
        problem: why it failed.
    """

    role: Role
    text: str = ""
    id: str = field(default_factory=new_id)
    parent: str | None = None
    state: State = "done"
    created: float = field(default_factory=time.time)
    excluded: bool = False
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
        return self.state in OPEN_STATES

    @property
    def counts(self) -> bool:
        """Whether it belongs in a prompt: not excluded, and not an answer that ended before its first word."""
        return not self.excluded and (self.role == "user" or bool(self.text))
