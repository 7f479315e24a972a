"""The rotary position embedding that a config.json describes, in the spelling of transformers 4 or 5."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from loradesk_engine.architectures.architecture import Rope
from loradesk_engine.formats.fields import Fields
from loradesk_engine.formats.rope_checks import (
    checked_attention,
    checked_beta,
    checked_divisors,
    checked_factor,
    checked_rotary_dim,
    checked_theta,
    longrope_attention,
    yarn_attention,
)

RopeType = Literal["default", "linear", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding.

    Attributes:
        theta: base of the frequencies.
        rotary_dim: how many values of a head are rotated, from the front.
        kind: `default`; `linear`: positions divided by `factor`; `llama3`: low frequencies divided, a ramp between;
            `yarn`: the same with a ramp by dimension; `longrope`: a divisor for each frequency.
        factor, low_freq_factor, high_freq_factor, beta_fast, beta_slow, truncate: as in config.json.
        original_context: length that the model was trained on before it was stretched.
        attention_factor: cosines and sines are multiplied by it.
        short_factors, long_factors: longrope's divisors, for contexts up to and beyond the original one.
    """

    theta: float
    rotary_dim: int
    kind: RopeType = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    original_context: int = 8192
    attention_factor: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


def read_ropes(fields: Fields, reading: Rope, head_dim: int) -> tuple[RopeConfig, RopeConfig | None]:
    """The rope of layers that see everything, and that of layers with a window where it is another (Gemma 3).

    Args:
        fields: config.json with its class's defaults filled in.
        reading: how the family reads it.

    Raises:
        ConfigError: a value is malformed, or the type is not supported.
    """
    if reading.local_theta is not None:
        return _two_ropes(fields, reading, reading.local_theta, head_dim)
    scaling = fields.part("rope_scaling")  # the older spelling; where both are there transformers takes it
    if scaling is None or not scaling.values:
        scaling = fields.part("rope_parameters") or Fields({}, fields.file)
    return _rope(fields, scaling, reading, head_dim, "rope_theta"), None


def _two_ropes(fields: Fields, reading: Rope, local_theta: str, head_dim: int) -> tuple[RopeConfig, RopeConfig]:
    parameters = fields.part("rope_parameters") or Fields({}, fields.file)
    unknown = sorted(parameters.values.keys() - {"full_attention", "sliding_attention"})
    if unknown:
        raise fields.refuse("rope_parameters", f"full_attention and sliding_attention are expected, not {unknown[0]}.")
    scaling, whole, local = (
        Fields({}, fields.file) if part is None else part
        for part in (
            fields.part("rope_scaling"),
            parameters.part("full_attention"),
            parameters.part("sliding_attention"),
        )
    )
    whole = Fields({**whole.values, **scaling.values}, fields.file)
    return (
        _rope(fields, whole, reading, head_dim, "rope_theta"),
        _rope(fields, local, reading, head_dim, local_theta),
    )


