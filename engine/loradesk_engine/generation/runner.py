"""Runs a planned step: forward pass, sampling, and the start of the step after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from loradesk_engine.adapters.classifier import Classifier
from loradesk_engine.adapters.mixture import Mixture
from loradesk_engine.generation.graphs import DecodeGraph
from loradesk_engine.generation.lookahead import Lookahead, keep_guesses
from loradesk_engine.generation.passes import Passes, PassOutput
from loradesk_engine.generation.plan import ComputedStep, NextToken, Output, Plan, Prediction, chunk_key
from loradesk_engine.generation.readback import PendingReadback
from loradesk_engine.generation.sampling import draw, process
from loradesk_engine.generation.scalings import Scalings
from loradesk_engine.generation.scheduler import Chunk
from loradesk_engine.generation.sequence import TokenSequence
from loradesk_engine.model.decoder import Decoder


class Runner:
    """Runs the model for the engine: a `Plan` in, an `Output` out.

    X-LoRA's generation rows and scaling rows have a cache slot each, and both are exact, so nothing is ever recomputed.

    On CUDA the next step of decoding sequences starts as soon as their tokens are sampled, before the host has read
    them, so the host's work on a token takes no extra time. In X-LoRA mode the device itself finds the right guess: the
    next step of that sequence is its generation row and new guesses, and that of a sequence without a right guess is
    the scaling row of its token. A request that arrives meanwhile waits for that step, because the device is busy with
    it anyway. If something else is to be computed (an adapter was switched), the step's results are ignored.

    Attributes:
        passes: the forward passes, with the KV cache.

    Args:
        lookahead: check guesses of the next token; without it every X-LoRA token takes two passes.
        tgt_non_granular_index: freeze the scalings after this many completion tokens; the scaling pass stops then.
    """

    def __init__(
        self,
        decoder: Decoder,
        mixture: Mixture | None = None,
        classifier: Classifier | None = None,
        *,
        lookahead: bool = True,
        tgt_non_granular_index: int | None = None,
    ) -> None:
        self.passes = Passes(decoder, mixture, classifier)
        self.freezes = tgt_non_granular_index is not None
        self._lookahead = Lookahead(self.passes, enabled=lookahead)
        self._scalings = Scalings(self.passes, self._lookahead, tgt_non_granular_index)

    @torch.inference_mode()
    def prepare(self, sequences: int, positions: int) -> None:
        """Reserve the cache, and compile and capture what the first tokens need, so that they are not delayed.

        sequences, positions: initial size of the cache. Growing it copies it and captures its graphs again.
        """
        self.passes.prepare(sequences, positions, lookahead=self._lookahead.enabled)

    def clear_cache(self) -> None:
        """Drop the contents of the cache, and the graphs that read it."""
        self.passes.clear_cache()

    def adapters_changed(self) -> None:
        """Drop everything built for the mixture's earlier adapters."""
        self._scalings.adapters_changed()
        self.passes.adapters_changed()

    @torch.inference_mode()
    def run(self, plan: Plan) -> Output:
        """Compute a step and sample the next token of each sequence whose end it reaches.

        Raises:
            RuntimeError, MemoryError: the step failed, usually out of memory; the contents of the cache are undefined.
        """
        cache_moved = self.passes.reserve(plan.all_chunks)
        scalings = self._scalings.of(plan.chunks, computed=plan.started is not None)
        step = self._compute(plan, scalings) if plan.started is None else plan.started
        looked_ahead = self._lookahead.keep_scalings(step, plan.all_chunks)
        predictions = step.predictions(plan.chunks)
        sampled = [sample(prediction) for prediction in predictions]
        unread = [*sampled, *(best.flatten() for _, best in looked_ahead)]
        if not unread:
            return Output(())
        readback = PendingReadback(torch.hstack(unread))
        started = None
        if self._can_start_next(plan, step, cache_moved=cache_moved):
            tokens = {prediction.sequence: token for prediction, token in zip(predictions, sampled, strict=True)}
            started = self._start_next(step, tokens)
        numbers = readback.wait()  # the only time in a step that the host waits for the device
        keep_guesses(looked_ahead, numbers[len(sampled) :])
        for chunk in plan.catching_up:
            chunk.sequence.xlora_state.use(0)
        output = tuple(
            NextToken(prediction.sequence, token, prediction.logits)
            for prediction, token in zip(predictions, numbers[: len(sampled)], strict=True)
        )
        for found in output:
            if found.token >= 0:
                self._lookahead.accept(found.sequence, found.token, column_moved=started is not None)
        return Output(output, started)

    # --- one pass -----------------------------------------------------------------------------------------------------

    def _compute(self, plan: Plan, scalings: Sequence[Tensor | None]) -> ComputedStep:
        """Generation rows of the chunks, and scaling rows of guesses and of the sequences catching up."""
        chunks, catching_up, passes = plan.chunks, plan.catching_up, self.passes
        guessed = [chunk for chunk in chunks if self._lookahead.may_guess(chunk)]
        uniform = passes.graphs is not None and plan.decodes and len(guessed) == len(chunks)
        if guessed:
            count = self._lookahead.choose_count(plan.all_chunks if uniform else guessed)
            if uniform and count:
                return self._compute_uniform(plan, scalings, count)
            if not count:
                guessed = []
        rows = [passes.generation_rows(chunk, given) for chunk, given in zip(chunks, scalings, strict=True)]
        for chunk in guessed:  # one guess each: without graphs there are no separate columns for more
            rows += passes.guess_rows(chunk, chunk.sequence.xlora_state.guesses[:1])
        rows += [passes.scaling_rows(chunk) for chunk in catching_up]
        scaling_rows = {chunk.sequence: slice(row, row + 1) for row, chunk in enumerate([*guessed, *catching_up])}
        ends = [number for number, chunk in enumerate(chunks) if chunk.reaches_end]
        logits_rows = {number: row for row, number in enumerate(ends)}
        classified = range(len(chunks), len(rows))
        active = passes.active_adapters([chunk.sequence for chunk in chunks])
        output = passes.run(rows, [*ends, *classified], classified, active)
        by_chunk = {chunk_key(chunk): logits_rows.get(number) for number, chunk in enumerate(chunks)}
        return ComputedStep(chunks, by_chunk, scaling_rows, output)

    def _compute_uniform(self, plan: Plan, scalings: Sequence[Tensor | None], guesses: int) -> ComputedStep:
        """The same for decoding sequences that all have guesses, in rows that the next step can follow."""
        chunks, passes = plan.all_chunks, self.passes
        given = [*scalings, *[None] * len(plan.catching_up)]
        rows = [passes.generation_rows(chunk, of_chunk) for chunk, of_chunk in zip(chunks, given, strict=True)]
        for chunk in plan.chunks:
            rows += passes.guess_rows(chunk, chunk.sequence.xlora_state.guesses[:guesses])
        for chunk in plan.catching_up:
            rows += [passes.scaling_rows(chunk)] * guesses
        classified = range(len(chunks), len(rows))
        output = passes.run(rows, range(len(rows)), classified, passes.all_adapters())
        return ComputedStep.uniform(chunks, guesses, output)

    # --- the step after it --------------------------------------------------------------------------------------------

    def _can_start_next(self, plan: Plan, step: ComputedStep, *, cache_moved: bool) -> bool:
        """Whether the next step can start before the host knows the tokens."""
        if any(chunk.sequence.sampling.logprobs is not None for chunk in plan.chunks):
            return False  # the next step would overwrite the logits
        if step.output.graph is None or (cache_moved and step is plan.started):
            return False  # (the graph of a step that started before the cache moved reads the old memory)
        if plan.others_wait or len(plan.all_chunks) != len(step.chunks):
            return False
        if not all(chunk.reaches_end for chunk in plan.chunks):
            return False
        if step.guesses:
            return not self.freezes and self._lookahead.stays(step.guesses, step.chunks)
        if self.passes.classifier is None:
            return True
        return not step.scaling_rows and all(chunk.sequence.xlora_state.frozen is not None for chunk in plan.chunks)

    def _start_next(self, last: ComputedStep, tokens: Mapping[TokenSequence, Tensor]) -> ComputedStep | None:
        """Start the step after `last` on the device, if any sequence is sure to continue.

        tokens: sampled from `last`, int64 [] each.
        """
        if all(chunk.sequence in tokens and chunk.sequence.ends_with_next for chunk in last.chunks):
            return None
        chunks = tuple(Chunk(chunk.sequence, chunk.start + (chunk.sequence in tokens), 1) for chunk in last.chunks)
        if max(chunk.start for chunk in chunks) + last.guesses >= self.passes.cache.capacity:
            return None
        graph, output = last.output.graph, last.output  # `advance` writes its results where those of `last` are
        assert graph is not None
        if last.guesses:
            output = self._follow(graph, chunks, tokens, last.guesses)
        else:
            graph.advance([tokens[chunk.sequence] for chunk in chunks])
        return ComputedStep.uniform(chunks, last.guesses, output)

    def _follow(
        self, graph: DecodeGraph, chunks: Sequence[Chunk], tokens: Mapping[TokenSequence, Tensor], guesses: int
    ) -> PassOutput:
        """X-LoRA's next step: a generation row of each chunk, then its scaling rows."""
        weights = torch.cat([self._scalings.weights_of(chunk.sequence)[0] for chunk in chunks])
        graph.follow([tokens.get(chunk.sequence) for chunk in chunks], guesses, weights)
        assert graph.predicted is not None
        first, last = len(chunks), len(chunks) * (1 + guesses)
        return PassOutput(graph.logits[:last], graph.best[:last], graph.predicted[first:last].clone(), graph)


def sample(prediction: Prediction) -> Tensor:
    """The next token, int64 []. It stays on the device, so the host does not wait for it."""
    sequence, sampling = prediction.sequence, prediction.sequence.sampling
    processed = process(prediction.logits, sampling, sequence.tokens[: sequence.prompt_length], sequence.answer)
    if processed is prediction.logits and sampling.temperature == 0:
        return prediction.best
    return draw(processed, sampling, sequence.generator)
