"""The config.json for the bench's peers: transformers makes a model of the same tensors from it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers

from loradesk_engine.architectures.registry import FAMILIES
from loradesk_engine.bench.config_json import config_json
from loradesk_engine.formats.config import parse_config

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
BIASES = {"attention_bias": True, "mlp_bias": True, "use_bias": False}


def tensors(config: Any) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("changes", [{}, BIASES], ids=["usual", "biases"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_a_model_of_the_same_tensors_is_made_from_it(family: Any, changes: dict[str, bool]) -> None:
    changes = {key: value for key, value in changes.items() if key in family.defaults}
    theirs = transformers.AutoConfig.for_model(family.model_type, **SIZES, **changes)
    values = {**json.loads(theirs.to_json_string()), "architectures": list(family.classes)}
    made = {**config_json(parse_config(values, "config.json")), "pad_token_id": 0}
    assert tensors(transformers.AutoConfig.for_model(**made)) == tensors(theirs)
