"""What one can ask of the engine: plain, frozen data that travels through the worker's queue. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from loradesk_engine.errors import RequestError

AdapterMode = Literal["none", "lora", "xlora"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Quantize = Literal["none", "nf4", "fp4", "int8"]


@dataclass(frozen=True)
class AdapterSource:
    """One adapter to load.

    Attributes:
        name: what the user calls it; unique among the adapters of a model.
        source: local PEFT folder or hub id; `owner/name/folder` for a folder of a repository. It may hold several
            adapters: the one of this name is taken.
    """

    name: str
    source: str


@dataclass(frozen=True)
class LoadSettings:
    """Everything that a load needs to know.

    Attributes:
        base: local folder or GGUF file of the base model, or on the hub `owner/name` or `owner/name/file.gguf`; empty
            takes the one that the ordering file names.
        revision: git revision for a hub id.
        mode: `none`, `lora` or `xlora`.
        adapters: LoRA adapters beside those of the ordering file's `preload_adapters`.
        repository: folder or hub id in which the adapters of the ordering file's `order` are found by their names, as
            far as nothing else says where they are.
        xlora: local folder or hub id of the X-LoRA checkpoint (mode `xlora`).
        xlora_relu: whether a ReLU stands between the classifier's linears, where neither the checkpoint's configuration
            nor its tensors say; None assumes it by the file's age.
        ordering: path of the ordering file; optional for `lora` and for PEFT-format X-LoRA checkpoints.
        device: `auto` takes CUDA, then MPS, then the CPU.
        dtype: `auto` takes bfloat16 on CUDA and float32 elsewhere while that fits.
        quantize: what bitsandbytes makes of the linears of a 16- or 32-bit checkpoint while they load.
        context: tokens a sequence may hold; None takes the model's own, at most 8,192.
        tgt_non_granular_index: X-LoRA: scalings are frozen after this many completion tokens.
        token: access token for gated repositories.
        name: what to call the model; None takes the last part of `base`.
    """

    base: str = ""
    revision: str | None = None
    mode: AdapterMode = "none"
    adapters: tuple[AdapterSource, ...] = ()
    repository: str | None = None
    xlora: str | None = None
    xlora_relu: bool | None = None
    ordering: str | None = None
    device: str = "auto"
    dtype: Precision = "auto"
    quantize: Quantize = "none"
    context: int | None = None
    tgt_non_granular_index: int | None = None
    token: str | None = field(default=None, repr=False)
    name: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the logits.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set whose probability reaches p.
        min_p: drop tokens less likely than min_p times the likeliest.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in prompt or answer (CTRL).
        presence_penalty: subtracted once for a token already in the answer (OpenAI).
        frequency_penalty: subtracted for each time a token is in the answer (OpenAI).
        logit_bias: token id -> number added to its logit.
        max_tokens: most completion tokens; None fills the context.
        stop: strings that end the answer; they are not part of it.
        stop_token_ids: ids that end the answer beside the model's own end tokens.
        ignore_end: go on past the model's end tokens (benchmarks).
        seed: the same seed gives the same answer on the same device; None draws one.
        logprobs: how many alternatives to report for each token; None reports none.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_end: bool = False
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, what: str) -> None:
            if not ok:
                raise RequestError(f"{getattr(self, name)!r} is out of range.", field=name, remedy=f"Use {what}.")

        def finite(name: str) -> bool:
            value = getattr(self, name)
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

        need(finite("temperature") and 0 <= self.temperature <= 100, "temperature", "a number from 0 to 100")
        need(isinstance(self.top_k, int) and self.top_k >= 0, "top_k", "0 (all) or a positive whole number")
        need(finite("top_p") and 0 < self.top_p <= 1, "top_p", "a number above 0 and at most 1")
        need(finite("min_p") and 0 <= self.min_p <= 1, "min_p", "a number from 0 to 1")
        need(
            finite("repetition_penalty") and 0 < self.repetition_penalty <= 100,
            "repetition_penalty",
            "a number above 0 and at most 100 (1 is off)",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            need(finite(name) and abs(getattr(self, name)) <= 100, name, "a number from -100 to 100")
        need(
            all(isinstance(token, int) and math.isfinite(bias) for token, bias in self.logit_bias.items()),
            "logit_bias",
            "token ids with finite numbers",
        )
        need(
            self.max_tokens is None or (isinstance(self.max_tokens, int) and self.max_tokens >= 1),
            "max_tokens",
            "a positive whole number, or leave it out",
        )
        need(all(isinstance(text, str) and text for text in self.stop), "stop", "strings that are not empty")
        need(self.seed is None or 0 <= self.seed < 2**63, "seed", "a whole number from 0 to 2^63 - 1")
        need(self.logprobs is None or 0 <= self.logprobs <= 20, "logprobs", "0 to 20")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str = field(repr=False)  # an error's message may show a request, and must not show what was said


@dataclass(frozen=True)
class ChatRequest:
    """Answer a conversation.

    Attributes:
        request_id: chosen by the asker; events carry it.
        messages: the conversation so far, the last one usually the user's.
        sampling: see `Sampling`.
        adapters: adapter name -> weight for this request alone; None takes what is active when it is admitted.
        follow_activation: later activations change this request at its next token (the chat pane's faders) instead of
            being kept out by the snapshot taken at admission.
        want_scalings: X-LoRA: put the scalings of each token into the events.
    """

    request_id: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    adapters: Mapping[str, float] | None = None
    follow_activation: bool = False
    want_scalings: bool = True


@dataclass(frozen=True)
class CompletionRequest:
    """Continue a plain text, or token ids, without a chat template. Attributes as in `ChatRequest`."""

    request_id: str
    prompt: str | tuple[int, ...] = field(repr=False)
    sampling: Sampling = Sampling()
    adapters: Mapping[str, float] | None = None
    follow_activation: bool = False
    want_scalings: bool = True


@dataclass(frozen=True)
class Load:
    """Load a model; the one that is loaded stays until the new one is ready. `tag` as in `Activate`."""

    settings: LoadSettings
    tag: str | None = None


@dataclass(frozen=True)
class Estimate:
    """Tell how much memory a load would take, from headers alone; a newer one replaces those that wait.

    Attributes:
        ask_hub: whether to fetch the headers of what is not downloaded yet.
        tag: as in `Activate`.
    """

    settings: LoadSettings
    ask_hub: bool = True
    tag: str | None = None


@dataclass(frozen=True)
class Unload:
    """Unload the model and free its memory. `tag` as in `Activate`."""

    tag: str | None = None


@dataclass(frozen=True)
class CancelLoad:
    """Stop the load under way; the model that was loaded before stays."""


@dataclass(frozen=True)
class Cancel:
    """Stop one request; it ends with finish reason `cancelled` within one step."""

    request_id: str


@dataclass(frozen=True)
class Activate:
    """Set the active adapters: name -> weight; adapters not named become inactive.

    In X-LoRA mode the weights multiply the classifier's scalings: 1 leaves an expert as trained, 0 mutes it.

    Attributes:
        weights: an adapter at weight 0 is not active; see `loradesk_engine.activation`.
        tag: chosen by the sender; the event that reports the outcome repeats it. An outcome is recognised by its tag
            alone, since contents are normalised on the way and others may send the same.
    """

    weights: Mapping[str, float]
    tag: str | None = None


@dataclass(frozen=True)
class AddAdapter:
    """Load one more LoRA adapter beside those that are there; it starts inactive. `tag` as in `Activate`."""

    adapter: AdapterSource
    tag: str | None = None


@dataclass(frozen=True)
class RemoveAdapter:
    """Let go of one LoRA adapter. `tag` as in `Activate`."""

    name: str
    tag: str | None = None


@dataclass(frozen=True)
class Close:
    """End the worker."""


Command = (
    Load
    | Estimate
    | Unload
    | CancelLoad
    | ChatRequest
    | CompletionRequest
    | Cancel
    | Activate
    | AddAdapter
    | RemoveAdapter
    | Close
)
