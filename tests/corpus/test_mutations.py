"""A seeded corpus of damaged files: each loads, or is refused by an error of ours that names the file, and none costs
time or memory.

GGUF's structure has a corpus of its own in tests/gguf; here its metadata are damaged where model and tokenizer read
them.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import tiny
from support.clock import processor_time
from support.limits import CPU_SECONDS, limited_memory
from support.mutations import VALUES, damaged

from loradesk_engine.adapters.classifier import Classifier
from loradesk_engine.adapters.mixture import Mixture
from loradesk_engine.commands import Message
from loradesk_engine.errors import LoradeskError
from loradesk_engine.formats.adapter_folder import find_adapter
from loradesk_engine.formats.gguf import read_gguf
from loradesk_engine.formats.gguf_model import GgufModel
from loradesk_engine.formats.gguf_tokenizer import gguf_tokenizer
from loradesk_engine.formats.peft import read_adapter
from loradesk_engine.formats.safetensors import SafetensorsWeights
from loradesk_engine.formats.tokenizer import read_tokenizer
from loradesk_engine.formats.xlora import read_xlora
from loradesk_engine.model.base import read_base
from loradesk_engine.model.build import build_decoder
from loradesk_engine.ordering.check import check, raise_errors
from loradesk_engine.ordering.schema import OrderingFile
from loradesk_resources import resource_path

EACH = 200  # damages of each file


@dataclass(frozen=True)
class Target:
    """A file to damage, and what loads it."""

    file: Path
    load: Callable[[], object]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    root = tmp_path_factory.mktemp("corpus")
    base = root / "base"
    tiny.make_llama(base, num_hidden_layers=1)
    (base / "generation_config.json").write_text('{"eos_token_id": [256, 257]}', encoding="utf-8")
    adapters = {name: root / name for name in ("adapter_1", "adapter_10")}
    for seed, folder in enumerate(adapters.values()):
        tiny.make_lora(base, folder, seed, rank_pattern={"v_proj": 2}, alpha_pattern={r"layers\.\d+\..*q_proj": 3})
    peft, xlora = root / "peft", root / "xlora"
    tiny.make_xlora(base, peft, list(adapters.values()), layerwise_scalings=True, xlora_depth=2, xlora_size=8)
    tiny.to_xlora_form(peft, xlora, adapters)
    layers = {f"model.layers.0.self_attn.{name}_proj": place for place, name in enumerate("qv")}
    ordering = tiny.write_ordering(
        root / "ordering.json",
        base_model_id=str(base),
        order=list(adapters),
        layers=layers,
        preload_adapters=[{"name": name, "adapter_model_id": str(path)} for name, path in adapters.items()],
    )
    save_file({"a": torch.ones(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}, root / "tensors.safetensors")
    sharded = root / "sharded"
    sharded.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (sharded / name).write_bytes((base / name).read_bytes())
    (sharded / "part-1.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    names = SafetensorsWeights([base / "model.safetensors"])
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "part-1.safetensors")}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    templated = root / "templated"
    templated.mkdir()
    (templated / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    (templated / "chat_template.jinja").write_text(tiny.TEMPLATE, encoding="utf-8")

    decoder = _decoder(base)

    def tensors() -> None:
        weights = SafetensorsWeights([root / "tensors.safetensors"])
        for name in weights:
            weights[name].sum()

    def adapter() -> None:
        Mixture(decoder.projections, decoder.device, decoder.dtype).add("a", read_adapter(adapters["adapter_1"]), "a")

    def experts(folder: Path) -> None:
        checkpoint = read_xlora(folder)
        Classifier(checkpoint, hidden_size=32, layers=2, adapters=2, device=torch.device("cpu"), dtype=torch.float32)
        for name in adapters:
            find_adapter(checkpoint.folder, name, list(adapters))

    def classifier() -> None:
        Classifier(
            read_xlora(peft), hidden_size=32, layers=2, adapters=2, device=torch.device("cpu"), dtype=torch.float32
        )

    def order() -> None:
        raise_errors(check(OrderingFile.read(ordering)), ordering)

    def conversation(folder: Path) -> None:
        tokenizer = read_tokenizer(folder)
        ids = tokenizer.encode("Hello, wörld <|end|> 123\n", special_tokens=True)
        tokenizer.decode(ids)
        if tokenizer.template is not None:
            tokenizer.chat_ids([Message("system", "s"), Message("user", "Hi {{ 7 * 7 }}")])

    return {
        "safetensors": Target(root / "tensors.safetensors", tensors),
        "config": Target(base / "config.json", lambda: _decoder(base)),
        "generation config": Target(base / "generation_config.json", lambda: _decoder(base)),
        "index": Target(sharded / "model.safetensors.index.json", lambda: _decoder(sharded)),
        "base weights": Target(base / "model.safetensors", lambda: _decoder(base)),
        "adapter config": Target(adapters["adapter_1"] / "adapter_config.json", adapter),
        "adapter weights": Target(adapters["adapter_1"] / "adapter_model.safetensors", adapter),
        "xlora config": Target(xlora / "xlora_config.json", lambda: experts(xlora)),
        "xlora classifier": Target(xlora / "xlora_classifier.safetensors", lambda: experts(xlora)),
        "xlora expert": Target(xlora / "adapter_10" / "adapter_config.json", lambda: experts(xlora)),
        "peft xlora config": Target(peft / "adapter_config.json", classifier),
        "peft xlora weights": Target(peft / "adapter_model.safetensors", classifier),
        "ordering": Target(ordering, order),
        "tokenizer": Target(base / "tokenizer.json", lambda: conversation(base)),
        "tokenizer config": Target(base / "tokenizer_config.json", lambda: conversation(base)),
        "chat template": Target(templated / "chat_template.jinja", lambda: conversation(templated)),
    }


TARGETS = (
    "safetensors", "config", "generation config", "index", "base weights", "adapter config", "adapter weights",
    "xlora config", "xlora classifier", "xlora expert", "peft xlora config", "peft xlora weights", "ordering",
    "tokenizer", "tokenizer config", "chat template",
)  # fmt: skip


def _decoder(folder: Path) -> Any:
    source = read_base(folder)
    return build_decoder(
        source.config,
        source.weights(),
        source.path,
        device=torch.device("cpu"),
        dtype=torch.float32,
        context=min(source.config.context, 512),
    )


def outcome(load: Callable[[], object], note: str, names: tuple[str, ...]) -> str:
    """`loaded` or `refused`; anything else fails the test and says which damage it was."""
    refusal: LoradeskError | None = None
    with processor_time(CPU_SECONDS, note):
        try:
            load()
            result = "loaded"
        except LoradeskError as problem:
            result, refusal = "refused", problem
        except KeyboardInterrupt:
            raise
        except BaseException as problem:
            raise AssertionError(f"{note}: {type(problem).__name__}: {str(problem)[:300]}") from problem
    if refusal is not None:
        assert refusal.file is not None, f"{note}: {refusal!r} names no file"
        assert any(name in refusal.file for name in names), f"{note}: {refusal!r} names another file"
        # what the format has fields for names one; a file that is not there has none
        assert refusal.field or not os.path.isfile(refusal.file), f"{note}: {refusal!r} names no field"
        assert len(str(refusal)) < 5000, f"{note}: a message of {len(str(refusal)):,} characters"
    return result


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_load_or_are_refused(targets: Mapping[str, Target], name: str) -> None:
    target = targets[name]
    target.load()
    original = target.file.read_bytes()
    # a file may disagree with its neighbours, and then either may be named
    names = (str(target.file.parent), str(target.file.parent.parent))
    found = {"loaded": 0, "refused": 0}
    size = sum(file.stat().st_size for file in target.file.parent.rglob("*") if file.is_file())
    try:
        with limited_memory(size):
            for seed in range(EACH):
                content, note = damaged(
                    original, random.Random(f"{name} {seed}"), is_json=target.file.suffix == ".json"
                )
                target.file.write_bytes(content)
                found[outcome(target.load, f"{name}, seed {seed}: {note}", names)] += 1
    finally:
        target.file.write_bytes(original)
    assert found["refused"] > EACH // 20, found
    target.load()


@pytest.mark.parametrize("count", [EACH // 2, pytest.param(2 * EACH, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", ["model", "tokenizer", "pieces"])
def test_damaged_gguf_metadata_load_or_are_refused(part: str, count: int) -> None:
    path = resource_path("demo", "base-q8_0.gguf")
    whole = read_gguf(path)
    if part == "pieces":  # the same tokens as SentencePiece's
        scores = -np.arange(len(whole.metadata["tokenizer.ggml.tokens"]), dtype=np.float32)
        more = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": scores, "tokenizer.ggml.add_eos_token": True}
        whole = replace(whole, metadata=MappingProxyType({**whole.metadata, **more}))
    keys = [key for key in whole.metadata if key.startswith("tokenizer.") == (part != "model")]
    others = (np.zeros(0), np.full(9, np.nan), [["a"]], np.arange(3), [""], float("nan"), float("inf"))
    if part == "model":  # also what this file has no need of
        names = ("attention.key_length", "attention.sliding_window", "rope.dimension_count", "rope.scaling.type",
                 "rope.scaling.factor", "rope.scaling.original_context_length", "expert_count", "attention.scale",
                 "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_attn_factor", "rope.scaling.attn_factor",
                 "attention.sliding_window_pattern", "rope.freq_base_swa", "logit_scale")  # fmt: skip
        keys += [f"llama.{name}" for name in names]
        keys += ["split.count", "general.basename", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.bos_token_id"]
    with limited_memory(path.stat().st_size):
        for seed in range(count):
            chance = random.Random(f"{part} {seed}")
            metadata = dict(whole.metadata)
            if part == "model" and chance.random() < 0.3:
                metadata["llama.rope.scaling.type"] = chance.choice(("linear", "yarn"))
            key = chance.choice(keys)
            if chance.random() < 0.2 and key in metadata:
                note, metadata = f"{key} removed", {name: metadata[name] for name in metadata if name != key}
            else:
                metadata[key] = chance.choice((*VALUES, *others))
                note = f"{key} = {str(metadata[key])[:40]}"
            file = replace(whole, metadata=MappingProxyType(metadata))
            load = (
                (lambda file=file: GgufModel(file))
                if part == "model"
                else (lambda metadata=metadata: gguf_tokenizer(metadata, path).encode("Hello <|end|>"))
            )
            outcome(load, f"seed {seed}: {note}", (str(path),))
