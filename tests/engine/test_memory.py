"""Weights are mapped, not read, and converted ones are not held twice; measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import tiny

SCRIPT = """
import json, resource, sys, psutil
from loradesk_engine.commands import LoadSettings
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.formats.tokenizer import read_tokenizer
import gc
read_tokenizer(sys.argv[1])
before = psutil.Process().memory_info().rss
peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
engine = EngineCore.load(LoadSettings(base=sys.argv[1], dtype=sys.argv[2]))
gc.collect()
after = psutil.Process().memory_info().rss
print(json.dumps({"held": after - before, "weights": engine.info.weight_bytes}))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2,048 hidden values: 166 MB in float32."""
    folder = tmp_path_factory.mktemp("large")
    tiny.write_tokenizer(folder)
    hidden, inner = 2048, 4096
    config = {
        **tiny.SMALL,
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 1,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    block = "model.layers.0"
    shapes = {f"{block}.self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    shapes |= {f"{block}.mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
    shapes |= {f"{block}.mlp.down_proj": (hidden, inner), "model.embed_tokens": (tiny.VOCABULARY, hidden)}
    norms = ("model.norm", f"{block}.input_layernorm", f"{block}.post_attention_layernorm")
    tensors = {f"{name}.weight": torch.full(shape, 0.01) for name, shape in shapes.items()}
    save_file(tensors | {f"{name}.weight": torch.ones(hidden) for name in norms}, folder / "model.safetensors")
    return folder


def held(base: Path, dtype: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(base), dtype], check=True, capture_output=True, text=True, timeout=120
    )
    values: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return values


def test_weights_of_the_wanted_type_are_mapped_and_not_read(base: Path) -> None:
    found = held(base, "float32")
    assert found["weights"] > 160e6
    assert found["held"] < 0.25 * found["weights"]


def test_converted_weights_are_held_once(base: Path) -> None:
    found = held(base, "bfloat16")
    assert found["weights"] < 90e6
    assert found["held"] < 1.3 * found["weights"]
