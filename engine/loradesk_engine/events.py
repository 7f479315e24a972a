"""What the engine tells: frozen dataclasses out of the worker's queue. Arrays are numpy, never torch.

A new message is one dataclass here and one branch in whoever shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from loradesk_engine.commands import AdapterMode, LoadSettings
from loradesk_engine.errors import LoradeskError

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Problem:
    """An error as plain text parts, for showing; see `LoradeskError`.

    Attributes:
        kind: class name of the error.
        problem, file, field, remedy: as in `LoradeskError`.
    """

    kind: str
    problem: str
    file: str | None = None
    field: str | None = None
    remedy: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> Problem:
        if isinstance(error, LoradeskError):
            return cls(type(error).__name__, error.problem, error.file, error.field, error.remedy)
        return cls(type(error).__name__, str(error) or type(error).__name__)

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.file, self.field) if part)
        text = f"{where}: {self.problem}" if where else self.problem
        return f"{text} {self.remedy}" if self.remedy else text


@dataclass(frozen=True)
class AdapterInfo:
    """One loaded adapter.

    Attributes:
        name: as in the ordering file.
        source: folder or hub id it came from.
        rank: largest rank among its modules.
        modules: how many linears it adapts.
        target_modules: the last part of their paths, without duplicates.
        applied: "applied to n of m modules", m the model's linears; how many of its file are left out, if any are; and
            how many are missing there, if any are.
        nbytes: memory its weights hold.
    """

    name: str
    source: str
    rank: int
    modules: int
    target_modules: tuple[str, ...]
    applied: str
    nbytes: int


@dataclass(frozen=True)
class ModelInfo:
    """What is loaded.

    Attributes:
        name: short name for the status bar and the HTTP model list.
        base: folder or hub id.
        architecture: as config.json names it.
        mode: `none`, `lora` or `xlora`.
        adapters: in the ordering file's order.
        layer_paths: the adapted modules' paths, index = the layer axis of the scalings.
        parameters: count, base only.
        weight_bytes: memory the base's weights hold.
        device, dtype: where and how they are held.
        context: tokens a sequence may hold.
        ordering: path of the ordering file, if one was given.
        load_seconds: from command to ready.
        warnings: sentences the user should read.
    """

    name: str
    base: str
    architecture: str
    mode: AdapterMode
    adapters: tuple[AdapterInfo, ...]
    layer_paths: tuple[str, ...]
    parameters: int
    weight_bytes: int
    device: str
    dtype: str
    context: int
    ordering: str | None
    load_seconds: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadProgressed:
    """A load goes on.

    Attributes:
        stage: short sentence for the user.
        fraction: 0 to 1, or None when it cannot be known.
        tag: of the `Load`.
    """

    stage: str
    fraction: float | None
    tag: str | None = None


@dataclass(frozen=True)
class ModelLoaded:
    """A model is ready; `tag` is that of the `Load`."""

    info: ModelInfo
    tag: str | None = None


@dataclass(frozen=True)
class ModelUnloaded:
    """No model is loaded any more; `tag` is that of the `Unload`."""

    tag: str | None = None


@dataclass(frozen=True)
class LoadFailed:
    """The load ended without a model; one loaded before is still there (`model_kept`). `tag` is the `Load`'s."""

    problem: Problem
    model_kept: bool
    tag: str | None = None


@dataclass(frozen=True)
class LoadCancelled:
    """The load was stopped, or a newer one replaced it. Fields as in `LoadFailed`."""

    model_kept: bool
    tag: str | None = None


@dataclass(frozen=True)
class AdaptersActivated:
    """The active adapters are now these: name -> weight; an absent name is inactive, and no weight is 0.

    Attributes:
        tag: of the `Activate`; None after a load, which activates what its ordering file names.
    """

    weights: Mapping[str, float]
    tag: str | None = None


@dataclass(frozen=True)
class AdaptersChanged:
    """Adapters were added or removed at run time; `tag` is the command's. An added one is inactive, a removed one is
    no longer active, and the others stay as they were.
    """

    adapters: tuple[AdapterInfo, ...]
    tag: str | None = None


@dataclass(frozen=True)
class CommandFailed:
    """A command other than a load, an estimate or a request could not be carried out; nothing changed. `tag` is the
    command's.
    """

    problem: Problem
    tag: str | None = None


@dataclass(frozen=True)
class RequestQueued:
    """A request was checked and waits for its turn; what is wrong with it has been told before this."""

    request_id: str


@dataclass(frozen=True)
class RequestStarted:
    """A request was admitted.

    Attributes:
        prompt_tokens: tokens of the whole prompt.
        cached_tokens: of these, taken over from an earlier turn.
        weights: the adapters it runs with: name -> weight.
    """

    request_id: str
    prompt_tokens: int
    cached_tokens: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a token, over the whole vocabulary before any cut.

    Attributes:
        token_id, logprob: the token.
        data: the bytes it stands for; a character may be spread over several tokens.
        top: the likeliest tokens in its place, best first; they have no `top` of their own.
    """

    token_id: int
    logprob: float
    data: bytes
    top: tuple[TokenLogprob, ...] = ()

    @property
    def text(self) -> str:
        """The token by itself; parts of characters are shown as U+FFFD."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True)
