"""What is wrong, in which file and field, and what to do: every refusal is typed and names its place."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny

from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    FileFormatError,
    HubError,
    LoradeskError,
    OrderingError,
    RequestError,
    TemplateError,
)
from loradesk_engine.generation.engine import EngineCore


@pytest.fixture
def base(zoo, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    return Path(shutil.copytree(zoo.base, tmp_path / "base"))


def edit_json(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    values.update(changes)
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}), encoding="utf-8")


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def truncate(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def with_header(path: Path, header: object, body: bytes = b"\0" * 64) -> None:
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)


WEIGHTS = "model.safetensors"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"

BASES: list[tuple[str, Callable[[Path], object], type[LoradeskError], str, str | None]] = [
    ("no weights", lambda b: (b / WEIGHTS).unlink(), CheckpointError, "", None),
    ("truncated weights", lambda b: truncate(b / WEIGHTS, 0.5), FileFormatError, WEIGHTS, "model"),
    ("truncated header", lambda b: truncate(b / WEIGHTS, 0.01), FileFormatError, WEIGHTS, None),
    ("empty weights", lambda b: (b / WEIGHTS).write_bytes(b""), FileFormatError, WEIGHTS, None),
    ("header of no length", lambda b: (b / WEIGHTS).write_bytes(b"\xff" * 64), FileFormatError, WEIGHTS, None),
    ("header no object", lambda b: with_header(b / WEIGHTS, [1]), FileFormatError, WEIGHTS, None),
    (
        "offsets beyond the file",
        lambda b: with_header(b / WEIGHTS, {"a": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}),
        FileFormatError,
        WEIGHTS,
        "a",
    ),
    (
        "huge shape",
        lambda b: with_header(b / WEIGHTS, {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}),
        FileFormatError,
        WEIGHTS,
        "a",
    ),
    (
        "overlapping tensors",
        lambda b: with_header(
            b / WEIGHTS,
            {
                "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
            },
        ),
        FileFormatError,
        WEIGHTS,
        "b",
    ),
    (
        "a tensor is missing",
        lambda b: edit_tensors(b / WEIGHTS, lambda t: t.pop(Q_PROJ)),
        CheckpointError,
        "base",
        Q_PROJ,
    ),
    (
        "a tensor too many",
        lambda b: edit_tensors(b / WEIGHTS, lambda t: t.update(extra=torch.ones(2))),
        CheckpointError,
        "base",
        "extra",
    ),
    (
        "a wrong shape",
        lambda b: edit_tensors(b / WEIGHTS, lambda t: t.update({Q_PROJ: torch.ones(8, 32)})),
        CheckpointError,
        "base",
        Q_PROJ,
    ),
    (
        "integer weights",
        lambda b: edit_tensors(b / WEIGHTS, lambda t: t.update({Q_PROJ: torch.ones(32, 32, dtype=torch.int8)})),
        CheckpointError,
        "base",
        Q_PROJ,
    ),
    ("no config", lambda b: (b / "config.json").unlink(), ConfigError, "config.json", None),
    ("config no JSON", lambda b: (b / "config.json").write_text("{"), ConfigError, "config.json", "line 1, column 2"),
    ("config a list", lambda b: (b / "config.json").write_text("[]"), ConfigError, "config.json", None),
    (
        "unknown architecture",
        lambda b: edit_json(b / "config.json", architectures=["BloomForCausalLM"]),
        ConfigError,
        "config.json",
        "architectures",
    ),
    (
        "no architecture",
        lambda b: edit_json(b / "config.json", architectures=...),
        ConfigError,
        "config.json",
        "architectures",
    ),
    (
        "unknown activation",
        lambda b: edit_json(b / "config.json", hidden_act="mish"),
        ConfigError,
        "config.json",
        "hidden_act",
    ),
    (
        "unknown rope",
        lambda b: edit_json(b / "config.json", rope_parameters={"rope_type": "spiral", "rope_theta": 10_000.0}),
        ConfigError,
        "config.json",
        "rope_parameters",
    ),
    (
        "negative size",
        lambda b: edit_json(b / "config.json", hidden_size=-32),
        ConfigError,
        "config.json",
        "hidden_size",
    ),
    (
        "size as text",
        lambda b: edit_json(b / "config.json", vocab_size="many"),
        ConfigError,
        "config.json",
        "vocab_size",
    ),
    (
        "quantized in a way we do not know",
        lambda b: edit_json(b / "config.json", quantization_config={"quant_method": "awq"}),
        ConfigError,
        "config.json",
        "quantization_config",
    ),
    ("no tokenizer", lambda b: (b / "tokenizer.json").unlink(), ConfigError, "tokenizer.json", None),
    ("tokenizer garbage", lambda b: (b / "tokenizer.json").write_text("{}"), ConfigError, "tokenizer.json", None),
    (
        "template no Jinja",
        lambda b: edit_json(b / "tokenizer_config.json", chat_template="{% for"),
        TemplateError,
        "tokenizer_config.json",
        "chat_template",
    ),
    (
        "shard outside the folder",
        lambda b: (b / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}'),
        CheckpointError,
        "model.safetensors.index.json",
        "weight_map",
    ),
    (
        "pickled weights only",
        lambda b: (b / WEIGHTS).rename(b / "pytorch_model.bin"),
        CheckpointError,
        "pytorch_model.bin",
        None,
    ),
]


@pytest.mark.parametrize(("change", "error", "file", "field"), [pytest.param(*case[1:], id=case[0]) for case in BASES])
def test_a_bad_base_is_refused(
    base: Path, change: Callable[[Path], object], error: type[LoradeskError], file: str, field: str | None
) -> None:
    change(base)
    with pytest.raises(error) as caught:
        EngineCore.load(LoadSettings(base=str(base)))
    assert caught.value.file is not None
    assert file in caught.value.file
    if field is not None:
        assert caught.value.field is not None
        assert field in caught.value.field


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(HubError) as caught:
        EngineCore.load(LoadSettings(base=str(tmp_path / "none")))
    assert caught.value.file == str(tmp_path / "none")


def test_an_unknown_device(zoo) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RequestError) as caught:
        EngineCore.load(LoadSettings(base=str(zoo.base), device="cuda:97"))
    assert caught.value.field == "device"


# --- adapters ---------------------------------------------------------------------------------------------------------

CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
A_NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

ADAPTERS: list[tuple[str, Callable[[Path], object], type[LoradeskError], str, str]] = [
    ("no weights", lambda a: (a / ADAPTER).unlink(), AdapterError, "", ""),
    ("pickled", lambda a: (a / ADAPTER).rename(a / "adapter_model.bin"), AdapterError, "adapter_model.bin", ""),
    ("no config", lambda a: (a / CONFIG).unlink(), AdapterError, CONFIG, ""),
    ("truncated", lambda a: truncate(a / ADAPTER, 0.6), FileFormatError, ADAPTER, "lora_"),
    ("not LoRA", lambda a: edit_json(a / CONFIG, peft_type="IA3"), AdapterError, CONFIG, "peft_type"),
    (
        "modules to save",
        lambda a: edit_json(a / CONFIG, modules_to_save=["lm_head"]),
        AdapterError,
        CONFIG,
        "modules_to",
    ),
    (
        "trainable tokens",
        lambda a: edit_json(a / CONFIG, trainable_token_indices=[1]),
        AdapterError,
        CONFIG,
        "trainable_token_indices",
    ),
    (
        "activated LoRA",
        lambda a: edit_json(a / CONFIG, alora_invocation_tokens=[1]),
        AdapterError,
        CONFIG,
        "alora_invocation_tokens",
    ),
    (
        "layer replication",
        lambda a: edit_json(a / CONFIG, layer_replication=[[0, 1]]),
        AdapterError,
        CONFIG,
        "layer_replication",
    ),
    ("a rank that lies", lambda a: edit_json(a / CONFIG, r=5), AdapterError, ADAPTER, "layers.0"),
    ("a rank of nothing", lambda a: edit_json(a / CONFIG, r=0), AdapterError, CONFIG, "r"),
    ("alpha as text", lambda a: edit_json(a / CONFIG, lora_alpha="big"), AdapterError, CONFIG, "lora_alpha"),
    ("a broken pattern", lambda a: edit_json(a / CONFIG, rank_pattern={"(": 4}), AdapterError, CONFIG, "pattern"),
    (
        "B without A",
        lambda a: edit_tensors(a / ADAPTER, lambda t: t.pop(A_NAME)),
        AdapterError,
        ADAPTER,
        "layers.0.self_attn.q_proj",
    ),
    (
        "a strange tensor",
        lambda a: edit_tensors(a / ADAPTER, lambda t: t.update(strange=torch.ones(2))),
        AdapterError,
        ADAPTER,
        "strange",
    ),
]


@pytest.mark.parametrize(
    ("change", "error", "file", "field"), [pytest.param(*case[1:], id=case[0]) for case in ADAPTERS]
)
def test_a_bad_adapter_is_refused_and_the_others_stay(  # type: ignore[no-untyped-def]
    zoo, tmp_path: Path, change: Callable[[Path], object], error: type[LoradeskError], file: str, field: str
) -> None:
    folder = Path(shutil.copytree(zoo.adapters["adapter_1"], tmp_path / "bad"))
    change(folder)
    engine = EngineCore.load(
        LoadSettings(base=str(zoo.base), mode="lora", adapters=(AdapterSource("good", str(zoo.adapters["adapter_2"])),))
    )
    with pytest.raises(error) as caught:
        engine.add_adapter(AdapterSource("bad", str(folder)))
    assert caught.value.file is not None
    assert file in caught.value.file
    assert field in (caught.value.field or "")
    assert [info.name for info in engine.adapters] == ["good"]


def test_an_adapter_of_another_base_says_which(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tiny.make_llama(tmp_path / "wider", hidden_size=64)
    tiny.make_llama(tmp_path / "deeper", num_hidden_layers=3)
    for name in ("wider", "deeper"):
        tiny.make_lora(tmp_path / name, tmp_path / f"{name}-adapter", 1)
        settings = LoadSettings(
            base=str(zoo.base), mode="lora", adapters=(AdapterSource("x", str(tmp_path / f"{name}-adapter")),)
        )
        with pytest.raises(AdapterError) as caught:
            EngineCore.load(settings)
        assert caught.value.field is not None
        assert "self_attn" in caught.value.field
        assert caught.value.remedy is not None
        assert str(tmp_path / name) in caught.value.remedy


def test_an_adapter_that_changes_the_output_matrix_itself_is_refused(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = Path(shutil.copytree(zoo.adapters["wide"], tmp_path / "wide"))
    copies = [name for name in load_file(folder / ADAPTER) if "base_layer" in name]
    assert copies
    edit_tensors(folder / ADAPTER, lambda tensors: tensors[copies[0]].add_(1.0))
    with pytest.raises(AdapterError, match="matrix of its own"):
        EngineCore.load(LoadSettings(base=str(zoo.base), mode="lora", adapters=(AdapterSource("wide", str(folder)),)))


# --- ordering files and X-LoRA ----------------------------------------------------------------------------------------


def xlora_settings(zoo, **changes: object) -> LoadSettings:  # type: ignore[no-untyped-def]
    values = {"base": str(zoo.base), "mode": "xlora", "xlora": str(zoo.xlora), "ordering": str(zoo.xlora_ordering)}
    return LoadSettings(**{**values, **changes})  # type: ignore[arg-type]


def changed_ordering(zoo, tmp_path: Path, **changes: object) -> str:  # type: ignore[no-untyped-def]
    path = tmp_path / "ordering.json"
    shutil.copy(zoo.xlora_ordering, path)
    edit_json(path, **changes)
    return str(path)


def layers_of(zoo) -> dict[str, int]:  # type: ignore[no-untyped-def]
    return dict(json.loads(zoo.xlora_ordering.read_text(encoding="utf-8"))["layers"])


def test_names_that_contain_one_another_resolve_exactly(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """adapter_1 and adapter_10, in sub-folders and as flat files whose name carries the adapter's name."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("xlora_config.json", "xlora_classifier.safetensors"):
        shutil.copy(zoo.xlora / name, flat)
    for name in ("adapter_1", "adapter_10", "adapter_2"):
        shutil.copy(zoo.xlora / name / ADAPTER, flat / f"{name}.safetensors")
        shutil.copy(zoo.xlora / name / CONFIG, flat / f"{name}.json")
    for checkpoint in (zoo.xlora, flat):
        engine = EngineCore.load(xlora_settings(zoo, xlora=str(checkpoint)))
        assert engine.mixture is not None
        ranks = {adapter.name: next(iter(adapter.modules.values()))[0] for adapter in engine.mixture.adapters}
        assert ranks == {"adapter_1": 4, "adapter_10": 2, "adapter_2": 8}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"order": ["adapter_1", "adapter_10"]}, None, id="an adapter too few"),
        pytest.param({"order": ["adapter_1", "adapter_10", "adapter_3"]}, "order", id="an adapter that is not there"),
        pytest.param({"order": ...}, "order", id="no order"),
        pytest.param({"order": "adapter_1"}, "order", id="order a text"),
        pytest.param({"layers": []}, "layers", id="layers a list"),
        pytest.param({"base_model_id": 7}, "base_model_id", id="base a number"),
    ],
)
def test_an_ordering_file_that_contradicts_the_checkpoint(  # type: ignore[no-untyped-def]
    zoo, tmp_path: Path, changes: dict[str, object], field: str | None
) -> None:
    with pytest.raises((OrderingError, AdapterError)) as caught:
        EngineCore.load(xlora_settings(zoo, ordering=changed_ordering(zoo, tmp_path, **changes)))
    assert caught.value.file is not None
    if field is not None:
        assert field in (caught.value.field or "")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda layers: layers.pop("model.layers.1.mlp.down_proj"), id="a layer is missing"),
        pytest.param(lambda layers: layers.update({"model.layers.9.mlp.down_proj": 14}), id="a layer nobody has"),
        pytest.param(lambda layers: layers.update({"model.layers.1.mlp.down_proj": 12}), id="a number twice"),
        pytest.param(lambda layers: layers.update({"model.layers.1.mlp.down_proj": 99}), id="a gap"),
    ],
)
def test_wrong_layers_are_refused(zoo, tmp_path: Path, change: Callable[[dict[str, int]], object]) -> None:  # type: ignore[no-untyped-def]
    layers = layers_of(zoo)
    change(layers)
    with pytest.raises(OrderingError) as caught:
        EngineCore.load(xlora_settings(zoo, ordering=changed_ordering(zoo, tmp_path, layers=layers)))
    assert "layers" in (caught.value.field or "")


