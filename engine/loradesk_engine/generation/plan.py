"""A step of the engine as values: the plan of what it computes, and its output.

Nothing else passes between the steps, apart from the sequences themselves and the KV cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from loradesk_engine.generation.passes import PassOutput
from loradesk_engine.generation.scheduler import Chunk
from loradesk_engine.generation.sequence import TokenSequence


@dataclass(frozen=True)
class Prediction:
    """What the model predicts after a sequence. Valid until the next forward pass.

    Attributes:
        sequence: the sequence.
        logits: float32 [vocab], before any processing.
        best: the most likely token, int64 []; -1 if the logits are not finite.
    """

    sequence: TokenSequence
    logits: Tensor
    best: Tensor


@dataclass(frozen=True)
class ComputedStep:
    """A forward pass, and which of its rows belong to which chunk.

    Attributes:
        chunks: the chunks that it has generation rows of.
        logits_rows: chunk key -> row of the logits; None if the chunk does not reach the end of its sequence.
        scaling_rows: sequence -> its rows among the classified ones.
        output: of the pass. Its logits are those of the generation rows, then those of the scaling rows.
        guesses: scaling rows of each sequence, if the step is uniform: it has one generation row and this many scaling
            rows of every sequence, and all sequences decode. The generation row of one that is catching up is unused.
    """

    chunks: tuple[Chunk, ...]
    logits_rows: Mapping[object, int | None]
    scaling_rows: Mapping[TokenSequence, slice]
    output: PassOutput
    guesses: int = 0

    @classmethod
    def uniform(cls, chunks: tuple[Chunk, ...], guesses: int, output: PassOutput) -> ComputedStep:
        """A generation row of each chunk, then `guesses` scaling rows of each; 0 outside X-LoRA mode."""
        return cls(
            chunks,
            {chunk_key(chunk): row for row, chunk in enumerate(chunks)},
            {chunk.sequence: slice(n * guesses, (n + 1) * guesses) for n, chunk in enumerate(chunks) if guesses},
            output,
            guesses,
        )

    @property
    def sequences(self) -> set[TokenSequence]:
        """The sequences that it has generation rows of."""
        return {chunk.sequence for chunk in self.chunks}

    def covers(self, chunks: Sequence[Chunk], catching_up: Sequence[Chunk]) -> bool:
        """Whether it computed the generation rows of `chunks` and the scaling rows of `catching_up`."""
        computed = all(chunk_key(chunk) in self.logits_rows for chunk in (*chunks, *catching_up))
        return computed and all(chunk.sequence in self.scaling_rows for chunk in catching_up)

    def predictions(self, chunks: Sequence[Chunk]) -> list[Prediction]:
        """What follows those of the chunks that reach the end of their sequence, in this order."""
        rows = [(chunk.sequence, self.logits_rows[chunk_key(chunk)]) for chunk in chunks]
        return [
            Prediction(sequence, self.output.logits[row], self.output.best[row, 0])
            for sequence, row in rows
            if row is not None
        ]

    def scalings_of(self, sequence: TokenSequence) -> Tensor:
        """The classifier's predictions for a sequence's scaling rows, float32 [guesses, layers, adapters]."""
        assert self.output.scalings is not None
        return self.output.scalings[self.scaling_rows[sequence]]

    def guesses_after(self, sequence: TokenSequence) -> Tensor:
        """The most likely tokens after each of a sequence's scaling rows, int64 [guesses, ranks]."""
        assert self.output.scalings is not None
        best = self.output.best[len(self.output.best) - len(self.output.scalings) :]
        return best[self.scaling_rows[sequence]]


@dataclass(frozen=True)
class Plan:
    """What a step computes.

    Attributes:
        chunks: whose generation rows it computes.
        catching_up: decoding sequences whose scalings are missing. The step computes only the scaling row of their
            token; they decode in the next one.
        started: the computed step, if the device has begun it already.
        others_wait: whether further sequences wait for the step after it.
    """

    chunks: tuple[Chunk, ...]
    catching_up: tuple[Chunk, ...] = ()
    started: ComputedStep | None = None
    others_wait: bool = False

    @property
    def all_chunks(self) -> tuple[Chunk, ...]:
        """The chunks to decode, then those catching up."""
        return (*self.chunks, *self.catching_up)

    @property
    def decodes(self) -> bool:
        """Whether every chunk is the last token of its sequence."""
        return all(chunk.length == 1 and chunk.reaches_end for chunk in self.all_chunks)


@dataclass(frozen=True)
class NextToken:
    """A sampled token.

    Attributes:
        sequence: the sequence that it continues.
        token: its id; -1 if the logits are not finite.
        logits: those it was sampled from, float32 [vocab], before any processing. If the sequence wants
            log-probabilities they are valid until the next step, else they may be overwritten already.
    """

    sequence: TokenSequence
    token: int
    logits: Tensor


@dataclass(frozen=True)
class Output:
    """What a step produced.

    Attributes:
        tokens: the next token of each sequence whose end it reached.
        started: the step after it, if the device has begun it already.
    """

    tokens: tuple[NextToken, ...]
    started: ComputedStep | None = None


def make_plan(chunks: Sequence[Chunk], started: ComputedStep | None) -> Plan:
    """Plan a step.

    Where sequences can decode, one whose guess was wrong catches up beside them, so none waits for another's wrong
    guess. A step that the device has begun is used if it computes what is wanted; sequences that it does not have join
    with the next step. Otherwise its results are ignored.

    Args:
        chunks: what the scheduler wants to compute.
        started: the step that the device has begun.
    """
    if started is not None:
        sequences = started.sequences
        known = [chunk for chunk in chunks if chunk.sequence in sequences]
        ready, missing = _by_scalings(known)
        if known and started.covers(ready, missing):
            return Plan(ready, missing, started, others_wait=len(known) < len(chunks))
    ready, missing = _by_scalings(chunks)
    if missing and not (ready and all(chunk.length == 1 for chunk in missing)):
        return Plan(tuple(chunks))
    return Plan(ready, missing)


def has_scalings(chunk: Chunk) -> bool:
    """Whether the generation rows of a chunk can be computed without a scaling pass before them."""
    state = chunk.sequence.xlora
    return state is None or state.frozen is not None or (state.ready is not None and chunk.length == 1)


def _by_scalings(chunks: Sequence[Chunk]) -> tuple[tuple[Chunk, ...], tuple[Chunk, ...]]:
    """The chunks that have their scalings, and those that do not."""
    ready = tuple(chunk for chunk in chunks if has_scalings(chunk))
    return ready, tuple(chunk for chunk in chunks if not has_scalings(chunk))


def chunk_key(chunk: Chunk) -> object:
    """Equal for chunks with equal results: the adapter state and the tokens before a chunk determine its scalings."""
    return (id(chunk.sequence), chunk.start, chunk.length, chunk.sequence.state.key)
