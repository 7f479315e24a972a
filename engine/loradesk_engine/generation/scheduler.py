"""Chooses what runs in the next step, and in which cache slot. It uses no tensors, so policies are tested without a
model.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from loradesk_engine.generation.sequence import TokenSequence

IDLE_SLOTS = 4  # conversations that stay in the cache while nothing runs


@dataclass(frozen=True)
class Chunk:
    """Tokens of one sequence to compute in a step: `length` tokens from position `start`."""

    sequence: TokenSequence
    start: int
    length: int

    @property
    def end(self) -> int:
        """Position after its last token."""
        return self.start + self.length

    @property
    def reaches_end(self) -> bool:
        """Whether its last token is the sequence's last, so that the next one can be sampled."""
        return self.end == len(self.sequence.tokens)


@dataclass
class Slot:
    """A place in the KV cache and its contents.

    Attributes:
        tokens: tokens whose keys and values it holds, from position 0.
        key: adapter state they were computed with; None if they must not be reused.
        last_use: when it was last assigned; the least recently used slot is overwritten first.
    """

    number: int
    tokens: list[int] = field(default_factory=list)
    key: object = None
    last_use: int = 0


class Scheduler:
    """Continuous batching: admits sequences as slots become free, decodes them together, and prefills in chunks beside
    them.

    Args:
        max_sequences: maximum number of running sequences.
        step_tokens: maximum number of tokens in a step; long prompts are split so that others keep decoding.
    """

    def __init__(self, max_sequences: int, step_tokens: int) -> None:
        self.max_sequences = max_sequences
        self.step_tokens = step_tokens
        self.waiting: deque[TokenSequence] = deque()
        self.running: list[TokenSequence] = []
        self.slots = [Slot(number) for number in range(max_sequences)]
        self._clock = 0

    @property
    def busy(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self.waiting or self.running)

    def add(self, sequence: TokenSequence) -> None:
        """Queue a sequence. Sequences are admitted in the order they were added."""
        self.waiting.append(sequence)

    def admit(self) -> list[TokenSequence]:
        """Move waiting sequences into free slots, preferring a slot that already holds the start of the prompt."""
        admitted = []
        while self.waiting and len(self.running) < self.max_sequences:
            sequence = self.waiting.popleft()
            slot, shared = self._best_slot(sequence)
            self._clock += 1
            slot.last_use = self._clock
            slot.tokens = slot.tokens[:shared]
            slot.key = None  # not reusable while the sequence runs
            sequence.slot = slot.number
            sequence.computed = sequence.cached = sequence.scalings_start = shared
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def _best_slot(self, sequence: TokenSequence) -> tuple[Slot, int]:
        """The free slot with the longest common prefix, or the least recently used one.

        A short common prefix (the first tokens of a template) does not count: the conversation in that slot may
        continue. Low slot numbers come first, so the cache grows with the number of concurrent sequences and not with
        the number of sequences ever run.
        """
        taken = {running.slot for running in self.running}
        in_use = max(IDLE_SLOTS, len(taken) + 1)
        free = [slot for slot in self.slots if slot.number not in taken]
        shared = {slot.number: self._shared(slot, sequence) for slot in free}
        best = max(free, key=lambda slot: shared[slot.number])
        if not shared[best.number] or shared[best.number] * 2 < len(best.tokens):
            near = [slot for slot in free if slot.number < in_use] or free
            best = min(near, key=lambda slot: slot.last_use)
        return best, shared[best.number]

    @staticmethod
    def _shared(slot: Slot, sequence: TokenSequence) -> int:
        """Length of the reusable common prefix. The last token is always computed, because its logits are needed."""
        if slot.key is None or slot.key != sequence.state.key:
            return 0
        shared = 0
        for kept, wanted in zip(slot.tokens, sequence.tokens[:-1], strict=False):
            if kept != wanted:
                break
            shared += 1
        return shared

    def schedule(self) -> list[Chunk]:
        """The next step: one token of every decoding sequence, then as much prefill as the budget allows."""
        chunks = []
        budget = self.step_tokens
        prefills = []
        for sequence in self.running:
            if len(sequence.tokens) - sequence.computed == 1:
                chunks.append(Chunk(sequence, sequence.computed, 1))
                budget -= 1
            else:
                prefills.append(sequence)
        for sequence in prefills:
            length = min(len(sequence.tokens) - sequence.computed, max(budget, 0))
            if not length and not chunks:
                length = 1
            if length:
                chunks.append(Chunk(sequence, sequence.computed, length))
                budget -= length
        return chunks

    def mark_computed(self, chunk: Chunk) -> None:
        """Record that a chunk's keys and values are in the cache."""
        chunk.sequence.computed = chunk.end
        slot = self.slots[chunk.sequence.slot or 0]
        del slot.tokens[chunk.start :]
        slot.tokens.extend(chunk.sequence.tokens[chunk.start : chunk.end])

    def release(self, sequence: TokenSequence, *, key: object, keep: int | None = None) -> None:
        """Remove a sequence. Up to `keep` of its tokens stay reusable in its slot, under `key`; None keeps nothing."""
        if sequence in self.running:
            self.running.remove(sequence)
            slot = self.slots[sequence.slot or 0]
            slot.key = key
            if keep is not None:
                del slot.tokens[keep:]
            if key is None:
                slot.tokens.clear()
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def clear_slots(self) -> None:
        """Mark the contents of all free slots as unusable."""
        taken = {running.slot for running in self.running}
        for slot in self.slots:
            if slot.number not in taken:
                slot.tokens.clear()
                slot.key = None
