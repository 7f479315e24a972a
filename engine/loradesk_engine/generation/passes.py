"""Forward passes: on captured CUDA graphs, on the compiled kernels of the CPU, or on torch's operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loradesk_engine.adapters.classifier import Classifier
from loradesk_engine.adapters.mixture import Mixture, MixtureDelta
from loradesk_engine.generation.graphs import DecodeGraph, DecodeGraphs
from loradesk_engine.generation.guesses import MOST_GUESSES
from loradesk_engine.generation.rows import (
    Rows,
    prompt_graph_sizes,
    row_offsets,
    scalings_of_row,
    suit_graphs,
)
from loradesk_engine.generation.sampling import ranked
from loradesk_engine.generation.scheduler import Chunk
from loradesk_engine.generation.sequence import TokenSequence
from loradesk_engine.model import kernels
from loradesk_engine.model.batch import Batch, Segment
from loradesk_engine.model.decoder import Decoder
from loradesk_engine.model.device import SMALL_MODEL, one_thread
from loradesk_engine.model.kernel_protocol import StepKernels


@dataclass(frozen=True)
class PassOutput:
    """Results of a forward pass.

    Attributes:
        logits: of the requested rows, float32 [requested, vocab].
        best: their most likely tokens, best first, int64 [requested, ranks]; -1 where the logits are not finite.
        scalings: the classifier's predictions for the classified rows, float32 [rows, layers, adapters]; None without
            such rows.
        graph: the graph that computed it and can compute the next step; its next replay overwrites logits and best.
    """

    logits: Tensor
    best: Tensor
    scalings: Tensor | None
    graph: DecodeGraph | None = None

    def copied(self) -> PassOutput:
        """A copy that the graph's next replay does not overwrite."""
        return PassOutput(self.logits.clone(), self.best.clone(), self.scalings)

    def followed_by(self, other: PassOutput) -> PassOutput:
        """The rows of this pass and then those of another."""
        scalings = [part for part in (self.scalings, other.scalings) if part is not None]
        return PassOutput(
            torch.cat([self.logits, other.logits]),
            torch.cat([self.best, other.best]),
            torch.cat(scalings) if scalings else None,
        )


