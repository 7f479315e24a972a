"""The scalings of generation rows: the request's weights in LoRA mode, the classifier's predictions in X-LoRA mode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loradesk_engine.generation.lookahead import Lookahead
from loradesk_engine.generation.passes import Passes
from loradesk_engine.generation.plan import has_scalings
from loradesk_engine.generation.readback import to_host
from loradesk_engine.generation.scheduler import Chunk
from loradesk_engine.generation.sequence import TokenSequence

WEIGHTS_KEPT = 64  # adapter states whose weights stay on the device


class Scalings:
    """Computes scalings, and runs the scaling pass where look-ahead has not done so.

    Args:
        freeze_after: non-granular scalings: keep them from this completion token on; None never freezes them.
    """

    def __init__(self, passes: Passes, lookahead: Lookahead, freeze_after: int | None) -> None:
        self._passes = passes
        self._lookahead = lookahead
        self._freeze_after = freeze_after
        self._weights: dict[object, Tensor] = {}  # key of an adapter state -> float32 [1, 1, adapters]

    def of(self, chunks: Sequence[Chunk], *, computed: bool) -> list[Tensor | None]:
        """The scalings of each chunk's generation rows, float32 [length or 1, layers or 1, adapters]; None for the base
        model.

        computed: the device has computed these rows already, so only scalings that a request wants to see are made.
        """
        if self._passes.mixture is None:
            return [None] * len(chunks)
        if self._passes.classifier is None:
            return [self.weights_of(chunk.sequence) if chunk.sequence.state.weights else None for chunk in chunks]
        missing = [chunk for chunk in chunks if not has_scalings(chunk)]
        predicted = dict(zip(map(id, missing), self._scaling_pass(missing), strict=True)) if missing else {}
        result: list[Tensor | None] = []
        for chunk in chunks:
            state, weighted = chunk.sequence.xlora_state, None
            if id(chunk) in predicted:
                scalings = predicted[id(chunk)]
                weighted = scalings * self.weights_of(chunk.sequence)
            else:
                scalings = state.known[None].expand(chunk.length, -1, -1)
                if not computed or chunk.sequence.want_scalings:
                    weighted = self._weighted_row(chunk.sequence)
            state.ready = None
            self._freeze(chunk, scalings)
            if chunk.sequence.want_scalings and weighted is not None:
                chunk.sequence.scalings.append(_for_event(chunk, weighted.expand(chunk.length, -1, -1)))
            result.append(weighted)
        return result

    def weights_of(self, sequence: TokenSequence) -> Tensor:
        """A sequence's adapter weights, float32 [1, 1, adapters]; in X-LoRA mode they multiply the scalings."""
        mixture, state = self._passes.mixture, sequence.state
        assert mixture is not None
        if state.key not in self._weights:
            if len(self._weights) >= WEIGHTS_KEPT:
                self._weights.clear()
            values = [state.weights.get(adapter.name, 0.0) for adapter in mixture.adapters]
            self._weights[state.key] = torch.tensor(values, device=self._passes.decoder.device)[None, None]
        return self._weights[state.key]

    def adapters_changed(self) -> None:
        """Drop the weights of the mixture's earlier adapters."""
        self._weights.clear()

    def _weighted_row(self, sequence: TokenSequence) -> Tensor:
        """The known scalings of the next token times the weights, float32 [1, layers, adapters]. The same tensor object
        as long as both are unchanged, so that graphs and deltas are not filled in again.
        """
        state, key = sequence.xlora_state, sequence.state.key
        known = state.known
        if state.row is None or state.row_of is not known or state.row_key != key:
            state.row, state.row_of, state.row_key = known[None] * self.weights_of(sequence), known, key
        return state.row

    def _scaling_pass(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """The scalings of whole chunks, float32 [length, layers, adapters] each. Keeps the guesses that follow them."""
        rows = [self._passes.scaling_rows(chunk) for chunk in chunks]
        guessing = [number for number, chunk in enumerate(chunks) if self._lookahead.wants_guesses(chunk)]
        output = self._passes.run(rows, guessing, range(len(rows)), self._passes.all_adapters())
        assert output.scalings is not None
        for number, best in zip(guessing, output.best.tolist(), strict=True):
            chunks[number].sequence.xlora_state.guesses = [max(token, 0) for token in best]
        return list(torch.split(output.scalings, [chunk.length for chunk in chunks]))

    def _freeze(self, chunk: Chunk, scalings: Tensor) -> None:
        """Freeze the scalings of a chunk's last token if it is the one before completion token `freeze_after`."""
        state, sequence = chunk.sequence.xlora_state, chunk.sequence
        if self._freeze_after is None or state.frozen is not None:
            return
        if chunk.end - sequence.prompt_length >= self._freeze_after:
            state.frozen = scalings[-1].clone()
            state.frozen_at = chunk.end
            state.guesses = ()


def _for_event(chunk: Chunk, scalings: Tensor) -> Tensor:
    """Scalings for the event of a token. Copy them to the host now; otherwise the reader blocks until the next step."""
    if scalings.device.type == "cuda" and chunk.length == 1 and chunk.reaches_end:
        return to_host(scalings)
    return scalings
