"""The feed-forward part of a decoder layer, in the forms there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from loradesk_engine.model import kernels
from loradesk_engine.model.batch import Delta
from loradesk_engine.model.linear import Projection

Activation = Callable[[Tensor], Tensor]


class Mlp(Protocol):
    """x: [rows, hidden] -> [rows, hidden]"""

    def __call__(self, x: Tensor, delta: Delta | None) -> Tensor: ...


class GatedMlp:
    """down(activation(gate(x)) * up(x)): Llama and most others. gate_up gives gate and up side by side."""

    def __init__(self, gate_up: Projection, down: Projection, activation: Activation) -> None:
        self._gate_up, self._down, self._activation = gate_up, down, activation

    def __call__(self, x: Tensor, delta: Delta | None) -> Tensor:
        both = self._gate_up(x, delta)
        step = kernels.in_use()
        if step is not None and self._activation is F.silu:
            return self._down(step.silu_product(both), delta)
        gate, up = both.chunk(2, dim=-1)
        return self._down(self._activation(gate) * up, delta)


class PlainMlp:
    """second(activation(first(x))): Phi-2, StarCoder2."""

    def __init__(self, first: Projection, second: Projection, activation: Activation) -> None:
        self._first, self._second, self._activation = first, second, activation

    def __call__(self, x: Tensor, delta: Delta | None) -> Tensor:
        return self._second(self._activation(self._first(x, delta)), delta)


class ExpertsMlp:
    """Mixtral's: each token goes to its best experts, weighted by their shares among one another."""

    def __init__(self, router: Projection, experts: Sequence[GatedMlp], experts_per_token: int) -> None:
        self._router, self._experts, self._experts_per_token = router, experts, experts_per_token

    def __call__(self, x: Tensor, delta: Delta | None) -> Tensor:
        shares = torch.softmax(self._router(x, delta).float(), dim=-1)
        weights, chosen = torch.topk(shares, self._experts_per_token, dim=-1)  # [rows, experts_per_token]
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        out = torch.zeros_like(x)
        for number in sorted(set(chosen.flatten().tolist())):
            rows, places = (chosen == number).nonzero(as_tuple=True)
            part = self._experts[number](x[rows], None if delta is None else delta.take(rows))
            out.index_add_(0, rows, part * weights[rows, places, None])
        return out
