"""The engine's logits for sequences side by side, computed as requests are: a prefill, then cached steps."""

from __future__ import annotations

import torch

from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.batch import Batch, Segment

DECODE = 16
"""How many of a sequence's last tokens are single steps."""


def logits_of(engine: EngineCore, ids: list[torch.Tensor], weights: torch.Tensor | None) -> list[torch.Tensor]:
    """Prefill of the sequences in one ragged batch, then `DECODE` single cached steps: [tokens, vocab] for each."""
    cache = engine.decoder.new_cache()
    cache.reserve(len(ids), max(map(len, ids)))
    delta = None
    if weights is not None:
        assert engine.mixture is not None
        delta = engine.mixture.delta(weights, range(weights.shape[-1]))
    found: list[list[torch.Tensor]] = [[] for _ in ids]
    pasts = [0] * len(ids)
    for step in range(DECODE + 1):
        segments, tokens, positions = [], [], []
        for slot, sequence in enumerate(ids):
            count = len(sequence) - DECODE if step == 0 else 1
            segments.append(Segment(slot, len(tokens), count, pasts[slot]))
            tokens += sequence[pasts[slot] : pasts[slot] + count].tolist()
            positions += range(pasts[slot], pasts[slot] + count)
            pasts[slot] += count
        batch = Batch(torch.tensor(tokens), torch.tensor(positions), tuple(segments), delta)
        logits = engine.decoder.logits(engine.decoder.forward(batch, cache), delta)
        for segment in segments:
            found[segment.slot].append(logits[segment.start : segment.start + segment.length])
    return [torch.cat(parts) for parts in found]


@torch.inference_mode()
def with_one_adapter(engine: EngineCore, ids: torch.Tensor) -> torch.Tensor:
    """The logits of one sequence in one pass, the engine's only adapter at its full weight: [tokens, vocab]."""
    assert engine.mixture is not None
    cache = engine.decoder.new_cache()
    cache.reserve(1, len(ids))
    delta = engine.mixture.delta(torch.ones(1, 1, 1), [0])
    batch = Batch(ids, torch.arange(len(ids)), (Segment(0, 0, len(ids), 0),), delta)
    return engine.decoder.logits(engine.decoder.forward(batch, cache), delta)
