"""Triton's kernels of a decoding step, each against plain torch."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from support.precision import Reference

from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.generation.graphs import DecodeGraph
from loradesk_engine.generation.sampling import ranked

DEVICE = "cuda"


@pytest.mark.parametrize("size", [5, 1000, 1024, 32_000, 151_936])
@pytest.mark.parametrize("count", [1, 3])
def test_likeliest_tokens_are_topks(size: int, count: int) -> None:
    from loradesk_engine.model.kernels import ranking

    logits = torch.randn(4, size, generator=torch.Generator().manual_seed(size)).to(DEVICE)
    assert ranking.ranked(logits, count).tolist() == logits.topk(count).indices.tolist()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_has_no_likeliest_token(bad: float) -> None:
    from loradesk_engine.model.kernels import ranking

    logits = torch.randn(3, 5000, device=DEVICE)
    logits[1, 4321] = bad
    logits[2] = -torch.inf
    found = ranking.ranked(logits, 3)
    assert found[0].tolist() == logits[0].topk(3).indices.tolist()
    assert found[1, 0] == -1
    assert found[2].tolist() == [-1] * 3
    torch.testing.assert_close(found[:, 0], ranked(logits, 1)[:, 0])


def attended(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, limit: float | None, dtype: torch.dtype
) -> torch.Tensor:
    """A query over all keys by torch, in this type. q: [heads, size]; keys, values: [kv_heads, length, size]"""
    repeats = q.shape[0] // keys.shape[0]
    k, v = (part.to(dtype).repeat_interleave(repeats, 0) for part in (keys, values))
    scores = torch.einsum("hd,hkd->hk", q.to(dtype), k) * scale
    if limit is not None:
        scores = limit * torch.tanh(scores / limit)
    return torch.einsum("hk,hkd->hd", scores.softmax(-1), v).flatten()


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("position", [0, 5, 62, 63, 64, 126, 190])
def test_candidates_of_a_position_see_the_past_and_themselves(position: int, window: int | None) -> None:
    from loradesk_engine.model.kernels.attention import attend_rows

    generator = torch.Generator().manual_seed(position)
    keys, values = torch.randn(2, 2, 2, 256, 16, generator=generator).to(DEVICE)  # [slots, heads, capacity, size] each
    q = torch.randn(3, 4, 16, generator=generator).to(DEVICE)
    positions = torch.full((3,), position, device=DEVICE)
    columns = positions + torch.arange(3, device=DEVICE)
    slots = torch.ones_like(positions)
    found = attend_rows(q, keys, values, positions, columns, slots, 0.3, window, None)
    for row in range(3):
        begin = 0 if window is None else max(0, position + 1 - window)
        seen = [*range(begin, position), position + row]
        expected, own = (
            attended(q[row], keys[1][:, seen], values[1][:, seen], 0.3, None, dtype)
            for dtype in (torch.float64, torch.float32)
        )
        Reference(expected, own).assert_near(found[row].flatten())


@pytest.mark.parametrize("scale", [0.02, 0.1, 0.5])
def test_capped_scores_keep_their_digits(scale: float) -> None:
    from loradesk_engine.model.kernels.attention import attend_rows

    generator = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 1, 2, 128, 64, generator=generator).to(DEVICE)
    q = torch.randn(2, 8, 64, generator=generator).to(DEVICE)
    positions = torch.tensor([100, 101], device=DEVICE)
    found = attend_rows(q, keys, values, positions, positions, torch.zeros_like(positions), scale, None, 50.0)
    for row, seen in enumerate((101, 102)):
        expected, own = (
            attended(q[row], keys[0, :, :seen], values[0, :, :seen], scale, 50.0, dtype)
            for dtype in (torch.float64, torch.float32)
        )
        Reference(expected, own).assert_near(found[row].flatten())


def test_the_next_step_follows_from_the_drawn_tokens() -> None:
    from loradesk_engine.model.kernels.following import addresses, follow, keep_columns

    generator = torch.Generator().manual_seed(1)
    guesses = 3
    # three sequences: its second guess is right, its first one (drawn twice among them), none
    inputs = torch.tensor(
        [
            [1, 2, 3, 10, 11, 12, 20, 21, 20, 30, 31, 32, 1, 1, 1, 1],
            [4, 9, 6, 5, 5, 5, 10, 10, 10, 7, 7, 7, 4, 4, 4, 4],
            [4, 9, 6, 5, 6, 7, 10, 11, 12, 7, 8, 9, 4, 4, 4, 4],
            [0, 2, 4, 1, 1, 1, 3, 3, 3, 5, 5, 5, 0, 0, 0, 0],
        ],
        device=DEVICE,
    )
    drawn = torch.tensor([11, 20, 99], device=DEVICE)
    best = torch.arange(48, device=DEVICE).view(16, 3) + 500
    best[4, 2] = -1
    predicted = torch.rand(16, 5, 2, generator=generator).to(DEVICE)
    weights = torch.tensor([[1.0, 0.5], [2.0, 0.0], [1.0, 1.0]], device=DEVICE)
    scalings = torch.zeros(16, 5, 2, device=DEVICE)
    caches = [torch.randn(6, 2, 32, 24, generator=generator).to(DEVICE) for _ in range(4)]
    before = [cache.clone() for cache in caches]
    keep_columns(inputs, drawn, guesses, addresses(caches), caches[0])
    follow(inputs, drawn, guesses, best, predicted, weights, scalings)
    assert inputs.tolist() == [
        [11, 20, 99, 512, 513, 0, 518, 519, 520, 99, 99, 99, 1, 1, 1, 1],
        [5, 10, 7, 6, 6, 6, 11, 11, 11, 7, 7, 7, 4, 4, 4, 4],
        [5, 10, 7, 6, 7, 8, 11, 12, 13, 7, 7, 7, 4, 4, 4, 4],
        [0, 2, 4, 1, 1, 1, 3, 3, 3, 5, 5, 5, 0, 0, 0, 0],
    ]
    torch.testing.assert_close(scalings[0], predicted[4] * weights[0])
    torch.testing.assert_close(scalings[1], predicted[6] * weights[1])
    assert not scalings[2:].any()
    for cache, was in zip(caches, before, strict=True):
        was[1, :, 5] = was[1, :, 6]
        torch.testing.assert_close(cache, was)


def test_garbage_is_not_collected_within_a_capture(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = DecodeGraph._compute

    def with_much_garbage(graph: DecodeGraph) -> Any:
        if torch.cuda.is_current_stream_capturing():
            gc.set_threshold(1, 1, 1)
            kept = [[number] for number in range(1000)]
            gc.set_threshold(10**9)
            assert kept
        return compute(graph)

    thresholds = gc.get_threshold()
    gc.collect()
    try:
        gc.set_threshold(10**9)  # the earlier engine stays among the young objects
        earlier: list[object] = [EngineCore.load(zoo.xlora_settings(device="cuda"))]
        there = weakref.ref(earlier[0])
        earlier.append(earlier)
        del earlier
        monkeypatch.setattr(DecodeGraph, "_compute", with_much_garbage)
        EngineCore.load(zoo.xlora_settings(device="cuda"))
        assert there() is not None
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    assert there() is None
