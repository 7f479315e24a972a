"""Captured graphs' place in a runner, on any machine: these compute eagerly."""

from __future__ import annotations

import torch

from loradesk_engine.generation.guesses import MOST_GUESSES
from loradesk_engine.generation.runner import Runner
from loradesk_engine.generation.sampling import ranked
from loradesk_engine.model import kernels
from loradesk_engine.model.batch import Batch, Segment


class EagerGraph:
    """One decoding step with the interface of `DecodeGraph`; the next one overwrites its results, as with a graph."""

    def __init__(self, runner: Runner, rows: int) -> None:
        self.runner = runner
        self.rows = rows
        self.logits = torch.empty(rows, runner.decoder.config.vocab_size)
        self.best = torch.empty(rows, MOST_GUESSES, dtype=torch.int64)
        self.predicted: torch.Tensor | None = None

    def run(self, tokens, positions, columns, slots, scalings) -> None:
        assert len(tokens) <= self.rows
        self.inputs = [list(part) for part in zip(tokens, positions, columns, slots, strict=True)]
        self.scalings = list(scalings)
        self.compute()

    def compute(self) -> None:
        runner = self.runner
        self.logits.fill_(torch.nan)
        candidates = []  # each is computed at its position, and put into its column when all have been
        for row, ((token, position, column, slot), scaling) in enumerate(zip(self.inputs, self.scalings, strict=True)):
            delta = None if scaling is None else runner.mixture.delta(scaling, range(len(runner.mixture.adapters)))
            segment = (Segment(slot, 0, 1, position),)
            hidden = runner.decoder.forward(
                Batch(torch.tensor([token]), torch.tensor([position]), segment, delta), runner.cache
            )
            lies = [tensor[slot, :, position].clone() for tensor in (*runner.cache.keys, *runner.cache.values)]
            candidates.append((slot, column, lies))
            self.logits[row] = runner.decoder.logits(hidden, delta)[0]
            if runner.classifier is not None:
                predicted = runner.classifier(hidden)
                if self.predicted is None:
                    self.predicted = torch.empty(self.rows, *predicted.shape[1:])
                self.predicted[row] = predicted[0]
        for slot, column, lies in candidates:
            for tensor, lay in zip((*runner.cache.keys, *runner.cache.values), lies, strict=True):
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
            self.runner.cache.move(slot, position + right, position)
            self.scalings[number] = self.predicted[rows[right]][None] * weights[number]
            for place, (row, guess) in enumerate(zip(rows, self.best[rows[right]].tolist(), strict=False)):
                self.inputs[row] = [max(guess, 0), position + 1, position + 1 + place, slot]
        self.compute()


class EagerGraphs:
    """Stands where `DecodeGraphs` stands."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.sizes: list[int] = []
        self.made: dict[int, EagerGraph] = {}

    def graph(self, rows: int, *, adapted: bool) -> EagerGraph:
        assert rows <= kernels.MAX_ROWS
        self.sizes.append(rows)
        return self.made.setdefault(rows, EagerGraph(self.runner, rows))