def test_an_ordering_file_for_another_base_loads_with_a_warning(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Ids and local paths of one base differ, so this cannot be an error; the shapes decide."""
    ordering = changed_ordering(zoo, tmp_path, base_model_id="somebody/else-7b")
    engine = EngineCore.load(xlora_settings(zoo, ordering=ordering))
    assert any("somebody/else-7b" in warning for warning in engine.info.warnings)


def test_an_ordering_file_that_is_no_json_names_line_and_column(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "ordering.json"
    path.write_text('{\n  "order": ["a",]\n}', encoding="utf-8")
    with pytest.raises(OrderingError) as caught:
        EngineCore.load(xlora_settings(zoo, ordering=str(path)))
    assert caught.value.file == str(path)
    assert "line 2" in (caught.value.field or "")


def test_a_classifier_of_the_wrong_size_says_both_numbers(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    checkpoint = Path(shutil.copytree(zoo.xlora, tmp_path / "xlora"))
    file = checkpoint / "xlora_classifier.safetensors"

    def shorten(tensors: dict[str, torch.Tensor]) -> None:
        tensors["last.weight"] = tensors["last.weight"][:-3].contiguous()
        tensors["last.bias"] = tensors["last.bias"][:-3].contiguous()

    edit_tensors(file, shorten)
    for ordering in (str(zoo.xlora_ordering),):
        with pytest.raises(LoradeskError) as caught:
            EngineCore.load(xlora_settings(zoo, xlora=str(checkpoint), ordering=ordering))
        assert "39" in str(caught.value)
        assert "42" in str(caught.value)


def test_a_peft_checkpoint_without_its_first_layer_says_so(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    checkpoint = Path(shutil.copytree(zoo.xlora_peft, tmp_path / "peft"))

    def drop_first(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".layers.0." in name]:
            del tensors[name]

    edit_tensors(checkpoint / ADAPTER, drop_first)
    with pytest.raises(AdapterError, match=r"0\.21"):
        EngineCore.load(LoadSettings(base=str(zoo.base), mode="xlora", xlora=str(checkpoint)))


def test_a_missing_adapter_names_it(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    checkpoint = Path(shutil.copytree(zoo.xlora, tmp_path / "xlora"))
    shutil.rmtree(checkpoint / "adapter_10")
    with pytest.raises(AdapterError, match="adapter_10") as caught:
        EngineCore.load(xlora_settings(zoo, xlora=str(checkpoint)))
    assert caught.value.file == str(checkpoint)


def test_lora_ordering_file_preloads_and_activates(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    preload = [{"name": name, "adapter_model_id": str(path)} for name, path in zoo.adapters.items()]
    ordering = tiny.write_ordering(
        tmp_path / "o.json", base_model_id=str(zoo.base), order=["wide"], preload_adapters=preload
    )
    engine = EngineCore.load(LoadSettings(base=str(zoo.base), mode="lora", ordering=str(ordering)))
    assert engine.active == {"wide": 1.0}
    assert [info.name for info in engine.adapters] == list(zoo.adapters)
    edit_json(ordering, order=["nobody"])
    with pytest.raises(OrderingError, match="nobody"):
        EngineCore.load(LoadSettings(base=str(zoo.base), mode="lora", ordering=str(ordering)))


def test_relative_adapters_are_looked_for_beside_the_ordering_file(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(zoo.adapters["wide"], tmp_path / "adapters" / "wide")
    ordering = tiny.write_ordering(
        tmp_path / "ordering" / "o.json",
        base_model_id=str(zoo.base),
        preload_adapters=[{"name": "wide", "adapter_model_id": "../adapters/wide"}],
    )
    engine = EngineCore.load(LoadSettings(base=str(zoo.base), mode="lora", ordering=str(ordering)))
    assert engine.active == {}
    assert engine.adapters[0].name == "wide"
