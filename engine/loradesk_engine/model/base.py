"""A base model on disk, whichever way it is stored: a Hugging Face folder, or one GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from loradesk_engine.architectures.registry import IMAGE_CLASSES
from loradesk_engine.commands import Quantize
from loradesk_engine.errors import CheckpointError, ConfigError, RequestError
from loradesk_engine.files import read_json_object
from loradesk_engine.formats.bnb import BnbConfig, stored_parameters
from loradesk_engine.formats.config import ModelConfig, read_config
from loradesk_engine.formats.gguf import read_gguf
from loradesk_engine.formats.gguf_model import GgufModel
from loradesk_engine.formats.gguf_tokenizer import gguf_tokenizer
from loradesk_engine.formats.multimodal import text_name
from loradesk_engine.formats.safetensors import PICKLED_SUFFIXES, is_adapter, read_checkpoint, refuse_pickle
from loradesk_engine.formats.stored import StoredTensor
from loradesk_engine.formats.tokenizer import Tokenizer, read_tokenizer
from loradesk_engine.model.dequantize import QUANTIZATIONS, code_bits
from loradesk_engine.model.quantized import GgufWeights
from loradesk_engine.ordering.modules import OUTPUT_LAYER


class BaseSource(Protocol):
    """What a load needs to know of a base model; only headers are read until `weights` is used.

    Attributes:
        path: the folder or file.
        files: those that the weights lie in.
        config: the decoder.
        hf_config: config.json, for the ordering file's check.
        parameters: count of weights.
        quantized: how the weights are quantized, if they are.
        bits: of the codes of the blocks' quantized linears, their mean.
    """

    path: Path
    files: list[Path]
    config: ModelConfig
    hf_config: Mapping[str, Any]
    parameters: int
    quantized: Literal["gguf", "bnb"] | None
    bits: int | None

    def tokenizer(self) -> Tokenizer: ...

    def weights(self) -> Mapping[str, Tensor]: ...

    def tensors(self) -> list[StoredTensor]:
        """What the headers say of the weights, for estimates."""
        ...


@dataclass
class FolderSource:
    """A folder with config.json, tokenizer.json and safetensors files; `quantize` is done while the weights load.

    `path` is the folder, or the one safetensors file in it that holds the weights.
    """

    path: Path
    quantize: Quantize = "none"

    def __post_init__(self) -> None:
        self._folder = self.path if self.path.is_dir() else self.path.parent
        self.config = read_config(self._folder)
        bnb = self.config.bnb
        if self.quantize != "none":
            if bnb is not None:
                raise _quantized_already(f"is quantized by bitsandbytes ({bnb.kind})", self.path)
            bnb = BnbConfig(self.quantize)
            self.config = replace(self.config, bnb=bnb)
        self.hf_config: Mapping[str, Any] = read_json_object(self._folder / "config.json", error=ConfigError)
        self._weights = read_checkpoint(self.path)
        self.files = self._weights.files
        if self.config.architecture in IMAGE_CLASSES:
            self._weights.rename(text_name)
        entries = self._weights.entries
        self.parameters = (
            stored_parameters(entries)
            if bnb is not None and bnb.stored
            else sum(math.prod(entry.shape) for entry in entries.values())
        )
        self.quantized: Literal["gguf", "bnb"] | None = "bnb" if bnb is not None else None
        self.bits: int | None = bnb.bits if bnb is not None else None

    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self._folder)

    def weights(self) -> Mapping[str, Tensor]:
        return self._weights

    def tensors(self) -> list[StoredTensor]:
        return [
            StoredTensor(name, entry.dtype, entry.shape, entry.nbytes) for name, entry in self._weights.entries.items()
        ]


@dataclass
class GgufSource:
    """One GGUF file that holds everything."""

    path: Path

    def __post_init__(self) -> None:
        file = read_gguf(self.path)
        self._model = GgufModel(file)
        self.config = self._model.config
        self.hf_config: Mapping[str, Any] = self._model.hf_config
        self.files = [self.path]
        sizes = {tensor.name: math.prod(tensor.shape) for tensor in file.tensors.values()}
        self.parameters = sum(sizes.values())
        quantized = [tensor for tensor in file.tensors.values() if tensor.type in QUANTIZATIONS]
        self.quantized: Literal["gguf", "bnb"] | None = "gguf" if quantized else None
        self.bits: int | None = _mean_bits(self._model)
        self._metadata = file.metadata

    def tokenizer(self) -> Tokenizer:
        return gguf_tokenizer(self._metadata, self.path)

    def weights(self) -> Mapping[str, Tensor]:
        return GgufWeights(self._model)

    def tensors(self) -> list[StoredTensor]:
        return self._model.entries()


def _mean_bits(model: GgufModel) -> int | None:
    """Bits of the codes of the blocks' linears. The embedding and the output layer, which files keep in more bits, do
    not count: a hidden state goes through the linears of every block.
    """
    linears = {f"{path}.weight" for path in model.config.linear_paths if path != OUTPUT_LAYER}
    quantized = [entry for entry in model.entries() if entry.name in linears and entry.kind in QUANTIZATIONS]
    values = sum(entry.count for entry in quantized)
    return round(sum(code_bits(entry.kind) * entry.count for entry in quantized) / values) if values else None


def read_base(path: Path, quantize: Quantize = "none") -> BaseSource:
    """Read the headers of a base model.

    Args:
        quantize: what bitsandbytes is to make of the linears while they load.

    Raises:
        ConfigError, CheckpointError, FileFormatError: something is missing, malformed or not supported.
        RequestError: the base is quantized already, so that `quantize` cannot be done.
    """
    if path.is_dir():
        return FolderSource(path, quantize)
    if path.suffix in PICKLED_SUFFIXES:
        raise refuse_pickle(path)
    if path.suffix == ".safetensors":
        if is_adapter(path):
            raise CheckpointError(
                "These are the weights of an adapter, not of a model.",
                file=path,
                remedy="Choose the model that it was trained on, and add the adapter to it.",
            )
        if (path.parent / "config.json").is_file():
            return FolderSource(path, quantize)
    if path.suffix == ".gguf":
        if quantize != "none":
            raise _quantized_already("is a GGUF file, which has its own types of weights", path)
        return GgufSource(path)
    raise ConfigError(
        "A model is a folder with config.json, or a .gguf file.", file=path, remedy="Choose the folder it lies in."
    )


def _quantized_already(what: str, path: Path) -> RequestError:
    return RequestError(
        f"The base {what}: it cannot be quantized while loading.",
        file=path,
        field="quantize",
        remedy="Load it without, or choose the 16-bit checkpoint.",
    )
