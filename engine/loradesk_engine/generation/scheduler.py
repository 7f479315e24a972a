"""Who runs in the next step, and in which slot. Plain bookkeeping: no tensors, so a policy is tested without a
model.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from loradesk_engine.generation.sequence import Sequence

IDLE_SLOTS = 4  # conversations that are remembered while nothing runs


@dataclass(frozen=True)
class Chunk:
    """Tokens of one sequence that the next step computes: `length` from position `start`."""

    sequence: Sequence
    start: int
    length: int


@dataclass
class Slot:
    """A place in the KV cache and what it remembers.

    Attributes:
        tokens: whose keys and values lie there, from position 0.
        key: the adapter state they were made under; None: nothing that may be used again.
        last_use: for letting go of the oldest.
    """

    number: int
    tokens: list[int] = field(default_factory=list)
    key: object = None
    last_use: int = 0


class Scheduler:
    """Continuous batching: sequences are admitted as slots are free, decode together, and prefill in chunks beside it.

    Args:
        max_sequences: how many run at once.
        step_tokens: most tokens a step computes; a long prompt is cut so that decoding beside it goes on.
    """

    def __init__(self, max_sequences: int, step_tokens: int) -> None:
        self.max_sequences = max_sequences
        self.step_tokens = step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.slots = [Slot(number) for number in range(max_sequences)]
        self._clock = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; they are admitted in this order."""
        self.waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Move waiting sequences into free slots; a slot that remembers their beginning saves its computation."""
        admitted = []
        while self.waiting and len(self.running) < self.max_sequences:
            sequence = self.waiting.popleft()
            slot, shared = self._best_slot(sequence)
            self._clock += 1
            slot.last_use = self._clock
            slot.tokens = slot.tokens[:shared]
            slot.key = None  # while it runs, nobody else may take it over
            sequence.slot = slot.number
            sequence.computed = sequence.cached = sequence.scalings_start = shared
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def _best_slot(self, sequence: Sequence) -> tuple[Slot, int]:
        """The free slot that shares most with the sequence, or else the one that was not used for longest.

        A short common beginning (a template's first tokens) does not count: the slot's own conversation may go on.
        Slots are taken from the front, so that the cache grows with the sequences that run at once, not with those that
        ever ran.
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
    def _shared(slot: Slot, sequence: Sequence) -> int:
        """How many tokens of the slot the sequence can take over; its last token is always computed, for its logits."""
        if slot.key is None or slot.key != sequence.state.key:
            return 0
        shared = 0
        for kept, wanted in zip(slot.tokens, sequence.tokens[:-1], strict=False):
            if kept != wanted:
                break
            shared += 1
        return shared

    def plan(self) -> list[Chunk]:
        """The next step: one token of every sequence that decodes, then as much prefill as the budget leaves."""
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

    def computed(self, chunk: Chunk) -> None:
        """Note that a chunk's keys and values are in the cache."""
        chunk.sequence.computed = chunk.start + chunk.length
        slot = self.slots[chunk.sequence.slot or 0]
        del slot.tokens[chunk.start :]
        slot.tokens.extend(chunk.sequence.tokens[chunk.start : chunk.start + chunk.length])

    def release(self, sequence: Sequence, *, key: object, keep: int | None = None) -> None:
        """End a sequence. Its slot remembers it under `key` (None: not at all), at most `keep` tokens of it."""
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

    def forget(self) -> None:
        """Let go of all that free slots remember."""
        taken = {running.slot for running in self.running}
        for slot in self.slots:
            if slot.number not in taken:
                slot.tokens.clear()
                slot.key = None