class LookAhead:
    """How often X-LoRA's look-ahead was right so far in an answer.

    Attributes:
        hits: tokens whose scalings were ready, because the base model had guessed them.
        misses: tokens that needed a scaling pass of their own, because it had guessed others.
        first_hits: of the hits, those that it held the likeliest; the others were a second or third guess.
    """

    hits: int
    misses: int
    first_hits: int = 0

    @property
    def rate(self) -> float:
        """Share of right guesses, 0 to 1."""
        return self.hits / (self.hits + self.misses)


@dataclass(frozen=True)
class TokensGenerated:
    """Some tokens of an answer.

    Attributes:
        text: what they add to the answer; may be empty while a character is incomplete.
        token_ids: completion tokens since the last event.
        token_texts: each token by itself, for axis labels; invalid bytes shown as U+FFFD.
        scalings: float32 [n, layers, adapters], the scalings of the forward passes since the last event, or None
            outside X-LoRA. The first event of a request carries those of the prompt as well.
        scaling_token_texts: the n tokens that these scalings belong to.
        scalings_start: index of the first of them in the whole sequence (prompt and answer).
        logprobs: one for each token id, if asked for.
        look_ahead: guesses so far; None where nothing has been guessed.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...] = ()
    scalings: npt.NDArray[np.float32] | None = None
    scaling_token_texts: tuple[str, ...] = ()
    scalings_start: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    look_ahead: LookAhead | None = None


@dataclass(frozen=True)
class RequestFinished:
    """A request ended.

    Attributes:
        text: the whole answer.
        finish_reason: `stop` (end token or stop string), `length`, `cancelled`.
        prompt_tokens, completion_tokens, cached_tokens: counts.
        first_token_seconds: from admission to the first token.
        tokens_per_second: decoding speed after the first token; 0 for a single token.
        look_ahead: guesses of the whole answer; None where nothing was guessed.
    """

    request_id: str
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    first_token_seconds: float
    tokens_per_second: float
    look_ahead: LookAhead | None = None


@dataclass(frozen=True)
class RequestFailed:
    """A request could not be answered; the model goes on working."""

    request_id: str
    problem: Problem


@dataclass(frozen=True)
class MemoryMeasured:
    """What the process and the model hold now, in bytes.

    Attributes:
        process: resident memory of the process.
        device: memory allocated on the accelerator, 0 on the CPU.
        cache: KV caches.
    """

    process: int
    device: int
    cache: int


@dataclass(frozen=True)
class MemoryPart:
    """One thing that a load will hold.

    Attributes:
        name: for showing.
        nbytes: its size.
        already_held: whether the model in use has it and both will share it.
    """

    name: str
    nbytes: int
    already_held: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """What a load will hold, against what is free.

    Attributes:
        device, dtype, context: what the settings come to on this machine.
        parts: the largest things first to load: weights, caches, adapters, working memory.
        free: bytes that are free on the device now.
    """

    device: str
    dtype: str
    context: int
    parts: tuple[MemoryPart, ...]
    free: int

    @property
    def needed(self) -> int:
        """Bytes that are taken beside what is held already."""
        return sum(part.nbytes for part in self.parts if not part.already_held)

    @property
    def fits(self) -> bool:
        return self.needed <= self.free


@dataclass(frozen=True)
class MemoryEstimated:
    """An estimate that was asked for; `tag` is that of the `Estimate`."""

    settings: LoadSettings
    estimate: MemoryEstimate
    tag: str | None = None


@dataclass(frozen=True)
class EstimateFailed:
    """Nothing can be said of these settings: a file is not here yet, or something is wrong with it. `tag` as in
    `MemoryEstimated`.
    """

    settings: LoadSettings
    problem: Problem
    tag: str | None = None


@dataclass(frozen=True)
class WorkerClosed:
    """The worker thread is about to end; the last event it sends."""


@dataclass(frozen=True)
class WorkerReady:
    """torch is imported; the first load will not wait for it."""

    torch_version: str
    devices: tuple[str, ...]
    import_seconds: float


Event = (
    LoadProgressed
    | ModelLoaded
    | ModelUnloaded
    | LoadFailed
    | LoadCancelled
    | AdaptersActivated
    | AdaptersChanged
    | CommandFailed
    | RequestQueued
    | RequestStarted
    | TokensGenerated
    | RequestFinished
    | RequestFailed
    | MemoryMeasured
    | MemoryEstimated
    | EstimateFailed
    | WorkerReady
    | WorkerClosed
)
