"""Every option of PEFT's LoRA: those that the engine supports give PEFT's logits, the others are refused by name."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from safetensors.torch import load_file, save_file
from support import tiny
from support.precision import Reference, reference, whole_pass

from loradesk_engine.adapters.mixture import SUBSETS_BYTES, SUBSETS_KEPT
from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.errors import AdapterError
from loradesk_engine.formats.peft import PLAIN_VALUES, read_adapter
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.batch import Batch, Segment

pytestmark = pytest.mark.usefixtures("both_paths")

IDS = torch.randint(0, 256, (32,), generator=torch.Generator().manual_seed(3))
SUPPORTED = {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "target_parameters", "fan_in_fan_out", "bias", "use_dora", "lora_bias",
    "init_lora_weights",
}  # fmt: skip
WITHOUT_EFFECT = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config",
    "qalora_group_size", "runtime_config", "ensure_weight_tying",
}  # fmt: skip
"""On the answers of a trained adapter: where it came from, how it was trained, settings of an option that is off."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("options")
    for name in ("untied", "tied"):
        tiny.make_llama(root / name, num_hidden_layers=3, tie_word_embeddings=name == "tied")
    return {name: root / name for name in ("untied", "tied")}


@pytest.fixture(scope="module")
def base(bases: dict[str, Path]) -> Path:
    return bases["untied"]


@pytest.fixture(scope="module")
def made(base: Path) -> Path:
    tiny.make_lora(base, base.parent / "adapter", 1)
    return base.parent / "adapter"


@torch.inference_mode()
def engine_logits(base: Path, adapter: Path) -> tuple[torch.Tensor, str]:
    settings = LoadSettings(base=str(base), mode="lora", adapters=(AdapterSource("a", str(adapter)),), dtype="float32")
    engine = EngineCore.load(settings)
    assert engine.mixture is not None
    cache = engine.decoder.new_cache()
    cache.reserve(1, len(IDS))
    delta = engine.mixture.delta(torch.ones(1, 1, 1), [0])
    batch = Batch(IDS, torch.arange(len(IDS)), (Segment(0, 0, len(IDS), 0),), delta)
    return engine.decoder.logits(engine.decoder.forward(batch, cache), delta), engine.adapters[0].applied


