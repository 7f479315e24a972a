"""Command-line options that choose a model and its adapters, shared by every subcommand that loads one."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import get_args

from loradesk_engine.commands import AdapterMode, AdapterSource, LoadSettings, Quantize, Sampling
from loradesk_engine.demo import demo_settings
from loradesk_engine.errors import RequestError

RELU = {"auto": None, "yes": True, "no": False}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that `load_settings` reads."""
    group = parser.add_argument_group("model")
    group.add_argument("--demo", action="store_true", help="the demo pack that ships with Loradesk")
    group.add_argument(
        "--base", metavar="PATH|ID", help="base model: local folder or GGUF file, or hub id (owner/name/file.gguf)"
    )
    group.add_argument("--revision", help="revision of a hub id")
    group.add_argument("--mode", choices=["none", "lora", "xlora"], help="default: what the other options ask for")
    group.add_argument(
        "--adapter",
        metavar="NAME=PATH|ID",
        action="append",
        default=[],
        help="a LoRA adapter; may be given several times",
    )
    group.add_argument(
        "--adapters", metavar="PATH|ID", help="folder or hub id in which the adapters of the ordering file are, by name"
    )
    group.add_argument("--xlora", metavar="PATH|ID", help="X-LoRA checkpoint")
    group.add_argument(
        "--xlora-relu",
        choices=list(RELU),
        default="auto",
        help="whether a ReLU stands between the linears of a classifier that does not say it (auto: by the file's age)",
    )
    group.add_argument("--ordering", metavar="FILE", help="ordering file; without --base it names the base model")
    group.add_argument("--device", default="auto", help="auto, cpu, mps, cuda, cuda:1, ...")
    group.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    group.add_argument(
        "--quantize",
        default="none",
        choices=get_args(Quantize),
        help="make a bitsandbytes base of a 16- or 32-bit checkpoint while it loads",
    )
    group.add_argument("--context", type=int, help="tokens a conversation may hold")
    group.add_argument(
        "--tgt-non-granular-index",
        type=int,
        metavar="K",
        help="X-LoRA: freeze the scalings after K completion tokens",
    )
    group.add_argument(
        "--estimate", action="store_true", help="print how much memory the model would take, load nothing, and exit"
    )


def load_settings(options: argparse.Namespace) -> LoadSettings:
    """What the options ask for.

    Raises:
        RequestError: they contradict one another or name no model.
    """
    if options.demo:
        if options.base or options.adapter or options.adapters or options.xlora or options.ordering:
            raise RequestError("--demo brings its own base, adapters and ordering file.", field="--demo")
        mode: AdapterMode = options.mode or "xlora"
        settings = demo_settings(mode, options.tgt_non_granular_index)
        return replace(
            settings,
            device=options.device,
            dtype=options.dtype,
            quantize=options.quantize,
            context=options.context,
        )
    if not options.base and not options.ordering:
        raise RequestError("No model was named.", field="--base", remedy="Give --base PATH, --ordering FILE or --demo.")
    adapters = []
    for text in options.adapter:
        name, sign, source = text.partition("=")
        if not sign or not name or not source:
            raise RequestError(f"{text!r} is not NAME=PATH.", field="--adapter")
        adapters.append(AdapterSource(name, source))
    loras = adapters or options.adapters or options.ordering
    asked: AdapterMode = "xlora" if options.xlora else "lora" if loras else "none"
    return LoadSettings(
        base=options.base or "",
        revision=options.revision,
        mode=options.mode or asked,
        adapters=tuple(adapters),
        repository=options.adapters,
        xlora=options.xlora,
        xlora_relu=RELU[options.xlora_relu],
        ordering=options.ordering,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        context=options.context,
        tgt_non_granular_index=options.tgt_non_granular_index,
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Options that `sampling` reads."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", type=float, default=0.0, help="0 (default) takes the likeliest token")
    group.add_argument("--top-k", type=int, default=0)
    group.add_argument("--top-p", type=float, default=1.0)
    group.add_argument("--min-p", type=float, default=0.0)
    group.add_argument("--repetition-penalty", type=float, default=1.0)
    group.add_argument("--max-tokens", type=int)
    group.add_argument("--seed", type=int)


def sampling(options: argparse.Namespace) -> Sampling:
    """The sampling that the options ask for.

    Raises:
        RequestError: one is out of range.
    """
    return Sampling(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )
