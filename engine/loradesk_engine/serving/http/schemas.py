"""Bodies of requests. Types are strict, numbers finite and bounded, and unknown fields are refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_TEXT = 8_000_000
MAX_NAME = 256
MAX_ADAPTERS = 256

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Weight = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Penalty = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class Body(BaseModel):
    """Strict: `"5"` is no number, `5.0` no count and `true` neither."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(Body):
    """`include_usage` adds a last chunk with the counts."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class TextPart(Body):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """A turn. The fields that must be null are those that OpenAI's own answers carry when they are sent back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=1000)] | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    reasoning_content: None = None


class LoraScale(Body):
    """llama.cpp's way to set an adapter: its place in `/lora-adapters`, and a weight."""

    id: Annotated[int, Field(ge=0, lt=2**31)]
    scale: Weight


class ResponseFormat(Body):
    """Only plain text."""

    type: Literal["text"]


class Common(Body):
    """What chat and text completions share."""

    model: Annotated[str, Field(max_length=MAX_NAME, description="The model's id, or an adapter's: only that one")]
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Weight], Field(max_length=1024)] | None
    ) = None
    # common to llama.cpp, vLLM and mistral.rs
    top_k: Annotated[int, Field(ge=-1, lt=2**31, description="0 or -1: all")] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    # adapters
    adapters: (
        Annotated[list[Name], Field(max_length=MAX_ADAPTERS)]
        | Annotated[dict[Name, Weight], Field(max_length=MAX_ADAPTERS)]
        | None
    ) = Field(None, description="Adapters of this request: names, or name -> weight; those not named are inactive")
    lora: Annotated[list[LoraScale], Field(max_length=MAX_ADAPTERS)] | None = Field(
        None, description="The same in llama.cpp's way; ids as in /lora-adapters"
    )
    include_scalings: bool | Literal["layers"] | None = Field(
        None, description='X-LoRA: true: mean over the layers for each token; "layers": of every layer too'
    )
    # taken and without effect; named in the header X-Loradesk-Ignored
    user: Annotated[str, Field(max_length=4096)] | None = None


IGNORED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
)
"""Fields of OpenAI's clients that change nothing here. An answer to a request with one says so in a header."""


class ChatBody(Common):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2000)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: Annotated[str, Field(max_length=64)] | None = None
    safety_identifier: Annotated[str, Field(max_length=4096)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=4096)] | None = None
    prompt_cache_retention: Annotated[str, Field(max_length=64)] | None = None
    parallel_tool_calls: bool | None = None


Ids = Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000)]


class CompletionBody(Common):
    """`POST /v1/completions`."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=128)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=128)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: None = None


class ActivateBody(Body):
    """mistral.rs: these become the active adapters, each with weight 1; all others inactive."""

    adapter_names: Annotated[list[Name], Field(max_length=MAX_ADAPTERS)]


class LoadAdapterBody(Body):
    """vLLM: load a PEFT folder from below one of the server's adapter roots."""

    lora_name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]


class UnloadAdapterBody(Body):
    """vLLM."""

    lora_name: Name
    lora_int_id: Annotated[int, Field(ge=0, lt=2**31)] | None = None


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's shape of an error."""

    error: ErrorDetail