def make(base: Path, folder: Path, **options: Any) -> Reference:
    """An adapter with random weights, saved by PEFT; the logits that PEFT gives when it has loaded it again."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **options}
    torch.manual_seed(11)
    model = get_peft_model(tiny.load(base), LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    return reference(PeftModel.from_pretrained(tiny.load(base), folder).eval(), whole_pass(IDS))


OPTIONS: dict[str, tuple[dict[str, Any], int]] = {
    "a list": ({}, 9),
    "whole paths": ({"target_modules": ["model.layers.1.self_attn.q_proj", "lm_head"]}, 2),
    "a pattern": ({"target_modules": r".*\.layers\.[02]\..*(q|up)_proj"}, 4),
    "all-linear": ({"target_modules": "all-linear"}, 21),
    "one layer": ({"layers_to_transform": 1}, 3),
    "some layers": ({"layers_to_transform": [0, 2], "layers_pattern": "layers"}, 6),
    "exclude a list": ({"exclude_modules": ["v_proj"]}, 6),
    "exclude a pattern": ({"exclude_modules": r".*layers\.1\..*"}, 6),
    "ranks by name": ({"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 7}}, 9),
    "ranks by pattern": ({"rank_pattern": {r"layers\.[01]\..*": 3, "^model.layers.2.self_attn.q_proj": 5}}, 9),
    "alphas by pattern": ({"alpha_pattern": {r"layers\.\d+\.self_attn\.(q|v)_proj": 31, "down_proj": 2}}, 9),
    "the first key counts": ({"rank_pattern": {"q_proj": 2, "self_attn.q_proj": 9}, "alpha_pattern": {"j": 1}}, 9),
    "rank-stabilised": ({"use_rslora": True, "rank_pattern": {"v_proj": 9}, "alpha_pattern": {"v_proj": 3}}, 9),
    "fan in, fan out": ({"fan_in_fan_out": True}, 9),
    "the output layer": ({"target_modules": ["lm_head", "o_proj"]}, 4),
    "gaussian start": ({"init_lora_weights": "gaussian"}, 9),
    "orthogonal start": ({"init_lora_weights": "orthogonal"}, 9),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "untied") for name in OPTIONS), ("the output layer", "tied"), ("all-linear", "tied")]
)
def test_supported_options_equal_peft(bases: dict[str, Path], tmp_path: Path, name: str, kind: str) -> None:
    base = bases[kind]
    options, modules = OPTIONS[name]
    expected = make(base, tmp_path, **options)
    actual, applied = engine_logits(base, tmp_path)
    expected.assert_near(actual)
    assert applied == f"applied to {modules} of 22 modules"
    with torch.inference_mode():
        plain = tiny.load(base)(IDS[None]).logits[0]
    assert (expected.own - plain).abs().max() > 0.01  # the adapter does something


REFUSED: dict[str, Any] = {
    "modules_to_save": ["lm_head"],
    "layer_replication": [[0, 2], [1, 3]],
    "alora_invocation_tokens": [1, 2],
    "trainable_token_indices": [3],
    "megatron_config": {"tensor_parallel_size": 2},
    "use_qalora": True,
    "use_bdlora": {"target_modules_bd_a": ["q_proj"]},
    "arrow_config": {"top_k": 2},
    "kasa_config": {"beta": 1.0},
    "monteclora_config": {"samples": 2},
    "init_lora_weights": "pissa_niter_4",
}


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "adapter"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.mark.parametrize("option", REFUSED)
def test_options_that_change_the_answer_are_refused_by_name(adapter: Path, option: str) -> None:
    edit(adapter, **{option: REFUSED[option]})
    with pytest.raises(AdapterError) as caught:
        read_adapter(adapter)
    assert (caught.value.file, caught.value.field) == (str(adapter / "adapter_config.json"), option)
    assert caught.value.remedy


@pytest.mark.parametrize("start", ["pissa", "PiSSA", "olora", "loftq", "corda", "lora_ga"])
def test_trainings_that_changed_the_base_are_refused(adapter: Path, start: str) -> None:
    edit(adapter, init_lora_weights=start)
    with pytest.raises(AdapterError, match="changed the base") as caught:
        read_adapter(adapter)
    assert caught.value.field == "init_lora_weights"


@pytest.mark.parametrize("kind", [kind.value for kind in PeftType if kind not in (PeftType.LORA, PeftType.XLORA)])
def test_other_kinds_of_adapters_are_refused_by_name(adapter: Path, kind: str) -> None:
    edit(adapter, peft_type=kind)
    with pytest.raises(AdapterError, match=kind) as caught:
        read_adapter(adapter)
    assert caught.value.field == "peft_type"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embeddings"),
        ("base_model.model.lm_head.modules_to_save.weight", "fully trained modules"),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", "trainable tokens"),
        ("base_model.model.model.norm.weight", "tensors of this name"),
    ],
)
def test_tensors_beside_lora_are_refused_by_name(adapter: Path, name: str, what: str) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({**load_file(file), name: torch.ones(4, 4)}, file)
    with pytest.raises(AdapterError, match=what) as caught:
        read_adapter(adapter)
    assert (caught.value.file, caught.value.field) == (str(file), name)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_with_embeddings_as_peft_saves_it_is_refused(base: Path, tmp_path: Path) -> None:
    make(base, tmp_path, target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(AdapterError, match="embeddings"):
        read_adapter(tmp_path)


def test_every_option_that_peft_has_is_known_here() -> None:
    """A new PEFT may bring options that change the answer: they must be looked at, not ignored."""
    known = SUPPORTED | WITHOUT_EFFECT | set(PLAIN_VALUES)
    assert {field.name for field in dataclasses.fields(LoraConfig)} <= known
    assert set(REFUSED) - {"init_lora_weights"} == set(PLAIN_VALUES) - SUPPORTED


def test_sets_of_adapters_that_were_active_do_not_pile_up(zoo) -> None:  # type: ignore[no-untyped-def]
    adapters = tuple(AdapterSource(name, str(path)) for name, path in zoo.adapters.items())
    settings = LoadSettings(base=str(zoo.base), mode="lora", adapters=adapters, dtype="float32", device="cpu")
    mixture = EngineCore.load(settings).mixture
    assert mixture is not None
    most = SUBSETS_BYTES * sum(adapter.nbytes for adapter in mixture.adapters)
    places = range(len(adapters))
    for active in (chosen for count in places for chosen in itertools.combinations(places, count + 1)):
        mixture.delta(torch.ones(1, 1, len(adapters)), active)
        kept = list(mixture._subsets.values())
        assert len(kept) == 1 or (len(kept) <= SUBSETS_KEPT and sum(subset.nbytes for subset in kept) <= most)
        assert tuple(active) in mixture._subsets
