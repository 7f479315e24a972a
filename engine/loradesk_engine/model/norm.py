"""The norms of a decoder."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from loradesk_engine.model import kernels


class Norm(Protocol):
    """Normalises the last axis; any leading shape."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def add(self, hidden: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """hidden + change, which may replace `hidden` in place, and that normalised. Both [rows, size]."""
        ...


class _AddFirst:
    """The plain way to add and normalise."""

    def add(self: Norm, hidden: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        hidden = hidden + change
        return hidden, self(hidden)


class RmsNorm:
    """x / rms(x) * weight. weight: [size]"""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self._weight.shape, self._weight, self._eps)

    def add(self, hidden: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        step = kernels.in_use()
        if step is not None:
            return hidden, step.add_rms_norm(hidden, change, self._weight, self._eps)
        hidden = hidden + change
        return hidden, self(hidden)


class PlusOneRmsNorm(_AddFirst):
    """Gemma's: the weight is stored less one, and the product is taken in float32 before it is rounded."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = 1 + weight.float()
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self._weight.shape, self._weight, self._eps).to(x.dtype)


class LayerNorm(_AddFirst):
    """(x - mean) / deviation * weight + bias. weight, bias: [size]"""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        self._weight = weight
        self._bias = bias
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias, self._eps)


def cap(x: Tensor, limit: float) -> Tensor:
    """limit * tanh(x / limit): Gemma 2's soft cap."""
    return torch.tanh(x / limit) * limit
