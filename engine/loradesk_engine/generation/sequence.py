"""One request while it is being answered. No tensors here but the scalings that are carried from step to step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loradesk_engine.commands import Sampling
from loradesk_engine.events import FinishReason, LookAhead, TokenLogprob
from loradesk_engine.generation.guesses import FIRST_SHARES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from loradesk_engine.formats.tokenizer import TextStream
    from loradesk_engine.generation.stop import StopStrings


@dataclass(frozen=True)
class AdapterState:
    """Which adapters a request runs with.

    Attributes:
        weights: name -> weight; an absent name is inactive.
        key: equal for states that give equal keys and values in the cache; see `EngineCore.adapter_state`.
    """

    weights: Mapping[str, float]
    key: object


@dataclass
class XLoraState:
    """What X-LoRA decoding carries from one step to the next.

    Attributes:
        ready: scalings of the next token to compute, float32 [layers, adapters], if its scaling row has run.
        guesses: the base model's guesses of the token after the last one whose scaling row has run, best first.
        ahead: scalings of the first of them, if their scaling rows have run, float32 [guesses, layers, adapters].
        after: the guesses after each of those.
        right: how often the guess of each rank was right lately, 0 to 1.
        frozen: the scalings in use since the freeze (non-granular), float32 [layers, adapters].
        frozen_at: position from which on they are used.
        hits, misses: tokens whose scalings were ready, or not, where guesses were checked.
        first_hits: of the hits, those that were the first guess.
        row: the next token's scalings times the adapters' weights, float32 [1, layers, adapters].
        row_of, row_key: the scalings and the adapter state that it was made of.
    """

    ready: Tensor | None = None
    guesses: Many[int] = ()
    ahead: Tensor | None = None
    after: Many[Many[int]] = ()
    right: Many[float] = FIRST_SHARES
    frozen: Tensor | None = None
    frozen_at: int | None = None
    hits: int = 0
    misses: int = 0
    first_hits: int = 0
    row: Tensor | None = None
    row_of: Tensor | None = None
    row_key: object = None

    def use(self, number: int) -> None:
        """The next token is the guess of this number that was looked ahead at, or the token behind that was."""
        assert self.ahead is not None
        self.ready, self.guesses = self.ahead[number], self.after[number]
        self.ahead, self.after = None, ()

    def forget(self) -> None:
        """The next token is none of those: nothing is known of it."""
        self.ready = self.ahead = None
        self.guesses = self.after = ()


@dataclass(eq=False)
class Sequence:
    """A request that waits or runs.

    Attributes:
        tokens: prompt and answer.
        prompt_length: how many of them are the prompt.
        computed: how many have their keys and values in the cache.
        limit: most tokens the sequence may reach.
        slot: its place in the cache, or None while it waits.
        cached: prompt tokens taken over from an earlier turn.
        mixed_states: the adapters changed while it ran.
    """

    request_id: str
    tokens: list[int]
    prompt_length: int
    limit: int
    sampling: Sampling
    stop_ids: frozenset[int]
    state: AdapterState
    follow_activation: bool
    want_scalings: bool
    stream: TextStream
    stops: StopStrings
    generator: torch.Generator
    xlora: XLoraState | None
    mixed_states: bool = False
    computed: int = 0
    slot: int | None = None
    cached: int = 0
    text: str = ""
    finish_reason: FinishReason | None = None
    admitted: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    scalings: list[Tensor] = field(default_factory=list)  # computed since the last event, each [rows, layers, adapters]
    scalings_start: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def look_ahead(self) -> LookAhead | None:
        state = self.xlora
        if state is None or state.hits + state.misses == 0:
            return None
        return LookAhead(state.hits, state.misses, state.first_hits)

    @property
    def answer(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens) - self.prompt_length
