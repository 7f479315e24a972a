"""One request while it is being answered. Its only tensors are the scalings that one step hands to the next."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loradesk_engine.commands import Sampling
from loradesk_engine.events import LookAhead, TokenLogprob
from loradesk_engine.generation.guesses import FIRST_SHARES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from loradesk_engine.formats.tokenizer import TextStream
    from loradesk_engine.generation.stop import StopStrings


@dataclass(frozen=True)
class AdapterState:
    """The adapters that a request runs with.

    Attributes:
        weights: name -> weight; a missing name is inactive.
        key: equal for two states that produce the same keys and values in the KV cache.
    """

    weights: Mapping[str, float]
    key: object


@dataclass
class XLoraState:
    """What X-LoRA decoding carries from one step to the next.

    Attributes:
        ready: scalings of the next token to compute, float32 [layers, adapters]; None until its scaling row has run.
        guesses: the base model's guesses of the token after the last scaling row, best first.
        ahead: scalings of the guesses that the last step checked, float32 [guesses, layers, adapters].
        after: for each checked guess, the base model's guesses of the token after it.
        right: running share of tokens that were the guess of each rank, 0 to 1.
        frozen: scalings in use since the freeze (non-granular), float32 [layers, adapters].
        frozen_at: first position that uses them.
        hits, misses: tokens whose scalings were ready, or not, while guesses were being checked.
        first_hits: hits that were the first guess.
        row: the next token's scalings times the adapters' weights, float32 [1, layers, adapters].
        row_of, row_key: the scalings and the adapter state that `row` was computed from.
    """

    ready: Tensor | None = None
    guesses: Sequence[int] = ()
    ahead: Tensor | None = None
    after: Sequence[Sequence[int]] = ()
    right: Sequence[float] = FIRST_SHARES
    frozen: Tensor | None = None
    frozen_at: int | None = None
    hits: int = 0
    misses: int = 0
    first_hits: int = 0
    row: Tensor | None = None
    row_of: Tensor | None = None
    row_key: object = None

    @property
    def known(self) -> Tensor:
        """Scalings of the next token, float32 [layers, adapters]: the frozen ones, or those of its scaling row."""
        known = self.ready if self.frozen is None else self.frozen
        assert known is not None
        return known

    def use(self, number: int) -> None:
        """Take the scalings of a checked guess: it is the next token."""
        assert self.ahead is not None
        self.ready, self.guesses = self.ahead[number], self.after[number]
        self.ahead, self.after = None, ()

    def discard(self) -> None:
        """Drop all guesses: the next token is none of them."""
        self.ready = self.ahead = None
        self.guesses = self.after = ()


@dataclass(eq=False)
class TokenSequence:
    """The tokens of a waiting or running request, and its progress.

    Attributes:
        tokens: prompt and answer.
        prompt_length: number of prompt tokens.
        computed: number of tokens whose keys and values are in the cache.
        limit: maximum length of the sequence in tokens.
        slot: its place in the cache; None while it waits.
        cached: prompt tokens reused from an earlier turn.
        mixed_states: whether its adapters changed while it ran.
        scalings: computed since the last event, each float32 [rows, layers, adapters].
        scalings_start: position of the first of them.
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
    admitted: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    scalings: list[Tensor] = field(default_factory=list)
    scalings_start: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def xlora_state(self) -> XLoraState:
        """`xlora`, for callers that know the model is an X-LoRA."""
        assert self.xlora is not None
        return self.xlora

    @property
    def look_ahead(self) -> LookAhead | None:
        """How many guesses were right so far; None if none was checked."""
        state = self.xlora
        if state is None or state.hits + state.misses == 0:
            return None
        return LookAhead(state.hits, state.misses, state.first_hits)

    @property
    def answer(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[self.prompt_length :]

    @property
    def completion_tokens(self) -> int:
        """Number of tokens after the prompt."""
        return len(self.tokens) - self.prompt_length

    @property
    def ends_with_next(self) -> bool:
        """Whether the next token reaches the limit."""
        return len(self.tokens) + 1 >= self.limit
