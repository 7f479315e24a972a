"""The text part of a model that also sees images: the names of its tensors as the text model alone has them.

Gemma 3 from 4B up. Checkpoints have `language_model.model.layers...`, as transformers 4 named the modules and 5 still
saves them; transformers 5 and adapters trained with it have `model.language_model.layers...`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

TEXT = {"language_model.model.": "model.", "language_model.lm_head": "lm_head", "model.language_model.": "model."}
SIGHT = tuple(f"{start}{part}" for start in ("", "model.") for part in ("vision_tower.", "multi_modal_projector."))


def whole_names(paths: Iterable[str], names: Collection[str]) -> dict[str, str]:
    """What modules of the text model are called in the whole model, in the way of these `names` -> their paths. Where
    the names are the text model's own, so are these.
    """
    long = next((start for start in TEXT if any(name.startswith(start) for name in names)), "")
    short = TEXT.get(long, "")
    return {long + path.removeprefix(short) if path.startswith(short) else path: path for path in paths}


def text_name(name: str) -> str | None:
    """The name of a module or tensor in the text model; None for what only images go through."""
    if name.startswith(SIGHT):
        return None
    for long, short in TEXT.items():
        if name.startswith(long):
            return short + name.removeprefix(long)
    return name
