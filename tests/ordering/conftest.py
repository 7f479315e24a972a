"""What the tests of ordering files share; transformers and PEFT are imported once, by the modules that ask for them."""

from __future__ import annotations

import pytest

from loradesk_engine.ordering.modules import number_layers
from loradesk_engine.ordering.schema import OrderingFile


@pytest.fixture
def mistral_config() -> dict[str, object]:
    """What zephyr-7b-beta's config.json says of its shape."""
    return {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_hidden_layers": 32}


@pytest.fixture
def gemma_config() -> dict[str, object]:
    """What gemma-7b-it's config.json says of its shape."""
    return {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "num_hidden_layers": 28}


@pytest.fixture
def small_config() -> dict[str, object]:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2}


@pytest.fixture
def small() -> OrderingFile:
    """Two adapters on q_proj and v_proj of two blocks."""
    paths = [f"model.layers.{n}.self_attn.{name}" for n in range(2) for name in ("q_proj", "v_proj")]
    return OrderingFile("org/base", ["one", "two"], number_layers(paths))
