"""X-LoRA beyond what PEFT has: a scaling pass with adapters, against an oracle; configurations that
contradict the classifier.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.forms import in_core_forms
from support.precision import reference
from support.xlora_oracle import XLoraOracle

from loradesk_engine.commands import CompletionRequest, LoadSettings, Sampling
from loradesk_engine.errors import AdapterError, RequestError
from loradesk_engine.events import TokensGenerated
from loradesk_engine.formats.xlora import read_xlora
from loradesk_engine.generation.engine import EngineCore

IDS = torch.randint(0, 256, (20,), generator=torch.Generator().manual_seed(3))
CONFIG, CLASSIFIER = "xlora_config.json", "xlora_classifier.safetensors"
PEFT_CONFIG = "adapter_config.json"


def edited(checkpoint: Path, folder: Path, **changes: Any) -> Path:
    """A copy with other values in its configuration; ...: without the key."""
    shutil.copytree(checkpoint, folder)
    file = next(folder / name for name in (CONFIG, PEFT_CONFIG) if (folder / name).is_file())
    values = json.loads(file.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in values.items() if value is not ...}
    file.write_text(json.dumps(kept), encoding="utf-8")
    return folder


# --- the scaling pass -------------------------------------------------------------------------------------------------


@in_core_forms
@pytest.mark.usefixtures("both_paths")
@pytest.mark.parametrize("lookahead", [True, False], ids=["look-ahead", "two passes"])
@pytest.mark.parametrize(("value", "weight"), [(0.0, 1.0), (0.3, 1.0), (-0.5, 1.0), (1.0, 1.5)])
@torch.inference_mode()
def test_a_scaling_pass_with_adapters_equals_the_reference(  # type: ignore[no-untyped-def]
    zoo, tmp_path: Path, value: float, weight: float, lookahead: bool
) -> None:
    checkpoint = edited(zoo.xlora, tmp_path / "xlora", scaling_pass_value=value, global_scaling_weight=weight)
    engine = EngineCore.load(zoo.xlora_settings(xlora=str(checkpoint)), lookahead=lookahead)
    engine.submit(CompletionRequest("r", tuple(IDS.tolist()), Sampling(max_tokens=10, ignore_end=True, logprobs=1)))
    tokens: list[int] = []
    logprobs: list[float] = []
    parts = []
    while engine.busy:
        for event in engine.step():
            if isinstance(event, TokensGenerated):
                tokens += event.token_ids
                logprobs += [entry.logprob for entry in event.logprobs]
                if event.scalings is not None:
                    parts.append(torch.from_numpy(event.scalings))
    ids = torch.cat([IDS, torch.tensor(tokens)])
    oracle = XLoraOracle(zoo.base, checkpoint, zoo.xlora_ordering)
    scalings = torch.cat(parts)
    wanted = reference(oracle, lambda oracle: oracle(ids)[1])
    wanted[: len(scalings)].assert_near(scalings)
    assert len(scalings) >= len(ids) - 1
    places = torch.arange(len(IDS) - 1, len(ids) - 1)
    reference(oracle, lambda oracle: oracle(ids)[0][places, tokens]).assert_near(torch.tensor(logprobs))
    if value:  # it is not the plain pass
        plain = XLoraOracle(zoo.base, zoo.xlora, zoo.xlora_ordering)(ids)[1]
        assert (plain - wanted.own).abs().max() > 0.05


# --- the configuration and the classifier -----------------------------------------------------------------------------


CONTRADICTIONS: list[tuple[dict[str, Any], str, str | None]] = [
    ({"xlora_depth": 1}, "xlora_depth", "2 linears"),
    ({"xlora_depth": 5}, "xlora_depth", "2 linears"),
    ({"xlora_depth": "2"}, "xlora_depth", None),
    ({"xlora_depth": 0}, "xlora_depth", None),
    ({"xlora_size": 999}, "xlora_size", "16 outputs"),
    ({"xlora_size": -1}, "xlora_size", None),
    ({"use_bias": False}, "use_bias", "a bias"),
    ({"use_bias": 1}, "use_bias", None),
]
RELU = ({"enable_relu_and_dropout": "yes"}, "enable_relu_and_dropout", None)  # PEFT has no such option


@pytest.mark.parametrize(
    ("form", "changes", "field", "tensors"),
    [(form, *each) for form in ("xlora", "xlora_peft") for each in CONTRADICTIONS] + [("xlora", *RELU)],
)
def test_a_configuration_that_contradicts_the_classifier_is_refused(  # type: ignore[no-untyped-def]
    zoo, tmp_path: Path, form: str, changes: dict[str, Any], field: str, tensors: str | None
) -> None:
    checkpoint = edited(getattr(zoo, form), tmp_path / "x", **changes)
    with pytest.raises(AdapterError) as caught:
        read_xlora(checkpoint)
    config, weights = (CONFIG, CLASSIFIER) if form == "xlora" else (PEFT_CONFIG, "adapter_model.safetensors")
    assert (caught.value.file, caught.value.field) == (str(checkpoint / config), field)
    if tensors is not None:
        assert tensors in caught.value.problem
        assert weights in caught.value.problem
        assert json.dumps(changes[field]) in caught.value.problem
        assert caught.value.remedy


def test_a_missing_bias_is_refused_where_there_should_be_one(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    without = {name: tensor for name, tensor in load_file(zoo.xlora / CLASSIFIER).items() if name != "last.bias"}
    for use_bias in (True, False, ...):
        checkpoint = edited(zoo.xlora, tmp_path / str(use_bias), use_bias=use_bias)
        save_file(without, checkpoint / CLASSIFIER)
        if use_bias is ...:  # nothing is said: the tensors tell
            assert [layer.bias for layer in read_xlora(checkpoint).layers] == ["inner.0.bias", None]
            continue
        with pytest.raises(AdapterError, match="last.weight" if use_bias else "inner.0.weight") as caught:
            read_xlora(checkpoint)
        assert caught.value.field == "use_bias"


@pytest.mark.parametrize("field", ["xlora_depth", "xlora_size", "use_bias"])
@pytest.mark.parametrize("form", ["xlora", "xlora_peft"])
def test_what_the_configuration_leaves_out_the_tensors_tell(zoo, tmp_path: Path, form: str, field: str) -> None:  # type: ignore[no-untyped-def]
    checkpoint = read_xlora(edited(getattr(zoo, form), tmp_path / "x", **{field: ...}))
    assert checkpoint.layers == read_xlora(getattr(zoo, form)).layers
    assert checkpoint.warning is None


@pytest.mark.parametrize(
    ("changes", "relu", "words"),
    [
        ({}, True, "a ReLU between them is assumed"),
        ({"stop_token_id": None}, False, "no ReLU between them is assumed"),  # xlora wrote it early in 2024
        ({"use_mean_pool": True}, False, "no ReLU between them is assumed"),
    ],
)
def test_two_linears_do_not_show_a_relu_and_the_assumption_is_said(  # type: ignore[no-untyped-def]
    zoo, tmp_path: Path, changes: dict[str, Any], relu: bool, words: str
) -> None:
    """xlora's default is true since 11 April 2024 (its commit ad61a24), and was false in the months before."""
    checkpoint = edited(zoo.xlora, tmp_path / "x", enable_relu_and_dropout=..., **changes)
    engine = EngineCore.load(zoo.xlora_settings(xlora=str(checkpoint)))
    assert [layer.relu for layer in read_xlora(checkpoint).layers] == [relu, False]
    (told,) = [text for text in engine.info.warnings if "enable_relu_and_dropout" in text]
    assert str(checkpoint / CONFIG) in told
    assert words in told
    for said in (True, False):
        other = read_xlora(edited(zoo.xlora, tmp_path / str(said), enable_relu_and_dropout=said, **changes))
        assert (other.layers[0].relu, other.warning) == (said, None)


