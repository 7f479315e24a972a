"""The ordering files of published X-LoRA models, which ship with Loradesk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loradesk_resources import resource_path

READY: Mapping[str, str] = {
    "lamm-mit/x-lora": "x-lora-zephyr-7b-beta.json",
    "lamm-mit/x-lora-gemma-7b": "x-lora-gemma-7b-it.json",
}
"""Hub id of an X-LoRA checkpoint -> name of its file among the resources."""


def ready_file(xlora: str) -> Path | None:
    """The ordering file for an X-LoRA checkpoint's hub id; None when none ships."""
    name = READY.get(xlora.strip().removesuffix("/"))
    return None if name is None else resource_path("ordering", name)
