"""Rotary position embedding in Hugging Face's layout: the first half of a head is rotated against the second."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from loradesk_engine.formats.rope import RopeConfig
from loradesk_engine.model.batch import Batch


def inverse_frequencies(config: RopeConfig, context: int) -> Tensor:
    """float32 [rotary_dim / 2], the angle each pair turns by at every position.

    Args:
        context: how long a sequence may become. longrope has one set of frequencies for contexts up to the original one
            and one for longer ones; it is chosen by this, because keys that are in the cache cannot be turned anew when
            a sequence grows past the border.
    """
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
    frequencies = 1.0 / config.theta**exponents
    if config.kind == "linear":
        return frequencies / config.factor
    if config.kind == "llama3":
        return _llama3(frequencies, config)
    if config.kind == "yarn":
        return _yarn(frequencies, config)
    if config.kind == "longrope":
        factors = config.long_factors if context > config.original_context else config.short_factors
        return frequencies / torch.tensor(factors)
    return frequencies


def _llama3(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """Long waves are stretched by the factor, short ones stay, with a ramp between (Llama 3.1)."""
    wavelengths = 2 * math.pi / frequencies
    ramp = (config.original_context / wavelengths - config.low_freq_factor) / (
        config.high_freq_factor - config.low_freq_factor
    )
    keep = ramp.clamp(0.0, 1.0)  # 1: short wave, unchanged; 0: long wave, divided by the factor
    return keep * frequencies + (1 - keep) * frequencies / config.factor


def _yarn(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """The same with the ramp over dimensions: between those that turn `beta_fast` and `beta_slow` times in the original
    context (Peng et al. 2023, equations 17 to 23)."""

    def dimension(turns: float) -> float:
        length = config.original_context / (turns * 2 * math.pi)
        return config.rotary_dim * math.log(length) / (2 * math.log(config.theta))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_dim - 1)
    if low == high:
        high += 0.001  # the ramp is a step then
    stretch = ((torch.arange(len(frequencies), dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    return stretch * frequencies / config.factor + (1 - stretch) * frequencies


class Rope:
    """Tables of cosines and sines that grow to the longest position seen.

    Args:
        context: how long a sequence may become.
    """

    def __init__(self, config: RopeConfig, context: int, device: torch.device, dtype: torch.dtype) -> None:
        self._frequencies = inverse_frequencies(config, context)
        self._factor = config.attention_factor
        self._device = device
        self._dtype = dtype
        self._cos = torch.empty(0, config.rotary_dim, device=device, dtype=dtype)
        self._sin = self._cos

    def reserve(self, positions: int) -> None:
        """Make the tables long enough for this many positions."""
        if positions <= self._cos.shape[0]:
            return
        length = 1 << max(positions - 1, 255).bit_length()
        angles = torch.arange(length, dtype=torch.float32)[:, None] * self._frequencies
        both = torch.cat([angles, angles], dim=-1)
        self._cos = (both.cos() * self._factor).to(self._device, self._dtype)
        # The sign of the first half's sine is part of the table: rotating is then a roll, two products and a sum.
        sin = both.sin() * self._factor
        sin[:, : sin.shape[1] // 2].neg_()
        self._sin = sin.to(self._device, self._dtype)

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of all positions there is room for, each [positions, rotary_dim]."""
        return self._cos, self._sin

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines for positions [rows], each [rows, 1, rotary_dim]."""
        return self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotation to the first rotary_dim values of each head. x: [rows, heads, head_dim] -> the same shape."""
    size = cos.shape[-1]
    if size == x.shape[-1]:
        return torch.addcmul(x * cos, x.roll(size // 2, dims=-1), sin)
    turned = x[..., :size]
    turned = torch.addcmul(turned * cos, turned.roll(size // 2, dims=-1), sin)
    return torch.cat([turned, x[..., size:]], dim=-1)


class Turns:
    """The rotation of a batch's rows: looked up once for all layers that use it."""

    def __init__(self, rope: Rope, batch: Batch) -> None:
        self._rope = rope
        self._positions = batch.positions
        self._found: tuple[Tensor, Tensor] | None = None

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """See `Rope.tables`."""
        return self._rope.tables

    def __call__(self, x: Tensor) -> Tensor:
        """x, [rows, heads, head_dim], rotated."""
        if self._found is None:
            self._found = self._rope.at(self._positions)
        return rotate(x, *self._found)
