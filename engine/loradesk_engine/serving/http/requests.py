"""From a body to requests of the engine."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from loradesk_engine.commands import ChatRequest, CompletionRequest, Message, Sampling
from loradesk_engine.errors import RequestError
from loradesk_engine.events import ModelInfo
from loradesk_engine.serving.http.feed import names_of
from loradesk_engine.serving.http.options import ServerOptions
from loradesk_engine.serving.http.refusal import Refusal, of_error
from loradesk_engine.serving.http.schemas import IGNORED, ChatBody, ChatMessage, Common, CompletionBody, LoraScale

Scalings = Literal["none", "mean", "layers"]


@dataclass(frozen=True)
class Job:
    """What one HTTP request asks of the engine.

    Attributes:
        answer_id: of the answer as a whole.
        requests: one for each choice: `n` for each prompt, in this order.
        model: as the request named it.
        adapter_names: the last axis of the scalings.
        scalings: how much of them to send.
        logprobs: whether to send log-probabilities.
        usage: send the counts as a last chunk.
        ignored: fields that were given and have no effect.
    """

    answer_id: str
    requests: tuple[ChatRequest | CompletionRequest, ...]
    model: str
    adapter_names: tuple[str, ...]
    scalings: Scalings
    logprobs: bool
    stream: bool
    usage: bool
    ignored: tuple[str, ...]


def chat_job(body: ChatBody, info: ModelInfo | None, options: ServerOptions) -> Job:
    """The job of a chat completion.

    Raises:
        Refusal: a field contradicts another or the model.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs: true.", param="top_logprobs", code="invalid_value")
    both = (body.max_tokens, body.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise Refusal(400, "max_tokens says something else.", param="max_completion_tokens", code="invalid_value")
    messages = tuple(_message(message, place) for place, message in enumerate(body.messages))
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    field = "max_completion_tokens" if body.max_completion_tokens is not None else "max_tokens"
    common = _Common(body, info, options, limit, field, (body.top_logprobs or 0) if body.logprobs else None)
    requests = tuple(
        ChatRequest(
            common.request_id(number),
            messages,
            common.sampling(number),
            common.adapters,
            want_scalings=common.scalings != "none",
        )
        for number in range(common.count(1))
    )
    return common.job(requests)


def completion_job(body: CompletionBody, info: ModelInfo | None, options: ServerOptions) -> Job:
    """The job of a text completion.

    Raises:
        Refusal: a field contradicts another or the model.
    """
    prompts = _prompts(body)
    common = _Common(body, info, options, body.max_tokens, "max_tokens", body.logprobs)
    choices = common.count(len(prompts)) // len(prompts)
    requests = tuple(
        CompletionRequest(
            common.request_id(place * choices + number),
            prompt,
            common.sampling(number),
            common.adapters,
            want_scalings=common.scalings != "none",
        )
        for place, prompt in enumerate(prompts)
        for number in range(choices)
    )
    return common.job(requests)


def _prompts(body: CompletionBody) -> list[str | tuple[int, ...]]:
    if isinstance(body.prompt, str):
        return [body.prompt]
    prompts: list[str | tuple[int, ...]] = []
    ids: list[int] = []
    for item in body.prompt:
        if isinstance(item, int):
            ids.append(item)
        else:
            prompts.append(item if isinstance(item, str) else tuple(item))
    return [tuple(ids)] if ids else prompts


def _message(message: ChatMessage, place: int) -> Message:
    content = message.content
    if content is None:
        if message.role != "assistant":
            raise Refusal(400, "A message needs a content.", param=f"messages.{place}.content", code="invalid_value")
        content = ""
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return Message("system" if message.role == "developer" else message.role, text)


class _Common:
    """The parts of a job that chat and text completions share."""

    def __init__(
        self,
        body: Common,
        info: ModelInfo | None,
        options: ServerOptions,
        limit: int | None,
        limit_field: str,
        logprobs: int | None,
    ) -> None:
        if info is None:
            raise Refusal(503, "No model is loaded.", code="no_model")
        self._body = body
        self._info = info
        self._options = options
        self._limit_field = limit_field
        self._logprobs = logprobs
        self._id = uuid.uuid4().hex
        if limit is not None and limit > options.max_tokens:
            raise Refusal(
                400,
                f"{limit_field} is {limit:,}; this server gives at most {options.max_tokens:,}.",
                param=limit_field,
                code="invalid_value",
            )
        self._limit = options.max_tokens if limit is None else limit
        self.adapters = _adapters(body, info)
        self.scalings: Scalings = (
            "layers" if body.include_scalings == "layers" else "mean" if body.include_scalings else "none"
        )
        if self.scalings != "none" and info.mode != "xlora":
            raise Refusal(
                400,
                "The model has no X-LoRA classifier, so there are no scalings to send.",
                param="include_scalings",
                code="invalid_value",
            )
        self.sampling(0)  # what is out of range is found before anything starts

    def request_id(self, number: int) -> str:
        return f"http-{self._id}-{number}"

    def count(self, prompts: int) -> int:
        """Choices in all."""
        count = prompts * (self._body.n or 1)
        if count > self._options.max_choices:
            raise Refusal(
                400,
                f"{count} answers are asked for; this server gives at most {self._options.max_choices} at once.",
                param="n" if self._body.n and self._body.n > 1 else "prompt",
                code="invalid_value",
            )
        return count

    def sampling(self, number: int) -> Sampling:
        """How choice `number` of a prompt is sampled: with a seed, each choice has its own."""
        body = self._body
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        try:
            return Sampling(
                temperature=1.0 if body.temperature is None else body.temperature,
                top_k=max(body.top_k or 0, 0),
                top_p=1.0 if body.top_p is None else body.top_p,
                min_p=body.min_p or 0.0,
                repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
                presence_penalty=body.presence_penalty or 0.0,
                frequency_penalty=body.frequency_penalty or 0.0,
                logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
                max_tokens=self._limit,
                stop=stop,
                stop_token_ids=tuple(body.stop_token_ids or ()),
                ignore_end=bool(body.ignore_eos),
                seed=None if body.seed is None else (body.seed + number) % 2**63,
                logprobs=self._logprobs,
            )
        except RequestError as problem:
            names = {"max_tokens": self._limit_field, "ignore_end": "ignore_eos"}
            raise of_error(problem, names.get(problem.field or "", problem.field)) from None

    def job(self, requests: tuple[ChatRequest, ...] | tuple[CompletionRequest, ...]) -> Job:
        body = self._body
        if body.stream_options is not None and not body.stream:
            raise Refusal(400, "stream_options needs stream: true.", param="stream_options", code="invalid_value")
        given = body.model_fields_set
        return Job(
            answer_id=self._id,
            requests=requests,
            model=body.model,
            adapter_names=tuple(names_of(self._info)),
            scalings=self.scalings,
            logprobs=self._logprobs is not None,
            stream=bool(body.stream),
            usage=body.stream_options is not None and body.stream_options.include_usage,
            ignored=tuple(name for name in IGNORED if name in given and getattr(body, name) is not None),
        )


def _adapters(body: Common, info: ModelInfo) -> Mapping[str, float] | None:
    """The adapters of a request; None: those that are active when it starts."""
    names = names_of(info)
    chosen: list[tuple[str, dict[str, float]]] = []
    if body.model != info.name:
        if body.model not in names:
            raise Refusal(
                404,
                f"There is no model {body.model!r}. There is: {', '.join([info.name, *names])}.",
                param="model",
                code="model_not_found",
            )
        chosen.append(("model", {body.model: 1.0}))
    if body.adapters is not None:
        given = body.adapters if isinstance(body.adapters, dict) else dict.fromkeys(body.adapters, 1.0)
        need_known(given, names, "adapters")
        chosen.append(("adapters", dict(given)))
    if body.lora is not None:
        chosen.append(("lora", scales(body.lora, names, "lora.")))
    if len(chosen) > 1:
        raise Refusal(
            400, f"{chosen[0][0]} names adapters already; use one of them.", param=chosen[1][0], code="invalid_value"
        )
    return chosen[0][1] if chosen else None


def need_known(given: Mapping[str, float], names: Mapping[str, int], param: str) -> None:
    """Refuse names of adapters that are not loaded."""
    for name in given:
        if name not in names:
            loaded = ", ".join(names) or "none"
            raise Refusal(
                400, f"There is no adapter {name!r}. Loaded: {loaded}.", param=param, code="adapter_not_found"
            )


def scales(items: list[LoraScale], names: Mapping[str, int], prefix: str = "") -> dict[str, float]:
    """llama.cpp's ids as names; adapters without an entry are inactive."""
    order = list(names)
    weights = {}
    for place, item in enumerate(items):
        if item.id >= len(order):
            raise Refusal(
                400,
                f"There is no adapter with the id {item.id}; GET /lora-adapters lists them.",
                param=f"{prefix}{place}.id",
                code="adapter_not_found",
            )
        weights[order[item.id]] = item.scale
    return weights