def _rope(fields: Fields, part: Fields, reading: Rope, head_dim: int, outer: str) -> RopeConfig:
    """The rope that `part` describes. outer: the config's own key for the base, where `part` has none."""
    outside = part.values.get("rope_theta") is None
    theta = checked_theta(
        part.positive("rope_theta", fields.positive(outer)), partial(fields.refuse, outer if outside else "rope_theta")
    )
    kind = part.values.get("rope_type", part.values.get("type", "default"))
    rotary_dim = _rotary_dim(fields, part, reading, head_dim, kind)
    if kind in ("longrope", "su") or (reading.yarn_is_longrope and kind == "yarn"):
        return _longrope(fields, part, theta, rotary_dim)
    if kind == "default":
        return RopeConfig(theta, rotary_dim)
    if kind not in ("linear", "dynamic", "llama3", "yarn"):
        raise fields.refuse(
            "rope_scaling" if fields.values.get("rope_scaling") else "rope_parameters",
            f"The rope type {kind!r} is not supported.",
            "Supported: default, linear, dynamic, llama3, yarn, longrope.",
        )
    factor = checked_factor(part.positive("factor"), partial(part.refuse, "factor"))
    if kind == "dynamic":  # changes nothing up to max_position_embeddings, and no longer context can be chosen
        return RopeConfig(theta, rotary_dim)
    if kind == "linear":
        return RopeConfig(theta, rotary_dim, "linear", factor)
    original = _original_context(fields, part)
    if kind == "yarn":
        fast, slow = _beta(part, "beta_fast", 32.0), _beta(part, "beta_slow", 1.0)
        truncate = part.boolean("truncate", True)
        attention = checked_attention(
            part.optional("attention_factor") or _yarn_attention(part, factor),
            partial(part.refuse, _attention_field(part)),
        )
        return RopeConfig(
            theta,
            rotary_dim,
            "yarn",
            factor,
            beta_fast=fast,
            beta_slow=slow,
            truncate=truncate,
            original_context=original,
            attention_factor=attention,
        )
    low, high = part.number("low_freq_factor"), part.number("high_freq_factor")
    if not 0 < low < high:
        raise part.refuse("low_freq_factor", f"{low} and high_freq_factor {high} are not an ascending pair.")
    return RopeConfig(theta, rotary_dim, "llama3", factor, low, high, original_context=original)


def _rotary_dim(fields: Fields, part: Fields, reading: Rope, head_dim: int, kind: object) -> int:
    """How many values of a head are rotated: only Phi's classes look at `partial_rotary_factor`."""
    share = part.positive("partial_rotary_factor", fields.positive("partial_rotary_factor", 1.0))
    if share > 1 and reading.partial:
        raise fields.refuse(
            "partial_rotary_factor", f"{share} of a head cannot be rotated.", "Set a share above 0 and not above 1."
        )
    if not reading.partial:
        if kind != "default" and share != 1:  # transformers makes frequencies for a part, and then cannot rotate it
            raise fields.refuse("partial_rotary_factor", f"{share} of a head with the rope type {kind!r} is not known.")
        share = 1.0
    rotary_dim = int(head_dim * share)
    return checked_rotary_dim(rotary_dim, head_dim, partial(fields.refuse, "head_dim"))


def _original_context(fields: Fields, part: Fields) -> int:
    """The context before it was stretched: the config's own key goes before that of the rope, as in transformers."""
    found = part.integer("original_max_position_embeddings", fields.integer("max_position_embeddings"))
    return fields.integer("original_max_position_embeddings", found)


def _beta(part: Fields, field: str, default: float) -> float:
    return checked_beta(part.positive(field, default), default, partial(part.refuse, field))


def _yarn_attention(part: Fields, factor: float) -> float:
    """The attention factor that YaRN's paper suggests; DeepSeek's two scales where a config has them."""
    above, below = part.optional("mscale"), part.optional("mscale_all_dim")
    if above and below:
        return yarn_attention(factor, above) / yarn_attention(factor, below)
    return yarn_attention(factor)


def _attention_field(part: Fields) -> str:
    """The key that the attention factor follows from."""
    given = [name for name in ("attention_factor", "mscale", "factor") if part.values.get(name) is not None]
    return given[0] if given else "factor"


def _longrope(fields: Fields, part: Fields, theta: float, rotary_dim: int) -> RopeConfig:
    """Phi-3's: a divisor for each frequency, one list for short and one for long contexts."""
    original = _original_context(fields, part)
    short, long = (
        checked_divisors(part.values.get(name), rotary_dim, partial(part.refuse, name))
        for name in ("short_factor", "long_factor")
    )
    factor = part.optional("factor") or fields.integer("max_position_embeddings") / original
    attention = part.optional("attention_factor")
    if attention is None:
        attention = longrope_attention(factor, original, partial(fields.refuse, "original_max_position_embeddings"))
    return RopeConfig(
        theta,
        rotary_dim,
        "longrope",
        factor,
        original_context=original,
        attention_factor=checked_attention(attention, partial(part.refuse, _attention_field(part))),
        short_factors=short,
        long_factors=long,
    )
