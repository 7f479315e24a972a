"""How much memory a load will take, from the headers of its files alone."""

from __future__ import annotations

from functools import partial

import torch

from loradesk_engine.adapters.load import FoundAdapters, find_adapters
from loradesk_engine.commands import LoadSettings
from loradesk_engine.events import MemoryEstimate, MemoryPart
from loradesk_engine.formats.config import ModelConfig
from loradesk_engine.formats.hub import Resolve, resolve_source, silent
from loradesk_engine.formats.hub_headers import HubHeaders
from loradesk_engine.generation.engine import MAX_SEQUENCES, EngineCore, step_tokens_on
from loradesk_engine.model.base import read_base
from loradesk_engine.model.device import choose_context, choose_device, free_memory
from loradesk_engine.model.estimate import choose_dtype, estimate_cache, estimate_weights
from loradesk_engine.ordering.named_base import with_named_base


def estimate(
    settings: LoadSettings, *, previous: EngineCore | None = None, hub: HubHeaders | None = None
) -> MemoryEstimate:
    """What a load of these settings will hold, against what is free on its device. Nothing is loaded, and of what is on
    the hub only headers are fetched.

    Args:
        previous: the engine in use; a base that both share is not counted again.
        hub: for what is not downloaded yet; None leaves the hub alone.

    Raises:
        LoradeskError: a file is missing or malformed, not to be had, or not supported; names file, field, remedy.
    """
    if hub is None:
        return _estimate(settings, previous, partial(resolve_source, fetch=False))
    with hub.on_disk() as resolve:
        return _estimate(settings, previous, resolve)


def _estimate(settings: LoadSettings, previous: EngineCore | None, resolve: Resolve) -> MemoryEstimate:
    settings = with_named_base(settings)
    folder = resolve(settings.base, revision=settings.revision, token=settings.token)
    source = read_base(folder, settings.quantize)
    config = source.config
    context = choose_context(settings.context, config, folder)
    device = choose_device(settings.device)
    free = free_memory(device)
    dtype = choose_dtype(settings.dtype, source, device, free)
    weights = estimate_weights(source, device, dtype)
    cache = estimate_cache(config, dtype, context)
    shared = previous is not None and previous.shares_base(source, context, device, dtype)
    parts = [
        MemoryPart(f"Weights, {weights.kind}", weights.nbytes, already_held=shared),
        MemoryPart(f"KV cache, {context:,} tokens", cache),
    ]
    if settings.mode == "xlora":
        parts.append(MemoryPart("KV cache of the scaling pass", cache))
    if settings.mode != "none":
        parts += _adapter_parts(find_adapters(settings, silent, resolve=resolve), dtype)
    parts.append(MemoryPart("Working memory (about)", weights.scratch + _activation_bytes(config, dtype, device)))
    return MemoryEstimate(str(device), str(dtype).removeprefix("torch."), context, tuple(parts), free)


def _adapter_parts(found: FoundAdapters, dtype: torch.dtype) -> list[MemoryPart]:
    parts = []
    for name, adapter in found.adapters.items():
        values = sum(module.rank * (module.in_features + module.out_features) for module in adapter.modules.values())
        parts.append(MemoryPart(f"Adapter {name}", values * dtype.itemsize))
    if found.checkpoint is not None:
        values = sum(
            layer.in_features * layer.out_features + (0 if layer.bias is None else layer.out_features)
            for layer in found.checkpoint.layers
        )
        parts.append(MemoryPart("Classifier", values * dtype.itemsize))
    return parts


def _activation_bytes(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> int:
    """The widest intermediate results of a full step, and its logits with their copy for sampling."""
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    widest = 4 * config.hidden_size + 2 * heads + 3 * config.intermediate_size
    return step_tokens_on(device) * widest * dtype.itemsize + 2 * MAX_SEQUENCES * config.vocab_size * 4
