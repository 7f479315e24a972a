"""The rotary position embedding that a GGUF file describes."""

from __future__ import annotations

from functools import partial

import numpy as np

from loradesk_engine.architectures.architecture import Rope
from loradesk_engine.errors import ConfigError, FileFormatError
from loradesk_engine.formats.gguf_keys import Keys
from loradesk_engine.formats.rope import RopeConfig
from loradesk_engine.formats.rope_checks import (
    Refuse,
    checked_attention,
    checked_beta,
    checked_divisors,
    checked_factor,
    checked_rotary_dim,
    checked_theta,
    longrope_attention,
    yarn_attention,
)

ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Numbers of the configuration that lie among the tensors: the only data that is read with the header."""
MAX_ROPE_BYTES = 2**20  # of one of them; real ones have a few hundred


def gguf_ropes(keys: Keys, reading: Rope, head_dim: int) -> tuple[RopeConfig, RopeConfig | None]:
    """The rope of layers that see everything, and that of layers with a window where it is another (Gemma 3).

    Args:
        reading: what the family supports.

    Raises:
        ConfigError, FileFormatError: a value is malformed or not supported.
    """
    theta = _theta(keys, "rope.freq_base")
    rotary_dim = _rotary_dim(keys, reading, head_dim)
    rope = _rope(keys, reading, theta, rotary_dim)
    return rope, RopeConfig(_local_theta(keys), rotary_dim) if reading.local_theta is not None else None


def _theta(keys: Keys, key: str) -> float:
    return checked_theta(keys.positive(key, 10_000.0), partial(keys.refuse, key))


def _local_theta(keys: Keys) -> float:
    """Base of the layers with a window; Ollama's files have a name of their own for it."""
    return _theta(keys, "rope.local.freq_base" if keys.value("rope.freq_base_swa") is None else "rope.freq_base_swa")


def _rotary_dim(keys: Keys, reading: Rope, head_dim: int) -> int:
    """How many values of a head are rotated; more than it has mean all."""
    key = "rope.dimension_count"
    rotated = min(keys.integer(key, head_dim), head_dim)
    if rotated < head_dim and not reading.partial:
        raise keys.refuse(
            key, f"{rotated} of {head_dim} values of a head are rotated: {keys.architecture} rotates all."
        )
    return checked_rotary_dim(
        rotated, head_dim, partial(keys.refuse, "attention.key_length" if keys.value(key) is None else key)
    )


def _rope(keys: Keys, reading: Rope, theta: float, rotary_dim: int) -> RopeConfig:
    """The rope with its stretch to longer contexts."""
    older = keys.value("rope.scaling.factor") is None and keys.value("rope.scale_linear") is not None
    stretch = "rope.scale_linear" if older else "rope.scaling.factor"
    stretched = keys.value(stretch, 0) not in (0, 1)
    kind = keys.value("rope.scaling.type", "linear")
    long, freqs = _factors(keys, "rope_factors_long.weight"), _factors(keys, "rope_freqs.weight")
    if (long, freqs) != (None, None):
        if stretched and kind != "none":
            problem = f"{keys.value(stretch)!r} beside a divisor for each frequency is not supported."
            raise keys.refuse(stretch, problem)
        return _longrope(keys, theta, rotary_dim) if long is not None else _divided(keys, theta, rotary_dim, freqs)
    if kind == "yarn" and not reading.yarn_is_longrope:
        return _yarn(keys, theta, rotary_dim, stretch)
    attention = keys.value("rope.scaling.attn_factor", 1)
    if attention != 1:
        raise keys.refuse("rope.scaling.attn_factor", f"{attention!r} is not supported with the rope type {kind!r}.")
    if kind == "none" or (kind == "linear" and not stretched):
        return RopeConfig(theta, rotary_dim)
    if kind != "linear":
        raise keys.refuse(
            "rope.scaling.type", f"The rope type {kind!r} is not supported.", "Supported: none, linear, yarn."
        )
    factor = checked_factor(keys.positive(stretch), partial(keys.refuse, stretch))
    return RopeConfig(theta, rotary_dim, "linear", factor)


