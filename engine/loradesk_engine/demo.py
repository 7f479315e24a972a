"""The demo pack that ships with Loradesk, as load settings. No torch here."""

from __future__ import annotations

from loradesk_engine.commands import AdapterMode, LoadSettings
from loradesk_resources import resource_path


def demo_settings(mode: AdapterMode = "xlora", tgt_non_granular_index: int | None = None) -> LoadSettings:
    """Settings that load the demo pack's base, its four LoRA adapters, or the X-LoRA over them."""
    pack = resource_path("demo")
    return LoadSettings(
        name="Loradesk demo",
        base=str(pack / "base"),
        mode=mode,
        xlora=str(pack / "xlora") if mode == "xlora" else None,
        ordering=str(pack / "ordering" / f"{mode}.json") if mode != "none" else None,
        tgt_non_granular_index=tgt_non_granular_index if mode == "xlora" else None,
    )
