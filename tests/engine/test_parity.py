"""The engine against transformers and PEFT: the same weights, the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import tiny
from support.forms import in_core_forms
from support.precision import Reference, exact, reference, whole_pass, xlora_references

from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.batch import Batch, Segment

pytestmark = pytest.mark.usefixtures("both_paths")

IDS = torch.randint(0, 256, (48,), generator=torch.Generator().manual_seed(3))


def hidden_states(
    engine: EngineCore, ids: torch.Tensor, pieces: list[int], scalings: torch.Tensor | None
) -> torch.Tensor:
    """Run ids in pieces of these lengths through one slot of a fresh cache. [tokens, hidden]"""
    cache = engine.decoder.new_cache()
    cache.reserve(1, len(ids))
    results, start = [], 0
    for length in pieces:
        delta = None
        if scalings is not None:
            assert engine.mixture is not None
            part = scalings if scalings.shape[0] == 1 else scalings[start : start + length]
            delta = engine.mixture.delta(part, range(part.shape[-1]))
        batch = Batch(
            ids[start : start + length], torch.arange(start, start + length), (Segment(0, 0, length, start),), delta
        )
        results.append(engine.decoder.forward(batch, cache))
        start += length
    return torch.cat(results)


def logits_of(
    engine: EngineCore, ids: torch.Tensor, pieces: list[int], scalings: torch.Tensor | None = None
) -> torch.Tensor:
    """[tokens, vocab]"""
    with torch.inference_mode():
        hidden = hidden_states(engine, ids, pieces, scalings)
        delta = None
        if scalings is not None:
            assert engine.mixture is not None
            delta = engine.mixture.delta(scalings, range(scalings.shape[-1]))
        return engine.decoder.logits(hidden, delta)


def weights_of(engine: EngineCore, weights: dict[str, float]) -> torch.Tensor:
    assert engine.mixture is not None
    return torch.tensor([weights.get(adapter.name, 0.0) for adapter in engine.mixture.adapters])[None, None]


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@in_core_forms
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"num_key_value_heads": 4}, id="multi-head"),
        pytest.param({}, id="grouped-query"),
        pytest.param({"num_key_value_heads": 1}, id="multi-query"),
        pytest.param({"tie_word_embeddings": True}, id="tied"),
        pytest.param({"rope_parameters": LLAMA3}, id="llama3-rope"),
        pytest.param(
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}, id="linear-rope"
        ),
        pytest.param({"head_dim": 16, "attention_bias": True, "mlp_bias": True}, id="head-dim-and-biases"),
        pytest.param({"hidden_act": "gelu_new", "rms_norm_eps": 1e-3}, id="gelu"),
    ],
)
@pytest.mark.parametrize("pieces", [[48], [1] * 48, [5, 20, 1, 1, 16, 1, 4]], ids=["whole", "one-by-one", "chunks"])
def test_llama_equals_transformers(tmp_path: Path, changes: dict[str, object], pieces: list[int]) -> None:
    model = tiny.make_llama(tmp_path, **changes)
    engine = EngineCore.load(LoadSettings(base=str(tmp_path), dtype="float32"))
    reference(model, whole_pass(IDS)).assert_near(logits_of(engine, IDS, pieces))


@pytest.mark.parametrize("both_paths", ["torch"], indirect=True)  # the kernels compute in float32
def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    model = tiny.make_llama(tmp_path, initializer_range=0.05)
    engine = EngineCore.load(LoadSettings(base=str(tmp_path), dtype="bfloat16"))
    expected = exact(model, whole_pass(IDS))
    with torch.inference_mode():
        own = whole_pass(IDS)(model.to(torch.bfloat16))
    Reference(expected, own).assert_near(logits_of(engine, IDS, [48]))


def lora_engine(zoo, names: list[str]) -> EngineCore:  # type: ignore[no-untyped-def]
    adapters = tuple(AdapterSource(name, str(zoo.adapters[name])) for name in names)
    return EngineCore.load(LoadSettings(base=str(zoo.base), mode="lora", adapters=adapters, dtype="float32"))


@in_core_forms
@pytest.mark.parametrize("name", ["adapter_1", "adapter_10", "adapter_2", "wide"])
def test_one_lora_equals_peft(zoo, name: str) -> None:  # type: ignore[no-untyped-def]
    engine = lora_engine(zoo, [name])
    expected = reference(tiny.peft_with(zoo.base, {name: zoo.adapters[name]}), whole_pass(IDS))
    expected.assert_near(logits_of(engine, IDS, [30] + [1] * 18, weights_of(engine, {name: 1.0})))


@pytest.mark.parametrize(
    "names", [["adapter_1", "adapter_10"], ["adapter_10", "wide"], ["adapter_1", "adapter_2", "wide"]]
)
def test_adapters_of_different_shape_sum_like_peft(zoo, names: list[str]) -> None:  # type: ignore[no-untyped-def]
    engine = lora_engine(zoo, list(zoo.adapters))
    expected = reference(tiny.peft_with(zoo.base, {name: zoo.adapters[name] for name in names}), whole_pass(IDS))
    expected.assert_near(logits_of(engine, IDS, [48], weights_of(engine, dict.fromkeys(names, 1.0))))


@pytest.mark.parametrize("weight", [0.5, 2.0, -1.0])
def test_a_weight_scales_an_adapter_like_pefts_scaling(zoo, weight: float) -> None:  # type: ignore[no-untyped-def]
    engine = lora_engine(zoo, ["adapter_1", "wide"])
    peft = tiny.peft_with(zoo.base, {"wide": zoo.adapters["wide"]})
    for module in peft.modules():
        if hasattr(module, "scaling") and isinstance(module.scaling, dict) and "wide" in module.scaling:
            module.scaling["wide"] *= weight
    actual = logits_of(engine, IDS, [48], weights_of(engine, {"wide": weight}))
    reference(peft, whole_pass(IDS)).assert_near(actual)


def test_a_disabled_adapter_is_bit_equal_to_the_base(zoo) -> None:  # type: ignore[no-untyped-def]
    base = EngineCore.load(LoadSettings(base=str(zoo.base), dtype="float32"))
    engine = lora_engine(zoo, list(zoo.adapters))
    assert engine.mixture is not None
    assert engine.mixture.delta(weights_of(engine, {}), []) is None
    expected = logits_of(base, IDS, [48])
    assert torch.equal(logits_of(engine, IDS, [48]), expected)
    # and in a batch beside a request whose adapters are on, its rows are multiplied by zero
    zero = torch.zeros(1, 1, 4)
    assert torch.equal(logits_of(engine, IDS, [48], zero), expected)


@in_core_forms
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"layerwise_scalings": True, "xlora_depth": 1}, id="depth-1"),
        pytest.param({"layerwise_scalings": True, "xlora_depth": 2, "xlora_size": 16}, id="depth-2"),
        pytest.param({"layerwise_scalings": True, "xlora_depth": 4, "xlora_size": 12, "std": 0.3}, id="depth-4"),
        pytest.param({"layerwise_scalings": False, "xlora_depth": 2, "xlora_size": 16}, id="not-layerwise"),
        pytest.param(
            {"layerwise_scalings": True, "xlora_depth": 2, "xlora_size": 16, "softmax_temperature": 0.5},
            id="temperature",
        ),
        pytest.param({"layerwise_scalings": True, "xlora_depth": 2, "xlora_size": 16, "top_k_lora": 2}, id="top-k"),
        pytest.param(
            {
                "layerwise_scalings": True,
                "xlora_depth": 2,
                "xlora_size": 16,
                "top_k_lora": 2,
                "enable_softmax_topk": True,
                "global_scaling_weight": 1.7,
            },
            id="top-k-softmax-and-global-weight",
        ),
        pytest.param(
            {"layerwise_scalings": True, "xlora_depth": 1, "enable_softmax": False, "std": 0.1}, id="no-softmax"
        ),
        pytest.param(
            {"layerwise_scalings": True, "xlora_depth": 3, "xlora_size": 8, "xlora_dropout_p": 0.0}, id="no-dropout"
        ),
    ],
)
def test_xlora_equals_peft(zoo, tmp_path: Path, options: dict[str, object]) -> None:  # type: ignore[no-untyped-def]
    names = ["adapter_1", "adapter_10", "adapter_2"]
    peft = tiny.make_xlora(zoo.base, tmp_path / "peft", [zoo.adapters[name] for name in names], **options)
    expected, raw = xlora_references(peft, IDS)
    tiny.to_xlora_form(tmp_path / "peft", tmp_path / "xlora", {name: zoo.adapters[name] for name in names})
    for settings in (
        LoadSettings(base=str(zoo.base), mode="xlora", xlora=str(tmp_path / "peft"), dtype="float32"),
        LoadSettings(
            base=str(zoo.base),
            mode="xlora",
            xlora=str(tmp_path / "xlora"),
            ordering=str(zoo.xlora_ordering),
            dtype="float32",
        ),
    ):
        engine = EngineCore.load(settings)
        assert engine.classifier is not None
        with torch.inference_mode():
            scalings = engine.classifier(hidden_states(engine, IDS, [48], None))
            if options.get("top_k_lora") is None:
                raw.assert_near(scalings)
            else:
                assert torch.equal((scalings != 0).sum(-1), torch.full(scalings.shape[:-1], 2))
        expected.assert_near(logits_of(engine, IDS, [48], scalings))


def test_both_xlora_formats_are_the_same_model(zoo) -> None:  # type: ignore[no-untyped-def]
    one = EngineCore.load(LoadSettings(base=str(zoo.base), mode="xlora", xlora=str(zoo.xlora_peft), dtype="float32"))
    two = EngineCore.load(
        LoadSettings(
            base=str(zoo.base),
            mode="xlora",
            xlora=str(zoo.xlora),
            ordering=str(zoo.xlora_ordering),
            dtype="float32",
        )
    )
    assert one.layer_paths == two.layer_paths
    for engine in (one, two):
        assert engine.classifier is not None
    with torch.inference_mode():
        scalings = [engine.classifier(hidden_states(engine, IDS, [48], None)) for engine in (one, two)]  # type: ignore[misc]
    assert torch.equal(*scalings)
    assert torch.equal(logits_of(one, IDS, [48], scalings[0]), logits_of(two, IDS, [48], scalings[1]))
