"""What a rope's numbers must be, whatever file holds them, and the attention factors that follow from others.

Each function gets `refuse`, which makes the error to raise from a problem and a remedy and names file and field.
"""

from __future__ import annotations

import math
from typing import Protocol

from loradesk_engine.errors import ConfigError

BETAS = (1e-3, 1e6)
"""Turns in the original context that YaRN's ramp may begin or end at; its paper has 1 and 32."""

ATTENTION_FACTORS = (1e-2, 1e2)
"""What cosines and sines may be multiplied by; stretched models have 1 to 2."""


class Refuse(Protocol):
    """Makes the error about one field of a file."""

    def __call__(self, problem: str, remedy: str | None = None) -> ConfigError: ...


def checked_theta(theta: float, refuse: Refuse) -> float:
    """The base of the frequencies."""
    if theta <= 1:
        raise refuse(f"The base of the frequencies is {theta}, not above 1.", "Set the one the model was trained with.")
    return theta


def checked_rotary_dim(rotary_dim: int, head_dim: int, refuse: Refuse) -> int:
    """How many values of a head are rotated."""
    if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
        raise refuse(f"{rotary_dim} of {head_dim} values of a head cannot be rotated in pairs.")
    return rotary_dim


def checked_factor(factor: float, refuse: Refuse) -> float:
    """How many times the context is stretched."""
    if factor < 1:
        raise refuse(f"The rope's factor {factor} is under 1.")
    return factor


def checked_beta(beta: float, default: float, refuse: Refuse) -> float:
    """Turns in the original context that YaRN's ramp begins or ends at."""
    low, high = BETAS
    if not low <= beta <= high:
        raise refuse(f"{beta} is not within {low:g} and {high:g}.", f"Leave it out for the usual {default:g}.")
    return beta


def checked_attention(attention: float, refuse: Refuse) -> float:
    """The factor of cosines and sines: scores grow with its square, so that an extreme one gives logits that are no
    numbers."""
    low, high = ATTENTION_FACTORS
    if not low <= attention <= high:
        raise refuse(
            f"Cosines and sines would be multiplied by {attention:g}, which is not within {low:g} and {high:g}.",
            "Set what the model was trained with.",
        )
    return attention


def checked_divisors(values: object, rotary_dim: int, refuse: Refuse) -> tuple[float, ...]:
    """longrope's divisors, one for each frequency."""
    if (
        not isinstance(values, list)
        or len(values) != rotary_dim // 2
        or not all(type(value) in (int, float) and math.isfinite(value) and value > 0 for value in values)
    ):
        raise refuse(f"A list of {rotary_dim // 2} positive numbers is expected.")
    return tuple(map(float, values))


def yarn_attention(factor: float, multiplier: float = 1.0) -> float:
    """The attention factor that YaRN's paper suggests for a stretch."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


def longrope_attention(factor: float, original: int, refuse: Refuse) -> float:
    """longrope's attention factor for a stretch of the original context."""
    if original < 2:
        raise refuse(
            f"longrope's attention factor cannot be worked out from an original context of {original}.",
            "Set the length that the model was trained on before it was stretched.",
        )
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
