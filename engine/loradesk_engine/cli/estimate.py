"""How much memory a model will take: the table of `--estimate`, and a warning before a load that does not fit."""

from __future__ import annotations

import contextlib
import sys

from loradesk_engine.commands import LoadSettings
from loradesk_engine.errors import LoradeskError
from loradesk_engine.events import MemoryEstimate
from loradesk_engine.units import byte_size

REMEDY = "Try a shorter --context, another --dtype or --quantize, another --device, or a smaller model."


def print_estimate(settings: LoadSettings) -> int:
    """Print what a load of these settings would hold; returns the exit code, 0 where it fits.

    Raises:
        LoradeskError: a file is missing or malformed, not to be had, or not supported.
    """
    from loradesk_engine.formats.hub_headers import HubHeaders
    from loradesk_engine.generation.estimate import estimate

    found = estimate(settings, hub=HubHeaders())
    print(table(found))
    return 0 if found.fits else 1


def warn_if_short(settings: LoadSettings) -> None:
    """Say on stderr that a load will not fit. What cannot be estimated is left to the load to complain about."""
    from loradesk_engine.formats.hub_headers import HubHeaders
    from loradesk_engine.generation.estimate import estimate

    with contextlib.suppress(LoradeskError):
        found = estimate(settings, hub=HubHeaders())
        if not found.fits:
            print(f"Warning: {verdict(found)} {REMEDY}", file=sys.stderr)


def table(found: MemoryEstimate) -> str:
    """The parts, a line each, and the verdict."""
    rows = [(part.name, byte_size(part.nbytes)) for part in found.parts]
    rows += [("Needed", byte_size(found.needed)), (f"Free on {found.device}", byte_size(found.free))]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {size:>8}" for name, size in rows]
    return "\n".join([*lines, verdict(found), *([] if found.fits else [REMEDY])])


def verdict(found: MemoryEstimate) -> str:
    """One sentence."""
    needed, free = byte_size(found.needed), byte_size(found.free)
    if found.fits:
        return f"It fits on {found.device}: {needed} of {free}."
    return f"It will not fit: {needed} are needed, {free} are free on {found.device}."
