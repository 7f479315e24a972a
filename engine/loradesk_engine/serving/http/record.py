"""One line of the request log, as the application's pane shows it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RequestRecord:
    """What is known of a request once it has ended. Neither key nor any text of prompt or answer is in it.

    Attributes:
        time: when it came, in seconds since 1970.
        client: address and port.
        method, path: as sent, cut to a sane length.
        status: of the answer; 499: the client left before.
        seconds: from the first byte to the last.
        model: as the request named it.
        adapters: name -> weight it ran with.
        prompt_tokens, completion_tokens: counts.
        note: why it was refused or cut off.
        code: the same in a word, without anything that the client sent.
    """

    time: float
    client: str
    method: str
    path: str
    status: int = 0
    seconds: float = 0.0
    model: str = ""
    adapters: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    note: str = ""
    code: str = ""