class Passes:
    """Runs forward passes of a model over its KV cache.

    In X-LoRA mode each sequence has two cache slots: one for its generation rows (activations with adapters) and one
    for its scaling rows (activations of the scaling pass).

    Attributes:
        cache: the KV cache.
        slots_each: cache slots of each sequence.
        graphs: captured graphs; None where they cannot be used.
    """

    def __init__(self, decoder: Decoder, mixture: Mixture | None, classifier: Classifier | None) -> None:
        self.decoder = decoder
        self.mixture = mixture
        self.classifier = classifier
        self.cache = decoder.new_cache()
        self.slots_each = 2 if classifier is not None else 1
        self.graphs: DecodeGraphs | None = None
        self._kernels: StepKernels | None = None
        self._uniform: tuple[Tensor, tuple[int, ...], MixtureDelta | None] | None = None  # the last shared delta
        if DecodeGraphs.usable(decoder):
            self.graphs = DecodeGraphs(decoder, self.cache, mixture, classifier)
        elif decoder.device.type == "cpu" and (decoder.native or decoder.parameters < SMALL_MODEL):
            # (larger models use torch's matrix products, whose threads would compete with those of the kernels)
            self._kernels = kernels.step_kernels(decoder.device, decoder.dtype)

    @property
    def most_guesses(self) -> int:
        """Maximum number of guesses for the next token. Only graphs have separate cache columns for them, and cheap
        rows.
        """
        return 1 if self.graphs is None else MOST_GUESSES

    def prepare(self, sequences: int, positions: int, *, lookahead: bool) -> None:
        """Reserve the cache and capture the graphs that the first tokens need; see `Runner.prepare`."""
        self.cache.reserve(sequences * self.slots_each, positions)
        if self.graphs is None:
            return
        for adapted in (False, True) if self.mixture is not None and self.mixture.adapters else (False,):
            for rows in (1, *prompt_graph_sizes()):
                self._capture(self.graphs, rows, adapted=adapted)
        if self.mixture is not None and self.classifier is not None and lookahead:
            graph = self._capture(self.graphs, 1 + MOST_GUESSES, adapted=True)
            graph.follow([None], MOST_GUESSES, torch.zeros((1, len(self.mixture.adapters)), device=self.decoder.device))

    @staticmethod
    def _capture(graphs: DecodeGraphs, rows: int, *, adapted: bool) -> DecodeGraph:
        graph, zeros = graphs.graph(rows, adapted=adapted), [0] * rows
        graph.run(zeros, zeros, list(range(rows)), zeros, [None] * rows)
        return graph

    def reserve(self, chunks: Sequence[Chunk]) -> bool:
        """Make room in the cache for chunks. Returns whether the cache moved in memory."""
        slots = max((chunk.sequence.slot or 0) + 1 for chunk in chunks) * self.slots_each
        return self.cache.reserve(slots, max(chunk.end for chunk in chunks) + 1)  # one for the guess's scaling row

    def clear_cache(self) -> None:
        """Drop the contents of the cache, and the graphs that read it."""
        self.cache.clear()
        if self.graphs is not None:
            self.graphs.clear()

    def adapters_changed(self) -> None:
        """Drop everything built for the mixture's earlier adapters."""
        self._uniform = None
        if self.graphs is not None:
            self.graphs.clear()

    # --- rows ---------------------------------------------------------------------------------------------------------

    def generation_rows(self, chunk: Chunk, scalings: Tensor | None) -> Rows:
        """Rows of a chunk that its answer is sampled from."""
        tokens = chunk.sequence.tokens[chunk.start : chunk.end]
        return Rows(tokens, chunk.start, self._slot(chunk.sequence), scalings)

    def scaling_rows(self, chunk: Chunk) -> Rows:
        """Rows of a chunk that the classifier reads."""
        tokens = chunk.sequence.tokens[chunk.start : chunk.end]
        return Rows(tokens, chunk.start, self.scaling_slot(chunk.sequence), self._scaling_pass_scalings())

    def guess_rows(self, chunk: Chunk, guesses: Sequence[int]) -> list[Rows]:
        """Scaling rows of guesses of the token after a chunk. All are at its position, each in its own cache column."""
        slot, scalings = self.scaling_slot(chunk.sequence), self._scaling_pass_scalings()
        return [Rows([token], chunk.end, slot, scalings, offset) for offset, token in enumerate(guesses)]

    def scaling_slot(self, sequence: TokenSequence) -> int:
        """The cache slot of a sequence's scaling rows."""
        return self._slot(sequence) + 1

    def _slot(self, sequence: TokenSequence) -> int:
        return self.slots_each * (sequence.slot or 0)

    def _scaling_pass_scalings(self) -> Tensor | None:
        assert self.classifier is not None
        value = self.classifier.config.scaling_pass_value
        if value == 0:
            return None
        return torch.full((1, 1, self.classifier.adapters), value, device=self.decoder.device)

    def all_adapters(self) -> tuple[int, ...]:
        """Places of all adapters."""
        return tuple(range(len(self.mixture.adapters))) if self.mixture is not None else ()

    def active_adapters(self, sequences: Sequence[TokenSequence]) -> tuple[int, ...]:
        """Places of the adapters that any of the sequences uses. No tensor is read, so the host does not wait for the
        device.
        """
        if self.mixture is None:
            return ()
        if self.classifier is not None and self.classifier.config.scaling_pass_value != 0:
            return self.all_adapters()
        return tuple(
            place
            for place, adapter in enumerate(self.mixture.adapters)
            if any(sequence.state.weights.get(adapter.name, 0.0) != 0 for sequence in sequences)
        )

    # --- passes -------------------------------------------------------------------------------------------------------

    def run(
        self, parts: Sequence[Rows], requested: Sequence[int], classified: Sequence[int], active: tuple[int, ...]
    ) -> PassOutput:
        """Compute rows.

        Args:
            requested: numbers of the parts whose last row's logits are returned.
            classified: numbers of the parts whose rows the classifier reads.
            active: places of the adapters that any row uses.
        """
        if self.graphs is not None and suit_graphs(parts):
            return self._replay_parts(self.graphs, parts, requested, classified)
        if self._kernels is None:
            return self._compute(parts, requested, classified, active)
        with kernels.used(self._kernels), one_thread():
            return self._compute(parts, requested, classified, active)

    def _compute(
        self, parts: Sequence[Rows], requested: Sequence[int], classified: Sequence[int], active: tuple[int, ...]
    ) -> PassOutput:
        """`run` without a graph."""
        hidden = self._forward(parts, active)
        starts = row_offsets(parts)
        scalings = None
        if classified and self.classifier is not None:
            wanted = [hidden[starts[number] : starts[number + 1]] for number in classified]
            scalings = self.classifier(hidden if len(wanted) == len(parts) else torch.cat(wanted))
        ends = [starts[number + 1] - 1 for number in requested]
        if not ends:
            nothing = hidden.new_empty((0, 0), dtype=torch.float32)
            return PassOutput(nothing, nothing.long(), scalings)
        logits = self._logits(parts, hidden[ends], ends, active)
        return PassOutput(logits, ranked(logits, self.most_guesses if classified else 1), scalings)

    def _replay_parts(
        self, graphs: DecodeGraphs, parts: Sequence[Rows], requested: Sequence[int], classified: Sequence[int]
    ) -> PassOutput:
        """`run` on captured graphs. Rows of one sequence see the earlier ones, because every layer stores all keys and
        values in the cache before any row attends.
        """
        if all(len(part.tokens) == 1 for part in parts):
            return self._replay(graphs, parts, requested, classified)
        starts = row_offsets(parts)
        rows = [row for part in parts for row in part.split()]
        ends = [starts[number + 1] - 1 for number in requested]
        read = [row for number in classified for row in range(starts[number], starts[number + 1])]
        output = self._replay(graphs, rows, ends, read, prompts=True)
        return replace(output, graph=None)  # the next step has other rows

    def _replay(
        self,
        graphs: DecodeGraphs,
        rows: Sequence[Rows],
        requested: Sequence[int],
        classified: Sequence[int],
        *,
        prompts: bool = False,
    ) -> PassOutput:
        """`_replay_parts` for parts of one row each.

        prompts: use a graph of the prompt sizes instead of one for this number of rows.
        """
        most = kernels.MAX_ROWS
        if len(rows) > most:
            first = self._replay(graphs, rows[:most], *_within(requested, classified, 0, most)).copied()
            rest = _within(requested, classified, most, len(rows))
            return first.followed_by(self._replay(graphs, rows[most:], *rest, prompts=prompts))
        adapted = any(part.scalings is not None for part in rows)
        size = min(size for size in prompt_graph_sizes() if size >= len(rows)) if prompts else len(rows)
        graph = graphs.graph(size, adapted=adapted)
        graph.run(
            [part.tokens[0] for part in rows],
            [part.start for part in rows],
            [part.start + part.column_offset for part in rows],
            [part.slot for part in rows],
            [part.scalings for part in rows],
        )
        # The next replay overwrites these. Logits are read before it; scalings are needed in the step after.
        predicted = graph.predicted
        scalings = _select(predicted, classified).clone() if predicted is not None and classified else None
        return PassOutput(_select(graph.logits, requested), _select(graph.best, requested), scalings, graph)

    def _forward(self, parts: Sequence[Rows], active: tuple[int, ...]) -> Tensor:
        """Hidden states after the final norm, [rows, hidden]."""
        device = self.decoder.device
        segments: list[Segment] = []
        tokens: list[int] = []
        positions: list[int] = []
        for part in parts:
            assert not part.column_offset, "only graphs have separate columns"
            segments.append(Segment(part.slot, len(tokens), len(part.tokens), part.start))
            positions.extend(range(part.start, part.start + len(part.tokens)))
            tokens.extend(part.tokens)
        delta = self._delta([part.scalings for part in parts], [len(part.tokens) for part in parts], active)
        batch = Batch(
            torch.tensor(tokens, device=device), torch.tensor(positions, device=device), tuple(segments), delta
        )
        return self.decoder.forward(batch, self.cache)

    def _logits(self, parts: Sequence[Rows], hidden: Tensor, rows: Sequence[int], active: tuple[int, ...]) -> Tensor:
        """float32 [rows, vocab]. hidden: [rows, hidden], of these rows of the pass."""
        by_row = [part.scalings for part in parts for _ in part.tokens]
        offsets = [offset for part in parts for offset in range(len(part.tokens))]
        scalings = [scalings_of_row(by_row[row], offsets[row]) for row in rows]
        return self.decoder.logits(hidden, self._delta(scalings, [1] * len(rows), active))

    def _delta(
        self, scalings: Sequence[Tensor | None], lengths: Sequence[int], active: tuple[int, ...]
    ) -> MixtureDelta | None:
        """The mixture for parts of these lengths. If all of them share one row of weights, the delta is kept for the
        next step.
        """
        given = [part for part in scalings if part is not None]
        if self.mixture is None or not given:
            return None
        shared = given[0]
        if shared.shape[0] == 1 and len(given) == len(scalings) and all(part is shared for part in given):
            if self._uniform is None or self._uniform[0] is not shared or self._uniform[1] != active:
                self._uniform = (shared, active, self.mixture.delta(shared, active))
            return self._uniform[2]
        layers = max(part.shape[1] for part in given)
        adapters = len(self.mixture.adapters)
        rows = [
            torch.zeros(length, layers, adapters, device=self.decoder.device)
            if part is None
            else part.expand(length, layers, -1)
            for part, length in zip(scalings, lengths, strict=True)
        ]
        return self.mixture.delta(torch.cat(rows), active)


def _select(rows: Tensor, numbers: Sequence[int]) -> Tensor:
    """Some rows; a view if they are contiguous."""
    if not numbers:
        return rows[:0]
    first, last = numbers[0], numbers[-1] + 1
    return rows[first:last] if last - first == len(numbers) else rows[list(numbers)]


def _within(requested: Sequence[int], classified: Sequence[int], first: int, last: int) -> tuple[list[int], list[int]]:
    """The numbers from `first` to before `last`, counted from `first`."""
    requested_here, classified_here = (
        [number - first for number in numbers if first <= number < last] for numbers in (requested, classified)
    )
    return requested_here, classified_here
