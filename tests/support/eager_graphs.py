"""Stand-ins for captured CUDA graphs that compute eagerly, so that their use is tested on any machine."""

from __future__ import annotations

import torch

from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.generation.guesses import MOST_GUESSES
from loradesk_engine.generation.passes import Passes
from loradesk_engine.generation.sampling import ranked
from loradesk_engine.model import kernels
from loradesk_engine.model.batch import Batch, Segment


class EagerGraph:
    """One decoding step with the interface of `DecodeGraph`; the next one overwrites its results, as with a graph."""

    def __init__(self, passes: Passes, rows: int) -> None:
        self.passes = passes
        self.rows = rows
        self.logits = torch.empty(rows, passes.decoder.config.vocab_size)
        self.best = torch.empty(rows, MOST_GUESSES, dtype=torch.int64)
        self.predicted: torch.Tensor | None = None

    def run(self, tokens, positions, columns, slots, scalings) -> None:
        assert len(tokens) <= self.rows
        self.inputs = [list(part) for part in zip(tokens, positions, columns, slots, strict=True)]
        self.scalings = list(scalings)
        self.compute()

    def compute(self) -> None:
        passes = self.passes
        self.logits.fill_(torch.nan)
        candidates = []  # each is computed at its position, and put into its column when all have been
        for row, ((token, position, column, slot), scaling) in enumerate(zip(self.inputs, self.scalings, strict=True)):
            delta = None if scaling is None else passes.mixture.delta(scaling, range(len(passes.mixture.adapters)))
            segment = (Segment(slot, 0, 1, position),)
            hidden = passes.decoder.forward(
                Batch(torch.tensor([token]), torch.tensor([position]), segment, delta), passes.cache
            )
            lies = [tensor[slot, :, position].clone() for tensor in (*passes.cache.keys, *passes.cache.values)]
            candidates.append((slot, column, lies))
            self.logits[row] = passes.decoder.logits(hidden, delta)[0]
            if passes.classifier is not None:
                predicted = passes.classifier(hidden)
                if self.predicted is None:
                    self.predicted = torch.empty(self.rows, *predicted.shape[1:])
                self.predicted[row] = predicted[0]
        for slot, column, lies in candidates:
            for tensor, lay in zip((*passes.cache.keys, *passes.cache.values), lies, strict=True):
                tensor[slot, :, column] = lay
        self.best.copy_(ranked(self.logits, MOST_GUESSES))

    def advance(self, tokens) -> None:
        for part, token in zip(self.inputs, tokens, strict=True):
            part[:3] = [int(token), part[1] + 1, part[2] + 1]
        self.compute()

    def follow(self, tokens, guesses: int, weights: torch.Tensor) -> None:
        count = len(tokens)
        for number, drawn in enumerate(tokens):
            rows = range(count + number * guesses, count + (number + 1) * guesses)
            checked, position, slot = [self.inputs[row][0] for row in rows], *self.inputs[rows[0]][1::2]
            token = checked[0] if drawn is None else int(drawn)
            self.inputs[number][:3] = [token, position, position]
            if token not in checked:
                for row in rows:
                    self.inputs[row] = [token, position, position, slot]
                continue
            right = checked.index(token)
            self.passes.cache.move(slot, position + right, position)
            self.scalings[number] = self.predicted[rows[right]][None] * weights[number]
            for place, (row, guess) in enumerate(zip(rows, self.best[rows[right]].tolist(), strict=False)):
                self.inputs[row] = [max(guess, 0), position + 1, position + 1 + place, slot]
        self.compute()


class EagerGraphs:
    """A stand-in for `DecodeGraphs`."""

    def __init__(self, passes: Passes) -> None:
        self.passes = passes
        self.sizes: list[int] = []
        self.made: dict[int, EagerGraph] = {}

    def graph(self, rows: int, *, adapted: bool) -> EagerGraph:
        assert rows <= kernels.MAX_ROWS
        self.sizes.append(rows)
        return self.made.setdefault(rows, EagerGraph(self.passes, rows))


def use_eager_graphs(engine: EngineCore) -> EagerGraphs:
    """Let an engine compute on eager graphs; returns them."""
    graphs = EagerGraphs(engine._runner.passes)
    engine._runner.passes.graphs = graphs  # type: ignore[assignment]
    return graphs
