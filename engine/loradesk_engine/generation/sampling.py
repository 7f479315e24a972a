"""From logits to a token: small functions, logits -> processors -> probabilities -> id. All work on one row, float32
[vocab].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from loradesk_engine.commands import Sampling
from loradesk_engine.events import TokenLogprob

FIRST_LOOK = 1024  # tokens among which top-p looks first
LEAST_TEMPERATURE = 1e-5  # logits divided by less may leave float32


def penalize_repetition(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of the tokens in prompt and answer (CTRL, as transformers does)."""
    ids = torch.tensor(sorted(set(seen)), device=logits.device)
    values = logits[ids]
    return logits.index_put((ids,), torch.where(values > 0, values / penalty, values * penalty))


def penalize_use(logits: Tensor, counts: Mapping[int, int], presence: float, frequency: float) -> Tensor:
    """Subtract `presence` once and `frequency` for each use of a token in the answer (OpenAI)."""
    ids = torch.tensor(list(counts), device=logits.device)
    uses = torch.tensor(list(counts.values()), device=logits.device, dtype=logits.dtype)
    return logits.index_put((ids,), logits[ids] - presence - frequency * uses)


def add_bias(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Add a number to the logits of some tokens."""
    ids = torch.tensor(list(bias), device=logits.device)
    values = torch.tensor(list(bias.values()), device=logits.device, dtype=logits.dtype)
    return logits.index_put((ids,), values, accumulate=True)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Drop all but the k likeliest tokens; ties with the last of them stay."""
    if k >= logits.shape[-1]:
        return logits
    threshold = torch.topk(logits, k).values[-1]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Drop the tail behind the smallest set of likeliest tokens whose probability reaches p; one token always stays."""
    ordered, order = _likeliest_first(logits, p)
    probabilities = torch.exp(ordered - torch.logsumexp(logits, dim=-1))
    keep = probabilities.cumsum(-1) - probabilities < p
    keep[0] = True  # also where p is so small that it is 0 in float32
    kept = torch.where(keep, ordered, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(0, order, kept)


def _likeliest_first(logits: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Logits and their tokens, the largest first; on the CPU, where sorting a vocabulary takes as long as a token of a
    small model, only as many as surely reach the probability p.
    """
    if logits.device.type == "cpu" and len(logits) > FIRST_LOOK:
        ordered, order = torch.topk(logits, FIRST_LOOK)
        if torch.exp(ordered - torch.logsumexp(logits, dim=-1)).sum() > p:
            return ordered, order
    return torch.sort(logits, descending=True, stable=True)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Drop tokens less likely than min_p times the likeliest."""
    probabilities = torch.softmax(logits, dim=-1)
    return logits.masked_fill(probabilities < min_p * probabilities.max(), -torch.inf)


def process(logits: Tensor, sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Penalties and biases, in OpenAI's and transformers' order."""
    if sampling.repetition_penalty != 1.0:
        logits = penalize_repetition(logits, [*prompt, *answer], sampling.repetition_penalty)
    if (sampling.presence_penalty or sampling.frequency_penalty) and answer:
        logits = penalize_use(logits, Counter(answer), sampling.presence_penalty, sampling.frequency_penalty)
    if sampling.logit_bias:
        logits = add_bias(logits, sampling.logit_bias)
    return logits


def likeliest(logits: Tensor) -> Tensor:
    """The likeliest token of each row, or -1 where the logits are not numbers. [..., vocab] -> int64 [...]"""
    values, tokens = logits.max(dim=-1)
    return torch.where(values.isfinite(), tokens, -1)


def ranked(logits: Tensor, count: int) -> Tensor:
    """The likeliest tokens of each row, best first; -1 where the logits are not numbers. [rows, vocab] -> int64 [rows,
    count]
    """
    if count == 1:
        return likeliest(logits)[:, None]
    values, tokens = logits.topk(min(count, logits.shape[-1]), dim=-1)
    found = torch.where(values.isfinite(), tokens, -1)
    return F.pad(found, (0, count - found.shape[-1]), value=-1)  # of a vocabulary that is smaller


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """The next token, int64 [], or -1 where nothing can be drawn; it stays on the device, so nothing waits for it.

    Temperature 0, and what is as good as 0, takes the likeliest.
    """
    if sampling.temperature < LEAST_TEMPERATURE:
        return likeliest(logits)
    logits = logits / sampling.temperature
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p:
        logits = keep_min_p(logits, sampling.min_p)
    probabilities = torch.softmax(logits, dim=-1)
    if probabilities.device.type == "cpu":
        return _at_random_height(probabilities, generator)
    # what torch.multinomial does for one sample, without its check of the sum, which ends the process on CUDA
    waits = torch.empty_like(probabilities).exponential_(generator=generator)
    return likeliest(probabilities / waits)


def _at_random_height(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """The token that a random height in the stack of all probabilities belongs to: one random number instead of one for
    each token of the vocabulary, which take a CPU most of a millisecond.
    """
    stack = probabilities.double().cumsum(-1)
    height = torch.rand((), generator=generator, dtype=torch.float64) * stack[-1]
    return torch.where(stack[-1].isfinite(), torch.searchsorted(stack, height, right=True), -1)


def logprob_of(logits: Tensor, token: int, top: int, token_bytes: Callable[[int], bytes]) -> TokenLogprob:
    """Log-probabilities before any processing; `token_bytes` gives the bytes of a token."""
    logprobs = torch.log_softmax(logits, dim=-1)
    values, ids = torch.topk(logprobs, min(top, logits.shape[-1]))
    others = tuple(
        TokenLogprob(other, value, token_bytes(other))
        for other, value in zip(ids.tolist(), values.tolist(), strict=True)
    )
    return TokenLogprob(token, float(logprobs[token]), token_bytes(token), others)
