"""LoRA adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors.

What this reader does not support it refuses by name: an option that is silently ignored gives an adapter that is
    silently wrong.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradesk_engine.errors import AdapterError
from loradesk_engine.files import json_type, read_json_object
from loradesk_engine.formats.safetensors import SafetensorsWeights

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
BASE_COPY = re.compile(r"(?:base_model\.model\.)?(.+?)\.base_layer\.weight")
MAX_RANK = 2**16

# Options that change the maths: each must hold one of these values (absent is None).
PLAIN_VALUES: dict[str, tuple[object, ...]] = {
    "bias": ("none",),
    "use_dora": (False,),
    "modules_to_save": ([],),
    "layer_replication": ([],),
    "alora_invocation_tokens": (),
    "trainable_token_indices": ({}, []),
    "target_parameters": ([],),
    "megatron_config": (),
    "lora_bias": (False,),
    "use_qalora": (False,),
    "use_bdlora": (False,),
    "arrow_config": (),
    "kasa_config": (),
    "monteclora_config": (),
}


@dataclass(frozen=True)
class LoraModule:
    """One adapted linear.

    Attributes:
        path: of the linear in the base model, as Hugging Face names it.
        a, b: names of the tensors A `[rank, in]` and B `[out, rank]`.
        rank: r of this module.
        scale: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA.
        in_features, out_features: sizes of the linear.
    """

    path: str
    a: str
    b: str
    rank: int
    scale: float
    in_features: int
    out_features: int


class PeftAdapter:
    """One LoRA adapter on disk: checked, its weights mapped and not yet read.

    Attributes:
        modules: path -> adapted linear.
        base_model: what it was trained on, as far as its configuration says.
        base_copies: path -> tensor. PEFT saves the base's own matrix beside an adapter on `lm_head`; whoever loads the
            adapter
            has to see that the base has the same.
    """

    def __init__(
        self, weights: SafetensorsWeights, weights_file: Path, modules: Mapping[str, LoraModule], base: str | None
    ) -> None:
        self.weights_file = weights_file
        self.modules = modules
        self.base_copies = {match[1]: name for name in weights if (match := BASE_COPY.fullmatch(name))}
        self.base_model = base
        self._weights = weights

    def weights(self, module: LoraModule) -> tuple[Tensor, Tensor]:
        """A `[rank, in]` and B `[out, rank]` of a module."""
        return self._weights[module.a], self._weights[module.b]

    def base_copy(self, path: str) -> Tensor:
        """The base's matrix of a linear, as the adapter's training had it."""
        return self._weights[self.base_copies[path]]


def read_adapter(
    source: str | os.PathLike[str], *, weights_file: Path | None = None, config_file: Path | None = None
) -> PeftAdapter:
    """Read an adapter's configuration and the header of its weights.

    Args:
        source: the adapter's folder, or its safetensors file with the configuration beside it.
        weights_file, config_file: where they lie when they are not named as PEFT names them.

    Raises:
        AdapterError: files are missing, an option is not supported, or tensors and configuration disagree.
        FileFormatError: a file is malformed.
    """
    source = Path(source)
    if source.is_file():
        weights_file = weights_file or source
        source = source.parent
    weights_file = weights_file or source / WEIGHTS_NAME
    config_file = config_file or source / CONFIG_NAME
    if not source.is_dir():
        raise AdapterError("The adapter's folder does not exist.", file=source, remedy="Check the path.")
    if not weights_file.is_file():
        if (source / "adapter_model.bin").is_file():
            raise AdapterError(
                "The adapter's weights are pickled, and unpickling runs whatever code the file holds.",
                file=source / "adapter_model.bin",
                remedy="Save the adapter again with safe_serialization=True.",
            )
        raise AdapterError(
            f"No {weights_file.name} here.", file=source, remedy="Choose a folder that PEFT saved an adapter to."
        )
    config = read_json_object(config_file, error=AdapterError)
    _refuse_unsupported(config, config_file)
    weights = SafetensorsWeights([weights_file])
    modules = _modules(config, config_file, weights, weights_file)
    base = config.get("base_model_name_or_path")
    return PeftAdapter(weights, weights_file, modules, base if isinstance(base, str) and base else None)


def _refuse_unsupported(config: Mapping[str, Any], file: Path) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        remedy = "Load it as an X-LoRA checkpoint." if kind == "XLORA" else "Only LoRA adapters are supported."
        raise AdapterError(
            f"This is an adapter of type {kind!r}, not LoRA.", file=file, field="peft_type", remedy=remedy
        )
    for option, allowed in PLAIN_VALUES.items():
        value = config.get(option)
        if value is not None and value not in allowed:
            raise AdapterError(
                f"The option {option} = {value!r} is not supported.",
                file=file,
                field=option,
                remedy="Train or export the adapter without it.",
            )


def _modules(
    config: Mapping[str, Any], config_file: Path, weights: SafetensorsWeights, weights_file: Path
) -> dict[str, LoraModule]:
    """The adapted linears, from the tensors that are there; the configuration gives their scales."""
    pairs: dict[str, dict[str, str]] = {}
    for name in weights:
        if BASE_COPY.fullmatch(name):
            continue
        path, side = _split_name(name, weights_file)
        if side in pairs.setdefault(path, {}):
            raise AdapterError(f"The weights of {path} are there twice.", file=weights_file, field=name)
        pairs[path][side] = name
    if not pairs:
        raise AdapterError("The file holds no LoRA weights.", file=weights_file)

    scale = _Scales(config, config_file)
    modules = {}
    for path, sides in pairs.items():
        if set(sides) != {"A", "B"}:
            missing = "lora_B" if "A" in sides else "lora_A"
            raise AdapterError(f"{missing} of this module is missing.", file=weights_file, field=path)
        a, b = weights.entries[sides["A"]], weights.entries[sides["B"]]
        for entry, name in ((a, sides["A"]), (b, sides["B"])):
            if len(entry.shape) != 2 or 0 in entry.shape:
                raise AdapterError(
                    f"A matrix is expected, the shape is {list(entry.shape)}.", file=weights_file, field=name
                )
            if entry.dtype not in ("F32", "F16", "BF16"):
                raise AdapterError(f"The type {entry.dtype} is not supported.", file=weights_file, field=name)
        rank = a.shape[0]
        if b.shape[1] != rank:
            raise AdapterError(f"lora_A has rank {rank}, lora_B has rank {b.shape[1]}.", file=weights_file, field=path)
        declared = scale.rank(path)
        if declared != rank:
            raise AdapterError(
                f"The configuration says rank {declared}, the weights have rank {rank}.", file=weights_file, field=path
            )
        modules[path] = LoraModule(path, sides["A"], sides["B"], rank, scale.scale(path), a.shape[1], b.shape[0])
    return modules


def _split_name(name: str, file: Path) -> tuple[str, str]:
    """`base_model.model.<path>.lora_A.weight` -> path and `A`; a name of an adapter may stand before `weight`."""
    match = re.fullmatch(r"(?:base_model\.model\.)?(.+?)\.lora_([AB])(?:\.[^.]+)?\.weight", name)
    if match is None:
        kinds = {
            "lora_embedding_": "adapted embeddings",
            "lora_magnitude_vector": "DoRA magnitudes",
            "modules_to_save": "fully trained modules",
            "trainable_tokens": "trainable tokens",
        }
        what = next((text for part, text in kinds.items() if part in name), "tensors of this name")
        raise AdapterError(f"The file holds {what}, which are not supported.", file=file, field=name)
    return match[1], match[2]


class _Scales:
    """alpha / r of each module, with PEFT's `rank_pattern` and `alpha_pattern`."""

    def __init__(self, config: Mapping[str, Any], file: Path) -> None:
        self.file = file
        self.default_rank = self._rank(config.get("r", 8), "r")
        self.default_alpha = self._alpha(config.get("lora_alpha", 8), "lora_alpha")
        self.rank_pattern = self._pattern(config, "rank_pattern")
        self.alpha_pattern = self._pattern(config, "alpha_pattern")
        stabilised = config.get("use_rslora") or False
        if not isinstance(stabilised, bool):
            raise AdapterError("true or false is expected.", file=file, field="use_rslora")
        self.rank_stabilised = stabilised

    def rank(self, path: str) -> int:
        value = self._match(self.rank_pattern, path)
        return self.default_rank if value is None else self._rank(value, "rank_pattern")

    def scale(self, path: str) -> float:
        value = self._match(self.alpha_pattern, path)
        alpha = self.default_alpha if value is None else self._alpha(value, "alpha_pattern")
        rank = self.rank(path)
        return alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank

    def _match(self, pattern: Mapping[str, Any], path: str) -> object:
        """PEFT's rule: the first key that is the path's end, as a regular expression at a component's start."""
        for key, value in pattern.items():
            try:
                if re.match(rf"(.*\.)?({key})$", path):
                    return value
            except re.error as problem:
                raise AdapterError(
                    f"{key!r} is not a valid pattern: {problem}.", file=self.file, field="rank_pattern/alpha_pattern"
                ) from None
        return None

    def _pattern(self, config: Mapping[str, Any], field: str) -> Mapping[str, Any]:
        value = config.get(field) or {}
        if not isinstance(value, dict):
            raise AdapterError(f"An object is expected, not {json_type(value)}.", file=self.file, field=field)
        return value

    def _rank(self, value: object, field: str) -> int:
        if type(value) is not int or not 1 <= value <= MAX_RANK:
            raise AdapterError(f"{value!r} is not a rank.", file=self.file, field=field)
        return value

    def _alpha(self, value: object, field: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise AdapterError(f"{value!r} is not a finite number.", file=self.file, field=field)
        return float(value)
