"""Which adapters are active: the one rule for weights, for the engine and for everything that imitates it. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from loradesk_engine.errors import AdapterError

MAX_WEIGHT = 100.0


def active_weights(weights: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """What becomes active when `weights` are asked for: name -> weight in the order of `names`, without zeros.

    An adapter at weight 0 contributes nothing, so it is not active: nothing is computed for it.

    Args:
        weights: name -> weight, as in `Activate`.
        names: the loaded adapters, in the model's order.

    Raises:
        AdapterError: a name is not loaded, or a weight is not a finite number within range.
    """
    if weights and not names:
        raise AdapterError("No adapters are loaded.", field=next(iter(weights)), remedy="Load the model in LoRA mode.")
    for name, weight in weights.items():
        if name not in names:
            raise AdapterError(
                f"No adapter named {name!r} is loaded.", field=name, remedy=f"Loaded: {', '.join(names)}."
            )
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise AdapterError(f"{weight!r} is not a finite number.", field=name)
        if abs(weight) > MAX_WEIGHT:
            raise AdapterError(f"The weight {weight} is beyond {MAX_WEIGHT:g}.", field=name)
    return {name: float(weights[name]) for name in names if weights.get(name, 0.0) != 0}


def none_active(names: Sequence[str], active: Mapping[str, float]) -> str | None:
    """A sentence that says that adapters are loaded and none is active; None if that is not so."""
    if not names or active:
        return None
    if len(names) == 1:
        return f"1 adapter loaded, not active: {names[0]}."
    return f"{len(names)} adapters loaded, none active: {', '.join(names)}."
