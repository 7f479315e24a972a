"""Rotary position embedding in Hugging Face's layout: the first half of a head is rotated against the second."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from loradesk_engine.formats.config import RopeConfig


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """float32 [head_dim / 2], the angle each pair turns by at every position."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / config.theta**exponents
    if config.kind == "linear":
        return frequencies / config.factor
    if config.kind == "llama3":
        return _llama3(frequencies, config)
    return frequencies


def _llama3(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """Long waves are stretched by the factor, short ones stay, with a ramp between (Llama 3.1)."""
    wavelengths = 2 * math.pi / frequencies
    ramp = (config.original_context / wavelengths - config.low_freq_factor) / (
        config.high_freq_factor - config.low_freq_factor
    )
    keep = ramp.clamp(0.0, 1.0)  # 1: short wave, unchanged; 0: long wave, divided by the factor
    return keep * frequencies + (1 - keep) * frequencies / config.factor


class Rope:
    """Tables of cosines and sines that grow to the longest position seen."""

    def __init__(self, config: RopeConfig, head_dim: int, device: torch.device, dtype: torch.dtype) -> None:
        self._frequencies = inverse_frequencies(config, head_dim)
        self._device = device
        self._dtype = dtype
        self._cos = torch.empty(0, head_dim, device=device, dtype=dtype)
        self._sin = self._cos

    def reserve(self, positions: int) -> None:
        """Make the tables long enough for this many positions."""
        if positions <= self._cos.shape[0]:
            return
        length = 1 << max(positions - 1, 255).bit_length()
        angles = torch.arange(length, dtype=torch.float32)[:, None] * self._frequencies
        both = torch.cat([angles, angles], dim=-1)
        self._cos = both.cos().to(self._device, self._dtype)
        # The sign of the first half's sine is part of the table: rotating is then a roll, two products and a sum.
        sin = both.sin()
        sin[:, : sin.shape[1] // 2].neg_()
        self._sin = sin.to(self._device, self._dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines for positions [rows], each [rows, 1, head_dim]."""
        return self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotation. x: [rows, heads, head_dim] -> the same shape."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
