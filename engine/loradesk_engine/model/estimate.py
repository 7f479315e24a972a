"""What a base's weights and cache will take in memory, from headers alone. The rules are those of `build.py`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from loradesk_engine.formats.bnb import HELPER_ENDINGS, BnbConfig
from loradesk_engine.formats.config import ModelConfig
from loradesk_engine.formats.stored import StoredTensor
from loradesk_engine.model.base import BaseSource
from loradesk_engine.model.bnb import BLOCK, quantized_while_loading
from loradesk_engine.model.build import IGNORED_ENDINGS
from loradesk_engine.model.cache import KVCache
from loradesk_engine.model.device import DTYPES
from loradesk_engine.model.linear import SLICE_VALUES
from loradesk_engine.model.native.matrix import plain_nbytes
from loradesk_engine.model.quantized import PLAIN_TYPES, goes_native, held_nbytes, keeps_packed


@dataclass(frozen=True)
class WeightsEstimate:
    """The weights as they will be held.

    Attributes:
        kind: the type that most of the quantized weights have, or the model's own.
        nbytes: of all weights.
        scratch: for the part of a quantized matrix that is in full precision at a time.
    """

    kind: str
    nbytes: int
    scratch: int


def estimate_weights(source: BaseSource, device: torch.device, dtype: torch.dtype) -> WeightsEstimate:
    """What the weights will take on a device, in the model's type where they are not quantized."""
    bnb = source.config.bnb
    nbytes, largest = 0, 0
    kinds: dict[str, int] = {}
    for tensor in _loaded(source):
        if bnb is not None and tensor.name.endswith(HELPER_ENDINGS):
            nbytes += _helper_bytes(tensor, device)
        elif bnb is not None and _in_bnb(tensor, bnb, source.config):
            nbytes += tensor.nbytes if bnb.stored else _bnb_bytes(tensor, bnb)
            kinds[bnb.kind] = kinds.get(bnb.kind, 0) + tensor.nbytes
            largest = max(largest, tensor.count * (2 if bnb.stored and bnb.bits == 4 else 1))
        elif _stays_packed(tensor, source, device):
            rows, columns = tensor.shape
            looked_up = tensor.name == "model.embed_tokens.weight" and not source.config.tie_embeddings
            nbytes += tensor.nbytes if looked_up else held_nbytes(tensor.kind, rows, columns, device)
            kinds[tensor.kind] = kinds.get(tensor.kind, 0) + tensor.nbytes
            largest = max(largest, tensor.count)
        elif _goes_native(tensor, dtype, device):
            looked_up = tensor.name == "model.embed_tokens.weight" and not source.config.tie_embeddings
            nbytes += tensor.nbytes if looked_up else plain_nbytes(PLAIN_TYPES[tensor.kind], *tensor.shape)
        else:
            nbytes += tensor.count * dtype.itemsize
    kind = max(kinds, key=lambda kind: kinds[kind]) if kinds else str(dtype).removeprefix("torch.")
    return WeightsEstimate(kind, nbytes, min(SLICE_VALUES, largest) * (4 + dtype.itemsize))


def choose_dtype(name: str, source: BaseSource, device: torch.device, free_bytes: int) -> torch.dtype:
    """The type in which a model computes, by name.

    `auto` is bfloat16 on CUDA and MPS; on the CPU float32, which prefills three times as fast there, while its weights
    leave half of the free memory or take no more than their file.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type != "cpu":
        return torch.bfloat16
    in_float32 = estimate_weights(source, device, torch.float32).nbytes
    stored = sum(tensor.nbytes for tensor in _loaded(source))
    return torch.float32 if in_float32 <= max(free_bytes // 2, 1.2 * stored) else torch.bfloat16


def estimate_cache(config: ModelConfig, dtype: torch.dtype, context: int) -> int:
    """Bytes of the keys and values of one sequence that fills the context."""
    cache = KVCache(config, torch.device("meta"), dtype)
    cache.reserve(1, context)
    return cache.nbytes


def _loaded(source: BaseSource) -> list[StoredTensor]:
    """The tensors that a load takes: no computed tables, a tied matrix once."""
    tied = "lm_head.weight" if source.config.tie_embeddings else None
    return [tensor for tensor in source.tensors() if tensor.name != tied and not tensor.name.endswith(IGNORED_ENDINGS)]


def _goes_native(tensor: StoredTensor, dtype: torch.dtype, device: torch.device) -> bool:
    plain = PLAIN_TYPES.get(tensor.kind)
    return plain is not None and len(tensor.shape) == 2 and goes_native(plain, dtype, device)


def _stays_packed(tensor: StoredTensor, source: BaseSource, device: torch.device) -> bool:
    """Whether a matrix of a GGUF file stays quantized."""
    quantized = source.quantized == "gguf" and tensor.kind not in PLAIN_TYPES and len(tensor.shape) == 2
    return quantized and keeps_packed(source.parameters, device)


# --- bitsandbytes -----------------------------------------------------------------------------------------------------


def _in_bnb(tensor: StoredTensor, bnb: BnbConfig, config: ModelConfig) -> bool:
    path = tensor.name.removesuffix(".weight")
    if path == tensor.name or path not in config.linear_paths:
        return False
    return tensor.kind in ("U8", "I8") if bnb.stored else quantized_while_loading(path)


def _bnb_bytes(tensor: StoredTensor, bnb: BnbConfig) -> int:
    """A matrix that is quantized while it loads, with its scales."""
    if bnb.kind == "int8":
        return tensor.count + 4 * tensor.shape[0]
    return -(-tensor.count // 2) + 4 * -(-tensor.count // BLOCK)


def _helper_bytes(tensor: StoredTensor, device: torch.device) -> int:
    """What stays of the tensors beside a stored matrix: its scales, worked out where they were quantized themselves and
    the device's kernels do not read them so.
    """
    if tensor.name.endswith(".absmax"):
        return tensor.nbytes if device.type == "cuda" else tensor.count * 4
    kept = tensor.name.endswith(".SCB") or (tensor.name.endswith(".nested_absmax") and device.type == "cuda")
    return tensor.nbytes if kept else 0
