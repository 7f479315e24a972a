"""The rotary position embedding that a GGUF file describes, as `rope_parameters` of a config.json."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from loradesk_engine.errors import FileFormatError
from loradesk_engine.files import finite_number
from loradesk_engine.formats.gguf_keys import Keys

ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Numbers of the configuration that lie among the tensors: the only data that is read with the header."""
MAX_ROPE_BYTES = 2**20  # of one of them; real ones have a few hundred


def gguf_rope(keys: Keys, hidden_per_head: int | None) -> dict[str, Any]:
    """`rope_parameters`, and what Phi-3's class wants beside them.

    Args:
        hidden_per_head: size of a head where the file does not say it.

    Raises:
        ConfigError, FileFormatError: a value is malformed or not supported.
    """
    theta = keys.value("rope.freq_base", 10_000.0)
    parameters = {"rope_theta": theta, **_rotated(keys, hidden_per_head), **_scaling(keys)}
    parameters = {key: value for key, value in parameters.items() if value is not None}
    if keys.architecture == "gemma3":
        local = {"rope_type": "default", "rope_theta": _local_base(keys)}
        return {"rope_parameters": {"full_attention": parameters, "sliding_attention": local}}
    # beside the rope's parameters, where Phi-3's class has a number of its own for it
    outer = parameters.get("original_max_position_embeddings")
    return {"rope_parameters": parameters, "original_max_position_embeddings": outer}


def _local_base(keys: Keys) -> float:
    """Base of Gemma 3's layers with a window; Ollama's files have a name of their own for it."""
    key = "rope.local.freq_base" if keys.value("rope.freq_base_swa") is None else "rope.freq_base_swa"
    given = keys.value(key, 10_000.0)
    base = finite_number(given)
    if base is None or base <= 1:  # here, since a config.json has another name for it
        raise keys.refuse(key, f"The base of the frequencies is {given!r}, not above 1.")
    return base


def _rotated(keys: Keys, hidden_per_head: int | None) -> dict[str, Any]:
    """How much of a head is rotated, where it is not all of it."""
    head = keys.value("attention.key_length", hidden_per_head)
    rotated = keys.value("rope.dimension_count", head)
    if not (isinstance(head, int) and isinstance(rotated, int) and 0 < rotated < head):
        return {}
    if keys.architecture != "phi3":
        raise keys.refuse(
            "rope.dimension_count",
            f"{rotated} of {head} values of a head are rotated: {keys.architecture} rotates all.",
        )
    return {"partial_rotary_factor": rotated / head}


def _scaling(keys: Keys) -> dict[str, Any]:
    """How the rotation is stretched to longer contexts."""
    factor = keys.value("rope.scaling.factor", keys.value("rope.scale_linear", 0))  # the older name
    stretched = factor not in (0, 1)
    kind = keys.value("rope.scaling.type", "linear")
    original = keys.value("rope.scaling.original_context_length")
    factors = _factors(keys, "rope_factors_long.weight"), _factors(keys, "rope_freqs.weight")
    if factors != (None, None) and stretched and kind != "none":
        raise keys.refuse("rope.scaling.factor", f"{factor!r} beside a divisor for each frequency is not supported.")
    if factors[0] is not None:
        return {
            "rope_type": "longrope",
            "short_factor": _factors(keys, "rope_factors_short.weight") or factors[0],
            "long_factor": factors[0],
            "original_max_position_embeddings": original or 4096,
            "attention_factor": keys.value("rope.scaling.attn_factor"),
        }
    if factors[1] is not None:  # Llama 3's scaling, already worked out: a divisor for each frequency
        return {
            "rope_type": "longrope",
            "short_factor": factors[1],
            "long_factor": factors[1],
            "original_max_position_embeddings": keys.value("context_length", 2048),
            "attention_factor": keys.value("rope.scaling.attn_factor", 1.0),
        }
    if kind == "yarn":
        return {
            "rope_type": kind,
            "factor": factor,
            "original_max_position_embeddings": original,
            "attention_factor": _yarn_attention(keys, factor),
            "beta_fast": keys.value("rope.scaling.yarn_beta_fast"),
            "beta_slow": keys.value("rope.scaling.yarn_beta_slow"),
        }
    attention = keys.value("rope.scaling.attn_factor", 1)
    if attention != 1:
        raise keys.refuse("rope.scaling.attn_factor", f"{attention!r} is not supported with the rope type {kind!r}.")
    if kind == "linear":
        return {"rope_type": kind, "factor": factor} if stretched else {"rope_type": "default"}
    return {"rope_type": "default" if kind == "none" else kind}  # others are refused where they are parsed


def _yarn_attention(keys: Keys, factor: Any) -> Any:
    """The factor of cosines and sines. `yarn_attn_factor` is Hugging Face's `attention_factor`, in whose place YaRN has
    one that follows from the stretch; `attn_factor` multiplies either. None where neither is there."""
    whole, more = keys.value("rope.scaling.yarn_attn_factor"), keys.value("rope.scaling.attn_factor")
    if more is None:
        return whole
    stretch, times = finite_number(factor), finite_number(more)
    if whole is None and stretch is not None and stretch > 0:
        whole = 0.1 * math.log(max(stretch, 1.0)) + 1.0
    base = finite_number(whole)
    if base is None or times is None:
        raise keys.refuse("rope.scaling.attn_factor", "The factors are not finite numbers.")
    return base * times


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
