"""Numbers as people read them."""

from __future__ import annotations


def byte_size(count: int) -> str:
    """Bytes: `812 MB`, `1.4 GB`."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            value = count / limit
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{count} B"
