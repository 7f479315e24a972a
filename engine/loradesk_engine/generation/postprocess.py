"""What follows from a step: the sampled tokens join their answers, and events report the progress."""

from __future__ import annotations

import time

import torch

from loradesk_engine.errors import RequestError
from loradesk_engine.events import (
    Event,
    FinishReason,
    Problem,
    RequestFailed,
    RequestFinished,
    RequestStarted,
    TokensGenerated,
)
from loradesk_engine.formats.tokenizer import Tokenizer
from loradesk_engine.generation.plan import NextToken, Output, Plan
from loradesk_engine.generation.sampling import logprob_of
from loradesk_engine.generation.scheduler import Scheduler
from loradesk_engine.generation.sequence import TokenSequence


class Postprocessor:
    """Applies the output of a step to its sequences, and removes those that end from the scheduler."""

    def __init__(self, scheduler: Scheduler, tokenizer: Tokenizer) -> None:
        self._scheduler = scheduler
        self._tokenizer = tokenizer

    def apply(self, plan: Plan, output: Output) -> list[Event]:
        """Record what a step computed, and append the sampled tokens to their answers."""
        for chunk in plan.chunks:
            self._scheduler.mark_computed(chunk)
        return [event for token in output.tokens for event in self._append(token)]

    @torch.inference_mode()
    def _append(self, next_token: NextToken) -> list[Event]:
        sequence, token = next_token.sequence, next_token.token
        if token < 0:
            problem = RequestError("Nothing can be drawn: the model's logits are not numbers.")
            return [self.fail(sequence, problem)]
        if sequence.first_token is None:
            sequence.first_token = time.perf_counter()
        if token in sequence.stop_ids:
            return self.finish(sequence, "stop")
        sequence.tokens.append(token)
        top = sequence.sampling.logprobs
        if top is not None:
            sequence.logprobs.append(logprob_of(next_token.logits, token, top, self._tokenizer.token_bytes))
        text, stopped = sequence.stops.add(sequence.stream.add(token))
        event = self._generated(sequence, text, (token,))
        if stopped:
            return [event, *self.finish(sequence, "stop")]
        if len(sequence.tokens) >= sequence.limit:
            return [event, *self.finish(sequence, "length")]
        return [event]

    def finish(self, sequence: TokenSequence, reason: FinishReason) -> list[Event]:
        """Complete an answer, with text and scalings that were not reported yet. Its cache slot stays reusable."""
        rest = sequence.stops.add(sequence.stream.finish())[0] + sequence.stops.finish()
        events: list[Event] = []
        if rest or sequence.scalings:
            events.append(self._generated(sequence, rest, ()))
        key = None if sequence.mixed_states else sequence.state.key
        keep = sequence.xlora.frozen_at if sequence.xlora is not None else None
        self._scheduler.release(sequence, key=key, keep=keep)
        return [*events, finished(sequence, reason)]

    def fail(self, sequence: TokenSequence, problem: Exception) -> RequestFailed:
        """End a request with an error."""
        self._scheduler.release(sequence, key=None)
        return RequestFailed(sequence.request_id, Problem.of(problem))

    def _generated(self, sequence: TokenSequence, text: str, tokens: tuple[int, ...]) -> TokensGenerated:
        """New text and tokens, with the scalings and log-probabilities since the last event."""
        sequence.text += text
        scalings, start = None, sequence.scalings_start
        labels: tuple[str, ...] = ()
        if sequence.scalings:
            scalings = torch.cat([part.cpu() for part in sequence.scalings]).float().numpy()
            sequence.scalings.clear()
            sequence.scalings_start = start + len(scalings)
            labels = tuple(map(self._tokenizer.token_text, sequence.tokens[start : start + len(scalings)]))
        logprobs = tuple(sequence.logprobs)
        sequence.logprobs.clear()
        return TokensGenerated(
            sequence.request_id,
            text,
            tokens,
            tuple(map(self._tokenizer.token_text, tokens)),
            scalings,
            labels,
            start,
            logprobs,
            sequence.look_ahead,
        )


def started(sequence: TokenSequence) -> RequestStarted:
    """The event of an admitted sequence."""
    return RequestStarted(sequence.request_id, sequence.prompt_length, sequence.cached, dict(sequence.state.weights))


def finished(sequence: TokenSequence, reason: FinishReason) -> RequestFinished:
    """The event of a complete answer, with its timing up to now."""
    now = time.perf_counter()
    first = sequence.first_token or now
    later = sequence.completion_tokens - 1
    return RequestFinished(
        sequence.request_id,
        sequence.text,
        reason,
        sequence.prompt_length,
        sequence.completion_tokens,
        sequence.cached,
        first - sequence.admitted,
        later / (now - first) if later > 0 and now > first else 0.0,
        sequence.look_ahead,
    )