@pytest.mark.parametrize("relu", [True, False])
def test_the_user_chooses_whether_there_is_a_relu(zoo, tmp_path: Path, relu: bool) -> None:  # type: ignore[no-untyped-def]
    """The scalings are those of the checkpoint that says it."""
    silent = edited(zoo.xlora, tmp_path / "silent", enable_relu_and_dropout=...)
    said = edited(zoo.xlora, tmp_path / "said", enable_relu_and_dropout=relu)
    scalings = []
    for settings in (zoo.xlora_settings(xlora=str(silent), xlora_relu=relu), zoo.xlora_settings(xlora=str(said))):
        engine = EngineCore.load(settings)
        assert not [text for text in engine.info.warnings if "enable_relu_and_dropout" in text]
        engine.submit(CompletionRequest("r", tuple(IDS.tolist()), Sampling(max_tokens=1)))
        events = [event for _ in range(20) if engine.busy for event in engine.step()]
        found = [event.scalings for event in events if isinstance(event, TokensGenerated)]
        scalings.append(torch.from_numpy(next(part for part in found if part is not None)))
    torch.testing.assert_close(scalings[0], scalings[1], rtol=0, atol=0)


def test_a_choice_against_what_the_checkpoint_says_is_refused(zoo) -> None:  # type: ignore[no-untyped-def]
    for checkpoint, name in ((zoo.xlora, CONFIG), (zoo.xlora_peft, PEFT_CONFIG)):
        with pytest.raises(AdapterError, match="without a ReLU") as caught:
            read_xlora(checkpoint, relu=False)
        assert caught.value.file == str(checkpoint / name)
        assert read_xlora(checkpoint, relu=True).layers[0].relu
    with pytest.raises(RequestError, match="classifier"):
        EngineCore.load(LoadSettings(base=str(zoo.base), xlora_relu=True))


NUMBERED = {
    (0, 1, 2): (False, None),
    (0, 2, 4): (True, None),
    (0, 3, 6): (True, None),
    (0, 1, 3): (None, "inner"),
    (1, 2, 3): (None, "inner"),
}


@pytest.mark.parametrize("numbers", NUMBERED)
@pytest.mark.parametrize("said", [True, False, ...])
def test_the_numbers_of_four_linears_tell_of_a_relu(zoo, tmp_path: Path, numbers: tuple[int, ...], said: Any) -> None:  # type: ignore[no-untyped-def]
    relu, field = NUMBERED[numbers]
    tensors = load_file(zoo.xlora / CLASSIFIER)
    first = {kind: tensors.pop(f"inner.0.{kind}") for kind in ("weight", "bias")}
    for number in numbers:
        width = 32 if number == numbers[0] else 16
        tensors |= {f"inner.{number}.weight": torch.ones(16, width), f"inner.{number}.bias": first["bias"].clone()}
    checkpoint = edited(zoo.xlora, tmp_path / "x", enable_relu_and_dropout=said, xlora_depth=4)
    save_file(tensors, checkpoint / CLASSIFIER)
    if field is None and said in (relu, ...):
        assert {layer.relu for layer in read_xlora(checkpoint).layers[:-1]} == {relu}
        return
    with pytest.raises(AdapterError, match="numbered") as caught:
        read_xlora(checkpoint)
    assert caught.value.field == (field or "enable_relu_and_dropout")
    assert caught.value.remedy
