"""X-LoRA checkpoints on disk, in the two formats there are, read into one description.

1. xlora / mistral.rs: `xlora_config.json` and `xlora_classifier.safetensors` with `inner.N.*` and `last.*`; the
adapters in
   sub-folders, or as files whose name carries the adapter's name.
2. PEFT: `adapter_config.json` with `peft_type: XLORA` and `adapter_model.safetensors` with
   `...internal_xlora_classifier.layers.N.*`; the adapters in the configuration's `adapters` map.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loradesk_engine.errors import AdapterError
from loradesk_engine.files import finite_number, json_type, read_json_object
from loradesk_engine.formats.adapter_place import CONFIG_NAME, WEIGHTS_NAME
from loradesk_engine.formats.safetensors import SafetensorsWeights, find_pickle, refuse_pickle

if TYPE_CHECKING:
    from torch import Tensor


SAME_TRAINING = "Take configuration and classifier from the same training."
BEFORE_RELU = ("stop_token_id", "use_mean_pool")
"""Keys that xlora wrote only early in 2024. Its default of `enable_relu_and_dropout` was false then, true from 11 April
2024 on.
"""
ASSUMED_RELU = (
    "{file} has no enable_relu_and_dropout, and the tensors of a classifier of two linears do not show it: a ReLU "
    "between them is assumed, xlora's default since April 2024. mistral.rs assumes none. If the scalings look wrong, "
    "load it without the ReLU, or add the key to the file."
)
ASSUMED_NO_RELU = (
    "{file} has no enable_relu_and_dropout, and the tensors of a classifier of two linears do not show it: no ReLU "
    "between them is assumed, xlora's default when it still wrote {key}. If the scalings look wrong, load it with the "
    "ReLU, or add the key to the file."
)


@dataclass(frozen=True)
class XLoraConfig:
    """What turns hidden states into scalings; field names and defaults as in xlora's own configuration."""

    hidden_size: int
    layerwise_scalings: bool = False
    enable_softmax: bool = True
    softmax_temperature: float = 1.0
    scaling_pass_value: float = 0.0
    global_scaling_weight: float = 1.0
    top_k_lora: int | None = None
    enable_softmax_topk: bool = False


@dataclass(frozen=True)
class ClassifierLayer:
    """One linear of the classifier: tensor names, sizes, and whether a ReLU follows."""

    weight: str
    bias: str | None
    in_features: int
    out_features: int
    relu: bool


class XLoraCheckpoint:
    """An X-LoRA checkpoint on disk, checked, its weights mapped and not yet read.

    Attributes:
        form: `xlora` or `peft`.
        adapters: name -> folder or hub id, in the order of training as far as the checkpoint knows it; None where the
            ordering file has to say it.
        layers: the classifier's linears, first to last.
    """

    def __init__(
        self,
        form: Literal["xlora", "peft"],
        folder: Path,
        config_file: Path,
        weights_file: Path,
        config: XLoraConfig,
        layers: Sequence[ClassifierLayer],
        adapters: Mapping[str, str] | None,
        warning: str | None = None,
    ) -> None:
        self.form = form
        self.folder = folder
        self.config_file = config_file
        self.weights_file = weights_file
        self.config = config
        self.layers = tuple(layers)
        self.adapters = adapters
        self.warning = warning
        self._weights = SafetensorsWeights([weights_file])

    @property
    def outputs(self) -> int:
        """Width of the classifier's last linear."""
        return self.layers[-1].out_features

    def weights(self, layer: ClassifierLayer) -> tuple[Tensor, Tensor | None]:
        """Weight `[out, in]` and bias `[out]`."""
        return self._weights[layer.weight], None if layer.bias is None else self._weights[layer.bias]


def is_peft_xlora(folder: Path) -> bool:
    """Whether the folder holds PEFT's format."""
    file = folder / CONFIG_NAME
    return file.is_file() and read_json_object(file, error=AdapterError).get("peft_type") == "XLORA"


