"""The families by the names that files give them. Every module here that has an `ARCHITECTURE` is one of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from loradesk_engine import architectures
from loradesk_engine.architectures.architecture import Architecture


def _found() -> tuple[Architecture, ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(architectures.__path__))
    modules = [importlib.import_module(f"{architectures.__name__}.{name}") for name in names if name != "registry"]
    return tuple(module.ARCHITECTURE for module in modules if hasattr(module, "ARCHITECTURE"))


FAMILIES: tuple[Architecture, ...] = _found()

MODEL_TYPES: Mapping[str, Architecture] = {family.model_type: family for family in FAMILIES}
"""`model_type` of config.json -> family."""

CLASSES: Mapping[str, Architecture] = {
    name: family for family in FAMILIES for name in (*family.classes, *family.image_classes)
}
"""Class name in config.json's `architectures` -> family."""

IMAGE_CLASSES: tuple[str, ...] = tuple(name for family in FAMILIES for name in family.image_classes)
"""Classes that also see images, of which the text part is used."""

GGUF: Mapping[str, tuple[Architecture, ...]] = {
    name: tuple(family for family in FAMILIES if family.gguf is not None and family.gguf.name == name)
    for name in sorted({family.gguf.name for family in FAMILIES if family.gguf is not None})
}
"""`general.architecture` of a GGUF file -> families; llama.cpp has one name for several."""
