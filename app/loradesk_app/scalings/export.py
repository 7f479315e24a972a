"""The scalings as files."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import numpy as np

from loradesk_app.scalings.scalings_model import FloatArray, ScalingsModel


@dataclass(frozen=True)
class Snapshot:
    """A copy of the data, so that it can be written elsewhere while the sequence goes on."""

    adapters: tuple[str, ...]
    layer_paths: tuple[str, ...]
    first: int
    prompt_tokens: int
    texts: tuple[str, ...]
    rows: FloatArray

    @classmethod
    def of(cls, model: ScalingsModel) -> Snapshot:
        return cls(model.adapters, model.layer_paths, model.first, model.prompt_tokens, model.texts, model.rows.copy())


def to_csv(data: Snapshot) -> bytes:
    """One line a token and layer: index, text, part, layer, and a column for each adapter."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["token", "text", "part", "layer", *data.adapters])
    for place, text in enumerate(data.texts):
        token = data.first + place
        part = "prompt" if token < data.prompt_tokens else "answer"
        for layer, path in enumerate(data.layer_paths):
            writer.writerow([token, text, part, path, *(f"{value:.6g}" for value in data.rows[place, layer])])
    return out.getvalue().encode()


def to_npz(data: Snapshot) -> bytes:
    """NumPy archive: `scalings` [tokens, layers, adapters] with the names along its axes."""
    out = io.BytesIO()
    np.savez_compressed(
        out,
        scalings=data.rows,
        adapters=np.array(data.adapters, dtype=np.str_),
        layers=np.array(data.layer_paths, dtype=np.str_),
        tokens=np.array(data.texts, dtype=np.str_),
        first_token=np.int64(data.first),
        prompt_tokens=np.int64(data.prompt_tokens),
    )
    return out.getvalue()