def read_xlora(folder: str | os.PathLike[str], relu: bool | None = None) -> XLoraCheckpoint:
    """Read a checkpoint's configuration and the header of its classifier.

    Args:
        relu: whether a ReLU stands between the classifier's linears, where the checkpoint does not say; None assumes it
            by the configuration's age, with a warning.

    Raises:
        AdapterError: it is neither format, or its parts disagree or contradict `relu`. FileFormatError: a file is
            malformed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AdapterError("The X-LoRA checkpoint's folder does not exist.", file=folder, remedy="Check the path.")
    if (folder / "xlora_config.json").is_file():
        return _read_xlora_form(folder, relu)
    if is_peft_xlora(folder):
        if relu is False:
            raise _contradicted(relu, folder / CONFIG_NAME, "PEFT's classifiers always have the ReLU")
        return _read_peft_form(folder)
    raise AdapterError(
        "Neither xlora_config.json nor an adapter_config.json of type XLORA is here.",
        file=folder,
        remedy="Choose the folder of an X-LoRA checkpoint.",
    )


def _read_xlora_form(folder: Path, relu: bool | None) -> XLoraCheckpoint:
    config_file = folder / "xlora_config.json"
    values = read_json_object(config_file, error=AdapterError)
    config = _config(values, config_file)
    weights_file = folder / "xlora_classifier.safetensors"
    pickled = None if weights_file.is_file() else find_pickle(folder)
    if pickled is not None:
        raise refuse_pickle(pickled, AdapterError)
    weights = SafetensorsWeights([weights_file])
    inner = _numbered(weights, r"inner\.(\d+)\.(weight|bias)", weights_file, allowed=r"last\.(weight|bias)")
    if "last.weight" not in weights:
        raise AdapterError("The classifier's last layer is missing.", file=weights_file, field="last.weight")
    said = _has_relu(values, inner, config_file, weights_file)
    if inner and None not in (said, relu) and said != relu:
        raise _contradicted(relu, config_file, "the checkpoint says the opposite")
    assumed = None
    if said is None and relu is None:
        relu, assumed = _assumed_relu(values, config_file)
    has_relu = relu if said is None else said
    names = [f"inner.{number}" for number in inner] + ["last"]
    layers = [_layer(weights, weights_file, name, relu=has_relu is True and name != "last") for name in names]
    _check_chain(layers, config, weights_file)
    _refuse_contradictions(values, layers, config_file, weights_file)
    return XLoraCheckpoint(
        "xlora",
        folder,
        config_file,
        weights_file,
        config,
        layers,
        _adapter_map(values, config_file),
        warning=assumed,
    )


def _assumed_relu(values: Mapping[str, Any], file: Path) -> tuple[bool, str]:
    """Whether a configuration that does not say it means a ReLU, and what the user should know of that."""
    early = next((key for key in BEFORE_RELU if key in values), None)
    if early is not None:
        return False, ASSUMED_NO_RELU.format(file=file, key=early)
    return True, ASSUMED_RELU.format(file=file)


def _contradicted(relu: bool | None, file: Path, why: str) -> AdapterError:
    asked = "with" if relu else "without"
    return AdapterError(
        f"The classifier cannot be read {asked} a ReLU: {why}.",
        file=file,
        field="enable_relu_and_dropout",
        remedy="Leave the choice to the checkpoint.",
    )


def _has_relu(values: Mapping[str, Any], inner: Sequence[int], config_file: Path, weights_file: Path) -> bool | None:
    """Whether ReLU and Dropout stand between the linears; None where neither the configuration nor the tensors tell.

    Modules are counted in the tensors' names, which tells it from two inner linears on.
    """
    said = _flag(values, "enable_relu_and_dropout", config_file)
    gaps = {after - before for before, after in pairwise(inner)}
    if inner and (inner[0] != 0 or len(gaps) > 1):
        raise AdapterError(
            f"The classifier's layers are numbered {_listed(inner)}, not from 0 in equal steps.",
            file=weights_file,
            field="inner",
            remedy=SAME_TRAINING,
        )
    counted = None if not gaps else gaps != {1}
    if said is not None and counted is not None and said != counted:
        raise AdapterError(
            f"enable_relu_and_dropout is {json.dumps(said)}, but the layers in {weights_file.name} are numbered "
            f"{_listed(inner)}.",
            file=config_file,
            field="enable_relu_and_dropout",
            remedy=SAME_TRAINING,
        )
    if not inner:
        return False
    return counted if said is None else said


def _refuse_contradictions(
    values: Mapping[str, Any], layers: Sequence[ClassifierLayer], config_file: Path, weights_file: Path
) -> None:
    """What the configuration says of the classifier must be what its tensors are; what it does not say they tell."""

    def refuse(field: str, tensors: str) -> AdapterError:
        said = json.dumps(values[field])
        problem = f"{field} is {said}, but {weights_file.name} has {tensors}."
        return AdapterError(problem, file=config_file, field=field, remedy=SAME_TRAINING)

    depth, size = _size(values, "xlora_depth", config_file), _size(values, "xlora_size", config_file)
    if depth not in (None, len(layers)):
        raise refuse("xlora_depth", f"{len(layers)} linears")
    for layer in layers[:-1]:
        if size not in (None, layer.out_features):
            raise refuse("xlora_size", f"{layer.out_features:,} outputs in {layer.weight}")
    use_bias = _flag(values, "use_bias", config_file)
    for layer in layers:
        if use_bias not in (None, layer.bias is not None):
            raise refuse("use_bias", f"{'no' if layer.bias is None else 'a'} bias beside {layer.weight}")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _read_peft_form(folder: Path) -> XLoraCheckpoint:
    config_file = folder / CONFIG_NAME
    values = read_json_object(config_file, error=AdapterError)
    config = _config(values, config_file)
    weights_file = folder / WEIGHTS_NAME
    weights = SafetensorsWeights([weights_file])
    stem = r"(?:.*\.)?internal_xlora_classifier\.layers\."
    numbers = _numbered(weights, stem + r"(\d+)\.(weight|bias)", weights_file)
    if not numbers or numbers[0] != 0:
        raise AdapterError(
            "The classifier's first layer is missing.",
            file=weights_file,
            field="internal_xlora_classifier.layers.0",
            remedy="PEFT up to 0.21 leaves it out when saving: write the classifier's state_dict to the file yourself.",
        )
    prefix = next(name for name in weights if re.fullmatch(stem + r"\d+\.weight", name)).rsplit(".", 2)[0]
    layers = [_layer(weights, weights_file, f"{prefix}.{number}", relu=number != numbers[-1]) for number in numbers]
    _check_chain(layers, config, weights_file)
    _refuse_contradictions(values, layers, config_file, weights_file)
    adapters = _adapter_map(values, config_file)
    if not adapters:
        raise AdapterError("The adapters are missing.", file=config_file, field="adapters")
    # PEFT takes the pass with all adapters off, whatever scaling_pass_value says.
    return XLoraCheckpoint(
        "peft", folder, config_file, weights_file, replace(config, scaling_pass_value=0.0), layers, adapters
    )


def _numbered(weights: Mapping[str, Any], pattern: str, file: Path, *, allowed: str | None = None) -> list[int]:
    numbers = set()
    for name in weights:
        match = re.fullmatch(pattern, name)
        if match:
            numbers.add(int(match[1]))
        elif allowed is None or not re.fullmatch(allowed, name):
            if ".lora_" in name:
                raise AdapterError(
                    "Trained adapters inside the classifier's file are not supported.",
                    file=file,
                    field=name,
                    remedy="Save the adapters to folders of their own.",
                )
            raise AdapterError("The tensor is not part of an X-LoRA classifier.", file=file, field=name)
    return sorted(numbers)


def _layer(weights: SafetensorsWeights, file: Path, name: str, *, relu: bool) -> ClassifierLayer:
    entry = weights.entries.get(f"{name}.weight")
    if entry is None:
        raise AdapterError("The layer's weight is missing.", file=file, field=f"{name}.weight")
    if len(entry.shape) != 2 or 0 in entry.shape:
        raise AdapterError(
            f"A matrix is expected, the shape is {list(entry.shape)}.", file=file, field=f"{name}.weight"
        )
    out_features, in_features = entry.shape
    bias = f"{name}.bias" if f"{name}.bias" in weights else None
    if bias is not None and weights.entries[bias].shape != (out_features,):
        raise AdapterError(
            f"The bias has shape {list(weights.entries[bias].shape)}, the weight {out_features} rows.",
            file=file,
            field=bias,
        )
    return ClassifierLayer(f"{name}.weight", bias, in_features, out_features, relu)


def _check_chain(layers: Sequence[ClassifierLayer], config: XLoraConfig, file: Path) -> None:
    width = config.hidden_size
    for layer in layers:
        if layer.in_features != width:
            raise AdapterError(
                f"The layer takes {layer.in_features} values, the one before gives {width}.",
                file=file,
                field=layer.weight,
            )
        width = layer.out_features


def _config(values: Mapping[str, Any], file: Path) -> XLoraConfig:
    def number(field: str, default: float) -> float:
        value = values.get(field, default)
        if value is None:
            return default
        found = finite_number(value)
        if found is None:
            raise AdapterError(f"A finite number is expected, not {value!r}.", file=file, field=field)
        return found

    def flag(field: str, default: bool) -> bool:
        value = _flag(values, field, file)
        return default if value is None else value

    hidden_size = values.get("hidden_size")
    if type(hidden_size) is not int or hidden_size < 1:
        raise AdapterError(f"{hidden_size!r} is not a size.", file=file, field="hidden_size")
    top_k = values.get("top_k_lora")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise AdapterError(f"{top_k!r} is not a count of adapters.", file=file, field="top_k_lora")
    temperature = number("softmax_temperature", 1.0)
    if temperature <= 0:
        raise AdapterError(f"{temperature} is not above 0.", file=file, field="softmax_temperature")
    return XLoraConfig(
        hidden_size=hidden_size,
        layerwise_scalings=flag("layerwise_scalings", False),
        enable_softmax=flag("enable_softmax", True),
        softmax_temperature=temperature,
        scaling_pass_value=number("scaling_pass_value", 0.0),
        global_scaling_weight=number("global_scaling_weight", 1.0),
        top_k_lora=top_k,
        enable_softmax_topk=flag("enable_softmax_topk", False),
    )


def _flag(values: Mapping[str, Any], field: str, file: Path) -> bool | None:
    value = values.get(field)
    if value is not None and not isinstance(value, bool):
        raise AdapterError(f"true or false is expected, not {json_type(value)}.", file=file, field=field)
    return value


def _size(values: Mapping[str, Any], field: str, file: Path) -> int | None:
    value = values.get(field)
    if value is not None and (type(value) is not int or value < 1):
        raise AdapterError(f"{value!r:.80} is not a size.", file=file, field=field)
    return value


def _adapter_map(values: Mapping[str, Any], file: Path) -> dict[str, str] | None:
    adapters = values.get("adapters")
    if adapters is None:
        return None
    if isinstance(adapters, list) and all(isinstance(name, str) for name in adapters):
        return {name: name for name in adapters}  # xlora saves the names alone
    if not isinstance(adapters, dict) or not all(isinstance(path, str) for path in adapters.values()):
        raise AdapterError("A map from names to paths is expected.", file=file, field="adapters")
    return dict(adapters)
