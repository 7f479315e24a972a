"""From logits to a token: against transformers' own processors, and against the probabilities themselves."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from loradesk_engine.commands import Sampling
from loradesk_engine.generation.sampling import (
    FIRST_LOOK,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
)

VOCABULARIES = (7, FIRST_LOOK, FIRST_LOOK + 1, 49_152)


def logits_of(vocabulary: int, spread: float) -> torch.Tensor:
    return torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * spread


def theirs(processor: LogitsProcessor, logits: torch.Tensor, seen: list[int] | None = None) -> torch.Tensor:
    return processor(torch.tensor([seen or [0]]), logits[None].clone())[0]


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0, 30.0])  # from even to one likely token
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_cuts_are_those_of_transformers(vocabulary: int, spread: float) -> None:
    logits = logits_of(vocabulary, spread)
    for p in (0.05, 0.5, 0.9, 0.999):
        kept, expected = keep_top_p(logits, p), theirs(TopPLogitsWarper(p), logits.double())
        differ = kept.isfinite() != expected.isfinite()
        assert logits.double().softmax(-1)[differ].sum() < 2e-6  # sums of float32 end within that
        assert torch.equal(kept[kept.isfinite()], logits[kept.isfinite()])
    for k in (1, 3, 40):
        assert torch.equal(keep_top_k(logits, k), theirs(TopKLogitsWarper(k), logits))
    for least in (0.01, 0.3, 1.0):
        assert torch.equal(keep_min_p(logits, least), theirs(MinPLogitsWarper(least), logits))


@pytest.mark.parametrize("p", [1e-300, 1e-9])
def test_one_token_is_always_kept(p: float) -> None:
    logits = logits_of(49_152, 1.0)
    assert keep_top_p(logits, p).isfinite().nonzero().flatten().tolist() == [int(logits.argmax())]


def test_repetition_is_penalized_as_in_transformers() -> None:
    logits, seen = logits_of(100, 3.0), [3, 7, 7, 99]
    expected = theirs(RepetitionPenaltyLogitsProcessor(1.3), logits, seen)
    torch.testing.assert_close(penalize_repetition(logits, seen, 1.3), expected)


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.7), Sampling(temperature=1.5, top_k=6), Sampling(temperature=1.0, top_p=0.8)]
)
def test_tokens_are_drawn_by_their_probabilities(sampling: Sampling) -> None:
    logits, count = logits_of(12, 1.0), 5_000
    logits[5] = -torch.inf
    scaled = logits / sampling.temperature
    if sampling.top_k:
        scaled = theirs(TopKLogitsWarper(sampling.top_k), scaled)
    if sampling.top_p < 1:
        scaled = theirs(TopPLogitsWarper(sampling.top_p), scaled)
    expected = scaled.double().softmax(-1) * count
    generator = torch.Generator().manual_seed(1)
    tokens = torch.stack([draw(logits, sampling, generator) for _ in range(count)])
    seen = tokens.bincount(minlength=12).double()
    assert ((seen - expected).abs() <= 4.5 * expected.sqrt()).all()
    assert not seen[expected == 0].any()


def test_what_is_no_number_draws_nothing() -> None:
    logits = logits_of(50, 1.0)
    logits[3] = torch.nan
    assert int(draw(logits, Sampling(temperature=1.0, seed=1), torch.Generator())) == -1
