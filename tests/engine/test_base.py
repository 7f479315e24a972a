"""What is loaded is what was chosen: one file among others, a part of a sharded model, an adapter by mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny

from loradesk_engine.commands import LoadSettings
from loradesk_engine.errors import CheckpointError, ConfigError
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.base import read_base

INDEX = "model.safetensors.index.json"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny.make_llama(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    tiny.make_llama(folder).save_pretrained(folder, max_shard_size="30KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def test_the_file_that_was_chosen_is_loaded(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor * 0 for name, tensor in weights.items()}, base / "zeros.safetensors")
    for name, zero in (("zeros.safetensors", True), ("model.safetensors", False)):
        source = read_base(base / name)
        assert source.files == [base / name]
        assert bool((source.weights()["lm_head.weight"] == 0).all()) == zero
    engine = EngineCore.load(LoadSettings(base=str(base / "zeros.safetensors"), dtype="float32"))
    assert engine.info.parameters == sum(tensor.numel() for tensor in weights.values())
    again = EngineCore.load(LoadSettings(base=str(base / "model.safetensors"), dtype="float32"), previous=engine)
    matrices = [next(one.decoder.linears[-1].weight_slices()) for one in (engine, again)]
    assert [bool((matrix == 0).all()) for matrix in matrices] == [True, False]


def test_a_missing_tensor_names_the_file_that_was_chosen(base: Path) -> None:
    save_file({"model.norm.weight": torch.ones(32)}, base / "part.safetensors")
    with pytest.raises(CheckpointError) as caught:
        EngineCore.load(LoadSettings(base=str(base / "part.safetensors")))
    assert caught.value.file == str(base / "part.safetensors")


def test_a_shard_stands_for_its_model(sharded: Path) -> None:
    shards = sorted(sharded.glob("model-*.safetensors"))
    for path in (sharded, shards[0], shards[-1]):
        source = read_base(path)
        assert source.files == shards
        assert len(source.weights()) == len(json.loads((sharded / INDEX).read_text())["weight_map"])


def test_a_shard_without_its_index_is_refused(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    with pytest.raises(CheckpointError) as caught:
        read_base(next(sharded.glob("model-*.safetensors")))
    assert INDEX in (caught.value.remedy or "")


def test_an_adapter_chosen_for_a_model_is_refused(base: Path, tmp_path: Path) -> None:
    tiny.make_lora(base, tmp_path / "lora", 1)
    beside = Path(shutil.copy(tmp_path / "lora" / "adapter_model.safetensors", base / "extra.safetensors"))
    for path in (tmp_path / "lora" / "adapter_model.safetensors", beside):
        with pytest.raises(CheckpointError, match="adapter") as caught:
            read_base(path)
        assert caught.value.file == str(path)


def test_weights_without_a_config_are_refused(base: Path, tmp_path: Path) -> None:
    lonely = Path(shutil.copy(base / "model.safetensors", tmp_path / "lonely.safetensors"))
    with pytest.raises(ConfigError) as caught:
        read_base(lonely)
    assert caught.value.file == str(lonely)


@pytest.mark.parametrize("change", ["a tensor too many", "a tensor too few", "in another file", "nothing"])
def test_an_index_that_is_not_of_its_shards_is_refused(sharded: Path, change: str) -> None:
    index = json.loads((sharded / INDEX).read_text(encoding="utf-8"))
    places = index["weight_map"]
    files = list(places.values())
    first = next(file for file in files if files.count(file) > 1)
    last = next(file for file in files if file != first)
    field = next(name for name, file in places.items() if file == first)
    if change == "a tensor too many":
        field = "ghost.weight"
        places[field] = first
    elif change == "a tensor too few":
        del places[field]
    elif change == "in another file":
        places[field] = last
    else:
        field = "weight_map"
        places.clear()
    (sharded / INDEX).write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        read_base(sharded)
    assert (caught.value.file, caught.value.field) == (str(sharded / INDEX), field)
