"""Answers in OpenAI's words: whole ones and chunks, of chats and of text completions."""

from __future__ import annotations

import codecs
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loradesk_engine.events import FinishReason, RequestFinished, RequestStarted, TokenLogprob, TokensGenerated
from loradesk_engine.serving.http.feed import RequestEvent
from loradesk_engine.serving.http.requests import Job

LEAST_LOGPROB = -9999.0  # OpenAI's number for minus infinity, which JSON lacks
DIGITS = 6


@dataclass
class _Choice:
    """One answer as far as it has come."""

    text: str = ""
    reason: FinishReason | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    scalings: list[dict[str, Any]] = field(default_factory=list)
    end: RequestFinished | None = None
    offset: int = 0  # characters that the tokens so far make, for `text_offset`
    characters: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )


class Dialect(ABC):
    """Puts events of a job into OpenAI's shapes."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, job: Job) -> None:
        self._job = job
        self._created = int(time.time())
        self._choices = [_Choice() for _ in job.requests]

    # --- what differs -------------------------------------------------------------------------------------------------

    @abstractmethod
    def _opening(self, index: int) -> dict[str, Any] | None:
        """The choice of a chunk that comes before any text."""

    @abstractmethod
    def _piece(self, index: int, text: str, logprobs: Any, reason: FinishReason | None) -> dict[str, Any]:
        """The choice of a chunk."""

    @abstractmethod
    def _answer(self, index: int, choice: _Choice) -> dict[str, Any]:
        """The choice of a whole answer."""

    @abstractmethod
    def _logprobs(self, choice: _Choice, items: list[TokenLogprob]) -> Any:
        """Log-probabilities in this dialect's shape."""

    # --- chunks -------------------------------------------------------------------------------------------------------

    def chunks(self, index: int, event: RequestEvent) -> Iterator[dict[str, Any]]:
        """What an event adds to the stream."""
        if isinstance(event, RequestStarted):
            opening = self._opening(index)
            if opening is not None:
                yield self._chunk([opening])
        elif isinstance(event, TokensGenerated):
            choice = self._choices[index]
            scalings = self._scalings(event)
            if event.text or event.logprobs or scalings:
                logprobs = self._logprobs(choice, list(event.logprobs)) if self._job.logprobs else None
                chunk = self._chunk([self._piece(index, event.text, logprobs, None)])
                if scalings is not None:
                    chunk["loradesk_scalings"] = scalings
                yield chunk
        elif isinstance(event, RequestFinished):
            self._choices[index].end = event
            yield self._chunk([self._piece(index, "", None, event.finish_reason)])

    def last(self) -> Iterator[dict[str, Any]]:
        """The chunk with the counts, if it was asked for."""
        if self._job.usage:
            yield {**self._chunk([]), "usage": self._usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._head(self.chunk_object) | {"choices": choices}
        if self._job.usage:
            chunk["usage"] = None
        return chunk

    # --- whole answers ------------------------------------------------------------------------------------------------

    def take(self, index: int, event: RequestEvent) -> None:
        """Gather an event for `whole`."""
        choice = self._choices[index]
        if isinstance(event, TokensGenerated):
            choice.text += event.text
            choice.logprobs += event.logprobs
            scalings = self._scalings(event)
            if scalings is not None:
                choice.scalings.append(scalings)
        elif isinstance(event, RequestFinished):
            choice.end = event
            choice.reason = event.finish_reason

    def whole(self) -> dict[str, Any]:
        """The answer, once all choices have ended."""
        choices = []
        for index, choice in enumerate(self._choices):
            answer = self._answer(index, choice)
            if choice.scalings:
                answer["loradesk_scalings"] = _joined(choice.scalings)
            choices.append(answer)
        return self._head(self.whole_object) | {"choices": choices, "usage": self._usage()}

    # --- parts --------------------------------------------------------------------------------------------------------

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.id_prefix}-{self._job.answer_id}",
            "object": kind,
            "created": self._created,
            "model": self._job.model,
        }

    def _usage(self) -> dict[str, Any]:
        """Each prompt counts once, however many answers it gets."""
        ends = [choice.end for choice in self._choices if choice.end is not None]
        prompts: dict[object, RequestFinished] = {}
        for request, choice in zip(self._job.requests, self._choices, strict=True):
            if choice.end is not None:
                prompts.setdefault(getattr(request, "prompt", ""), choice.end)
        prompt = sum(end.prompt_tokens for end in prompts.values())
        completion = sum(end.completion_tokens for end in ends)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(end.cached_tokens for end in prompts.values())},
        }

    def _scalings(self, event: TokensGenerated) -> dict[str, Any] | None:
        if self._job.scalings == "none" or event.scalings is None:
            return None
        values = event.scalings
        result: dict[str, Any] = {
            "start": event.scalings_start,
            "tokens": list(event.scaling_token_texts),
            "adapters": list(self._job.adapter_names),
            "mean": np.round(values.mean(axis=1, dtype=np.float64), DIGITS).tolist(),
        }
        if self._job.scalings == "layers":
            result["layers"] = np.round(values.astype(np.float64), DIGITS).tolist()
        return result


class ChatDialect(Dialect):
    """`/v1/chat/completions`."""

    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _opening(self, index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _piece(self, index: int, text: str, logprobs: Any, reason: FinishReason | None) -> dict[str, Any]:
        delta = {} if reason is not None else {"content": text}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _answer(self, index: int, choice: _Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        logprobs = self._logprobs(choice, choice.logprobs) if self._job.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.reason}

    def _logprobs(self, _choice: _Choice, items: list[TokenLogprob]) -> Any:
        def shape(item: TokenLogprob) -> dict[str, Any]:
            return {"token": item.text, "logprob": _finite(item.logprob), "bytes": list(item.data)}

        content = [shape(item) | {"top_logprobs": [shape(other) for other in item.top]} for item in items]
        return {"content": content, "refusal": None}


class TextDialect(Dialect):
    """`/v1/completions`."""

    id_prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def _opening(self, _index: int) -> dict[str, Any] | None:
        return None

    def _piece(self, index: int, text: str, logprobs: Any, reason: FinishReason | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _answer(self, index: int, choice: _Choice) -> dict[str, Any]:
        logprobs = self._logprobs(choice, choice.logprobs) if self._job.logprobs else None
        return {"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.reason}

    def _logprobs(self, choice: _Choice, items: list[TokenLogprob]) -> Any:
        offsets = []
        for item in items:
            offsets.append(choice.offset)
            choice.offset += len(choice.characters.decode(item.data))
        return {
            "tokens": [_name(item) for item in items],
            "token_logprobs": [_finite(item.logprob) for item in items],
            "top_logprobs": [{_name(other): _finite(other.logprob) for other in item.top} for item in items],
            "text_offset": offsets,
        }


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The scalings of a whole answer from those of its events."""
    result = dict(parts[0])
    for name in ("tokens", "mean", "layers"):
        if name in result:
            result[name] = [row for part in parts for row in part[name]]
    return result


def _finite(logprob: float) -> float:
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB


def _name(item: TokenLogprob) -> str:
    """A token as a key: parts of characters would all be U+FFFD, so they are told by their bytes, as OpenAI does."""
    try:
        return item.data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in item.data)
