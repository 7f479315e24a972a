"""Loads the base model of an engine, or shares that of an earlier one."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import psutil
import torch

from loradesk_engine.commands import LoadSettings, Quantize
from loradesk_engine.errors import RequestError
from loradesk_engine.formats.hub import Progress
from loradesk_engine.formats.tokenizer import Tokenizer
from loradesk_engine.model.base import BaseSource
from loradesk_engine.model.bnb import cpu_warning
from loradesk_engine.model.build import build_decoder
from loradesk_engine.model.decoder import Decoder
from loradesk_engine.model.estimate import choose_dtype
from loradesk_engine.model.quantized import keeps_packed


@dataclass(frozen=True)
class LoadedBase:
    """A base model in memory.

    Attributes:
        origin: what it was loaded from; the next load from an equal origin shares its weights.
        warnings: sentences that the user should read.
    """

    origin: tuple[object, ...]
    decoder: Decoder
    tokenizer: Tokenizer
    warnings: tuple[str, ...] = ()


def check_settings(settings: LoadSettings) -> None:
    """Check what needs no file.

    Raises:
        RequestError: a setting is invalid, or contradicts another.
    """
    index = settings.tgt_non_granular_index
    if index is not None and settings.mode != "xlora":
        raise RequestError("Non-granular scalings are for X-LoRA only.", field="tgt_non_granular_index")
    if index is not None and (type(index) is not int or index < 1):
        raise RequestError(f"{index!r} is not a count of tokens.", field="tgt_non_granular_index")
    if settings.mode == "xlora" and settings.adapters:
        raise RequestError("An X-LoRA checkpoint brings its own adapters.", field="adapters")
    if settings.xlora_relu is not None and settings.mode != "xlora":
        raise RequestError("Only an X-LoRA's classifier has a ReLU.", field="xlora_relu")
    if settings.quantize not in get_args(Quantize):
        choices = ", ".join(get_args(Quantize))
        raise RequestError(f"{settings.quantize!r} is not supported.", field="quantize", remedy=f"Use {choices}.")


def origin_of(source: BaseSource, context: int, device: torch.device, dtype: torch.dtype) -> tuple[object, ...]:
    """What a base is loaded from, and how: loads with equal origins can share their weights."""
    stamps = tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in source.files)
    return (source.path.resolve(), stamps, source.config, context, device, dtype)


def load_base(
    settings: LoadSettings,
    source: BaseSource,
    context: int,
    device: torch.device,
    progress: Progress,
    previous: LoadedBase | None,
) -> LoadedBase:
    """Load a base, or return `previous` if it is the same one.

    Raises:
        LoradeskError: names file, field and remedy.
    """
    dtype = choose_dtype(settings.dtype, source, device, psutil.virtual_memory().available)
    origin = origin_of(source, context, device, dtype)
    if previous is not None and previous.origin == origin:
        return previous
    tokenizer = source.tokenizer()
    decoder = build_decoder(
        source.config,
        source.weights(),
        source.path,
        device=device,
        dtype=dtype,
        context=context,
        keep_packed=keeps_packed(source.parameters, device),
        progress=lambda fraction: progress("Loading the base model", fraction),
    )
    if previous is not None:
        gc.collect()  # frees what the earlier load left in reference cycles
    return LoadedBase(origin, decoder, tokenizer, _warnings(source, decoder, tokenizer, device))


def _warnings(source: BaseSource, decoder: Decoder, tokenizer: Tokenizer, device: torch.device) -> tuple[str, ...]:
    warnings: tuple[str, ...] = ()
    bnb = source.config.bnb
    if bnb is not None and device.type == "cpu" and not decoder.native:
        warnings += (cpu_warning(bnb.bits),)
    if tokenizer.piece_count > source.config.vocab_size:  # (added tokens are often beyond it, which is harmless)
        warnings += (
            f"The tokenizer has {tokenizer.piece_count:,} pieces, the model {source.config.vocab_size:,}: texts with "
            "the others are refused. Are they of the same model?",
        )
    return warnings


def short_name(settings: LoadSettings) -> str:
    """The model's name in lists."""
    return settings.name or Path(settings.base).name or settings.base