def _longrope(keys: Keys, theta: float, rotary_dim: int) -> RopeConfig:
    """Phi-3's: a divisor for each frequency, one list for short and one for long contexts."""
    key, name = "rope.scaling.original_context_length", "rope_factors_long.weight"
    long = checked_divisors(_factors(keys, name), rotary_dim, _about(keys, name))
    name = "rope_factors_short.weight"
    short = _factors(keys, name)
    original = keys.integer(key, 4096) if keys.value(key) != 0 else 4096
    factor = keys.integer("context_length") / original
    attention_key = "rope.scaling.attn_factor"
    if keys.value(attention_key) is None:
        attention = longrope_attention(factor, original, partial(keys.refuse, key))
    else:
        attention = keys.positive(attention_key)
    return RopeConfig(
        theta,
        rotary_dim,
        "longrope",
        factor,
        original_context=original,
        attention_factor=checked_attention(attention, partial(keys.refuse, attention_key)),
        short_factors=checked_divisors(short, rotary_dim, _about(keys, name)) if short else long,
        long_factors=long,
    )


def _divided(keys: Keys, theta: float, rotary_dim: int, divisors: list[float] | None) -> RopeConfig:
    """Llama 3's stretch, which files hold worked out: a divisor for each frequency."""
    factors = checked_divisors(divisors, rotary_dim, _about(keys, "rope_freqs.weight"))
    key = "rope.scaling.attn_factor"
    return RopeConfig(
        theta,
        rotary_dim,
        "longrope",
        original_context=keys.integer("context_length"),
        attention_factor=checked_attention(keys.positive(key, 1.0), partial(keys.refuse, key)),
        short_factors=factors,
        long_factors=factors,
    )


def _yarn(keys: Keys, theta: float, rotary_dim: int, stretch: str) -> RopeConfig:
    """YaRN. `yarn_attn_factor` is Hugging Face's `attention_factor`, in whose place YaRN has one that follows from the
    stretch; `attn_factor` multiplies either."""
    whole, more = "rope.scaling.yarn_attn_factor", "rope.scaling.attn_factor"
    multiplier = keys.positive(more, 1.0)
    factor = checked_factor(keys.positive(stretch), partial(keys.refuse, stretch))
    attention = keys.positive(whole, yarn_attention(factor)) * multiplier
    decided_by = next((key for key in (more, whole) if keys.value(key) is not None), stretch)
    return RopeConfig(
        theta,
        rotary_dim,
        "yarn",
        factor,
        beta_fast=_beta(keys, "rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=_beta(keys, "rope.scaling.yarn_beta_slow", 1.0),
        original_context=keys.integer("rope.scaling.original_context_length", keys.integer("context_length")),
        attention_factor=checked_attention(attention, partial(keys.refuse, decided_by)),
    )


def _beta(keys: Keys, key: str, default: float) -> float:
    return checked_beta(keys.positive(key, default), default, partial(keys.refuse, key))


def _about(keys: Keys, tensor: str) -> Refuse:
    """Makes errors about a tensor."""

    def refuse(problem: str, remedy: str | None = None) -> ConfigError:
        return ConfigError(problem, file=keys.file.path, field=tensor, remedy=remedy)

    return refuse


def _factors(keys: Keys, name: str) -> list[float] | None:
    tensor = keys.file.tensors.get(name)
    if tensor is None:
        return None
    file = keys.file.path
    if tensor.type != "F32":
        raise FileFormatError(f"Numbers of type F32 are expected, not {tensor.type}.", file=file, field=name)
    if tensor.nbytes > MAX_ROPE_BYTES:
        raise FileFormatError(
            f"The tensor is {tensor.nbytes:,} bytes, our limit is {MAX_ROPE_BYTES:,}.", file=file, field=name
        )
    values: list[float] = keys.file.raw(name).view(np.float32).tolist()
    return values
