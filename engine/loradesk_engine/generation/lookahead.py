"""X-LoRA's look-ahead: which guesses of the next token are checked, and what follows from a right or a wrong one.

When token x[t] is known, its scaling row has run, and the logits of that row are the base model's guess of x[t+1]. So
one forward pass computes the generation row of x[t] and the scaling row of the guess. If the sampled token equals the
guess, its scalings are ready; otherwise its scaling row needs a pass. Only the computation of scalings is speculative:
the output is the same for any sampling.

Rows of wrong guesses cost time, so the number of guesses follows from how often they were right (`generation.guesses`):
none while the base model's guesses are mostly wrong; on a GPU up to three, the most likely tokens, each in its own
cache column.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from loradesk_engine.generation.guesses import GRAPH_ROW_COST, ROW_COST, after_token, worthwhile
from loradesk_engine.generation.passes import Passes
from loradesk_engine.generation.plan import ComputedStep
from loradesk_engine.generation.scheduler import Chunk
from loradesk_engine.generation.sequence import TokenSequence
from loradesk_engine.model import kernels

PROBE_EVERY = 4  # tokens between guesses while none is checked


class Lookahead:
    """The policy of look-ahead, and the guesses of each sequence.

    Args:
        enabled: False: never guess, so that every token takes two passes.
    """

    def __init__(self, passes: Passes, *, enabled: bool) -> None:
        self.enabled = enabled
        self._passes = passes
        self._count = 0  # guesses of each sequence that are checked at present

    def may_guess(self, chunk: Chunk) -> bool:
        """Whether there are guesses of the token after a chunk."""
        state = chunk.sequence.xlora
        return (
            self.enabled and state is not None and state.frozen is None and len(state.guesses) > 0 and chunk.reaches_end
        )

    def choose_count(self, chunks: Sequence[Chunk]) -> int:
        """Choose how many guesses of each of these chunks' sequences are checked from now on."""
        room = self._passes.cache.capacity - max(chunk.end for chunk in chunks)
        self._count = min(room, self._worthwhile(chunks))
        return self._count

    def stays(self, count: int, chunks: Sequence[Chunk]) -> bool:
        """Whether `count` is still the right number of guesses for these chunks' sequences."""
        return self._worthwhile(chunks) == count

    def _worthwhile(self, chunks: Sequence[Chunk]) -> int:
        shares = [chunk.sequence.xlora_state.right for chunk in chunks]
        most = min(self._passes.most_guesses, kernels.MAX_ROWS // len(shares) - 1)
        cost = ROW_COST if self._passes.graphs is None else GRAPH_ROW_COST
        return worthwhile(shares, max(1, most), cost, self._count)

    def wants_guesses(self, chunk: Chunk) -> bool:
        """Whether a scaling pass should also compute the guesses after a chunk.

        While no guess is checked they are computed only now and then, to notice when they become right: in a small
        model the logits take a fifth of a pass.
        """
        return self.enabled and (self._count > 0 or chunk.length > 1 or chunk.start % PROBE_EVERY == 0)

    def keep_scalings(self, step: ComputedStep, chunks: Sequence[Chunk]) -> list[tuple[TokenSequence, Tensor]]:
        """Keep the scalings of the scaling rows of a step. Returns the guesses after these rows, on the device."""
        sequences = [chunk.sequence for chunk in chunks if chunk.sequence in step.scaling_rows]
        for sequence in sequences:
            sequence.xlora_state.ahead = step.scalings_of(sequence)
        return [(sequence, step.guesses_after(sequence)) for sequence in sequences]

    def accept(self, sequence: TokenSequence, token: int, *, column_moved: bool) -> None:
        """Compare a sampled token, not yet appended to its sequence, with the guesses that were checked.

        column_moved: the device has already moved the keys and values of a right guess to their place.
        """
        state = sequence.xlora
        if state is None or state.frozen is not None or not state.guesses:
            return
        rank = state.guesses.index(token) if token in state.guesses else None
        state.right = after_token(state.right[: len(state.guesses)], rank)
        if state.ahead is None:
            state.guesses = ()  # none was checked; the next pass makes new ones
        elif rank is not None and rank < len(state.ahead):
            if rank and not column_moved:
                column = len(sequence.tokens)
                self._passes.cache.move(self._passes.scaling_slot(sequence), column + rank, column)
            state.hits += 1
            state.first_hits += rank == 0
            state.use(rank)
        else:
            state.misses += 1
            state.discard()


def keep_guesses(looked_ahead: Sequence[tuple[TokenSequence, Tensor]], numbers: Sequence[int]) -> None:
    """Keep the guesses after the scaling rows of a step, once they have reached the host.

    Args:
        looked_ahead: the sequences, with the guesses on the device, int64 [guesses, ranks] each.
        numbers: the same guesses on the host, flat.
    """
    place = 0
    for sequence, best in looked_ahead:
        count, ranks = best.shape
        likely = [max(token, 0) for token in numbers[place : place + best.numel()]]
        sequence.xlora_state.after = [likely[row * ranks : (row + 1) * ranks] for row in range(count)]
        place += best.numel()
