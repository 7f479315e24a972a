"""Ids that name a folder or repository of several adapters, as mistral.rs reads them, and ids of one adapter's folder:
on this computer, from a hub and from the hub's cache. The published ordering files of X-LoRA and LoRA.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from support import tiny
from support.hub_server import FakeHub, point_at, serve
from transformers import AutoModelForCausalLM, GemmaConfig, MistralConfig

from loradesk_engine.adapters.load import find_adapters
from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.errors import AdapterError, HubError, OrderingError, RequestError
from loradesk_engine.formats.adapter_folder import MAX_ENTRIES, list_files, read_named
from loradesk_engine.formats.adapter_place import AdapterName, find_place
from loradesk_engine.formats.hub import resolve_source, silent
from loradesk_engine.formats.hub_headers import HubHeaders
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.generation.estimate import estimate
from loradesk_engine.ordering.ready import READY, ready_file
from loradesk_engine.ordering.schema import OrderingFile
from loradesk_engine.serving.api import Engine

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RANKS = {"adapter_1": 4, "adapter_10": 2, "adapter_2": 8}  # of the zoo: which adapter was taken


@pytest.fixture(params=["folders", "below adapters", "flat", "deep"])
def repository(request: pytest.FixtureRequest, zoo, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """Three adapters in one folder, laid out in the ways that repositories have."""
    root = tmp_path / "repository"
    root.mkdir()
    for name in RANKS:
        source = zoo.adapters[name]
        if request.param == "flat":
            shutil.copy(source / CONFIG, root / f"{name}_config.json")
            shutil.copy(source / WEIGHTS, root / f"{name}.safetensors")
        else:
            inside = {"folders": "", "below adapters": "adapters", "deep": "all/experts"}[request.param]
            shutil.copytree(source, root / inside / name)
    return root


def names_of(settings: LoadSettings) -> dict[str, int]:
    """Adapter -> rank of a load's adapters."""
    found = find_adapters(settings, silent).adapters
    return {name: max(module.rank for module in adapter.modules.values()) for name, adapter in found.items()}


def lora(zoo: Any, file: Path, **changes: Any) -> LoadSettings:
    return LoadSettings(base=str(zoo.base), mode="lora", ordering=str(file), **changes)


def preloading(file: Path, source: str, order: list[str] | None = None) -> Path:
    """An ordering file whose preload adapters all have one id."""
    entries = [{"name": name, "adapter_model_id": source} for name in RANKS]
    return tiny.write_ordering(file, base_model_id="people/tiny", order=order or [], preload_adapters=entries)


def test_one_id_serves_several_preload_adapters(zoo, repository: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for source in (str(repository), "repository"):  # a relative one is looked for beside the file
        file = preloading(tmp_path / "o.json", source, ["adapter_10"])
        assert names_of(lora(zoo, file)) == RANKS
    engine = EngineCore.load(lora(zoo, file, dtype="float32"))
    assert [(adapter.name, adapter.rank) for adapter in engine.adapters] == list(RANKS.items())


def test_one_repository_serves_all_names_of_order(zoo, repository: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """What is preloaded or given by itself comes from there."""
    file = tiny.write_ordering(
        tmp_path / "o.json",
        base_model_id=str(zoo.base),
        order=["adapter_1", "adapter_2", "wide"],
        preload_adapters=[{"name": "adapter_10", "adapter_model_id": str(repository)}],
    )
    given = (AdapterSource("wide", str(zoo.adapters["wide"])),)
    found = names_of(lora(zoo, file, adapters=given, repository=str(repository)))
    assert found == {**RANKS, "wide": 6}
    with pytest.raises(AdapterError, match="No adapter named 'wide'"):
        names_of(lora(zoo, file, repository=str(repository)))


def test_python_takes_a_repository_and_the_files_base(zoo, repository: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tiny.write_ordering(tmp_path / "o.json", base_model_id=str(zoo.base), order=list(RANKS))
    with Engine.load(ordering=str(file), adapters=str(repository), dtype="float32", device="cpu") as engine:
        assert {adapter.name: adapter.rank for adapter in engine.adapters} == RANKS
        assert engine.active_adapters == dict.fromkeys(RANKS, 1.0)


def test_from_a_hub_only_the_adapters_files_are_fetched(  # type: ignore[no-untyped-def]
    zoo, repository: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["people/experts"] = repository
    one = tiny.write_ordering(
        tmp_path / "one.json",
        base_model_id="people/tiny",
        preload_adapters=[{"name": "adapter_1", "adapter_model_id": "people/experts"}],
    )
    assert names_of(lora(zoo, one)) == {"adapter_1": 4}
    fetched = [path.partition("/resolve/main/")[2] for method, path in hub.asked if method == "GET"]
    assert sum(name.endswith(".safetensors") for name in fetched) == 1
    # offline: what is cached is found by its name, and what is not is said in a sentence
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert names_of(lora(zoo, one)) == {"adapter_1": 4}
    with pytest.raises(HubError, match="not in the cache"):
        names_of(lora(zoo, preloading(tmp_path / "all.json", "people/experts")))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert names_of(lora(zoo, tmp_path / "all.json")) == RANKS
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert names_of(lora(zoo, tmp_path / "all.json")) == RANKS


def test_a_cached_repository_of_folders_is_in_the_cache(  # type: ignore[no-untyped-def]
    repository: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["people/experts"] = repository
    folder = resolve_source("people/experts")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for _ in range(2):
        assert resolve_source("people/experts") == folder
        assert resolve_source("people/experts", fetch=False) == folder
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="not in the cache"):
        resolve_source("people/wide")


def test_the_estimate_reads_a_repository_of_folders_by_its_headers(  # type: ignore[no-untyped-def]
    zoo, repository: Path, hub: FakeHub, tmp_path: Path
) -> None:
    hub.repositories["people/experts"] = repository
    local = estimate(lora(zoo, preloading(tmp_path / "a.json", str(repository))))
    away = estimate(lora(zoo, preloading(tmp_path / "b.json", "people/experts")), hub=HubHeaders())
    assert local.parts == away.parts
    assert [part.name for part in away.parts if part.name.startswith("Adapter")] == [
        f"Adapter {name}" for name in RANKS
    ]
    assert not list(Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("*.safetensors"))


def test_an_adapter_is_added_from_a_repository(zoo, repository: Path) -> None:  # type: ignore[no-untyped-def]
    """As HTTP's `/v1/load_lora_adapter` and the desk do it."""
    with Engine.load(str(zoo.base), adapters={"adapter_10": str(repository)}, dtype="float32") as engine:
        engine.add_adapter("adapter_1", str(repository))
        assert {adapter.name: adapter.rank for adapter in engine.adapters} == {"adapter_10": 2, "adapter_1": 4}


def test_a_name_that_is_not_there_is_refused_with_those_that_are(zoo, repository: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(AdapterError, match="No adapter named 'adapter_3'") as caught:
        EngineCore.load(
            LoadSettings(str(zoo.base), mode="lora", adapters=(AdapterSource("adapter_3", str(repository)),))
        )
    assert caught.value.file == str(repository)
    if not (repository / "adapter_1.safetensors").exists():
        assert "adapter_1, adapter_2, adapter_10" in (caught.value.remedy or "")


def test_a_longer_number_is_never_taken_for_a_shorter_one(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """mistral.rs would take `adapter_10` for `adapter_1` here."""
    shutil.copytree(zoo.adapters["adapter_10"], tmp_path / "adapter_10")
    with pytest.raises(AdapterError, match="No adapter named 'adapter_1'"):
        read_named(tmp_path, AdapterName("adapter_1"))


def test_both_readings_of_an_id(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """One adapter's folder, whatever it is called; an adapter inside with exactly the name comes first, as PEFT saves
    several adapters: one at the top, the others in folders of their names.
    """
    folder = tmp_path / "run-7"
    shutil.copytree(zoo.adapters["adapter_1"], folder)
    shutil.copytree(zoo.adapters["adapter_2"], folder / "checkpoint-500")
    shutil.copytree(zoo.adapters["adapter_10"], folder / "other")
    ranks = {}
    for name in ("poet", "adapter", "other"):
        adapter = read_named(folder, AdapterName(name))
        ranks[name] = next(iter(adapter.modules.values())).rank
    assert ranks == {"poet": 4, "adapter": 4, "other": 2}


PLACES: list[tuple[str, list[str], str | None]] = [
    ("poet", ["poet/C", "poet/W", "poet-v2/C", "poet-v2/W"], "poet/W"),
    ("poet", ["my-poet-v2/C", "my-poet-v2/W", "cook/C", "cook/W"], "my-poet-v2/W"),
    ("poet", ["thepoets/C", "thepoets/W", "cook/C", "cook/W"], "thepoets/W"),
    ("poet", ["poet/C", "poet/W", "poet/checkpoint-9/C", "poet/checkpoint-9/W"], "poet/W"),
    ("a/b", ["a/b/C", "a/b/W", "b/C", "b/W"], "a/b/W"),
    ("1", ["10/C", "10/W", "2/C", "2/W"], None),
    ("../x", ["x/C", "x/W"], None),
    ("poet", ["C", "W"], "W"),
]


@pytest.mark.parametrize(("name", "files", "weights"), PLACES)
def test_which_files_are_an_adapter(name: str, files: list[str], weights: str | None) -> None:
    named = {"C": CONFIG, "W": WEIGHTS}
    paths = ["/".join([*file.split("/")[:-1], named[file.split("/")[-1]]]) for file in files]
    place = find_place(paths, AdapterName(name))
    wanted = None if weights is None else "/".join([*weights.split("/")[:-1], WEIGHTS])
    assert (place.weights if place is not None else None) == wanted


def test_several_that_could_be_meant_are_named() -> None:
    files = [f"{folder}/{file}" for folder in ("old-poet", "poet-new") for file in (CONFIG, WEIGHTS)]
    with pytest.raises(AdapterError, match=r"2 places could be the adapter 'poet': old-poet/.*, poet-new/"):
        find_place(files, AdapterName("poet"))


def test_a_huge_folder_is_not_walked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loradesk_engine.formats.adapter_folder.MAX_ENTRIES", 20)
    for number in range(30):
        (tmp_path / str(number)).mkdir()
    with pytest.raises(AdapterError, match="More than 20 files"):
        list_files(tmp_path)
    assert MAX_ENTRIES > 1_000


# --- ordering alone ---------------------------------------------------------------------------------------------------


def test_an_ordering_file_alone_names_the_base(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A relative path is looked for beside the file."""
    shutil.copytree(zoo.base, tmp_path / "base")
    entry = {"name": "wide", "adapter_model_id": str(zoo.adapters["wide"])}
    for base in ("base", str(zoo.base)):
        file = tiny.write_ordering(tmp_path / "o.json", base_model_id=base, order=["wide"], preload_adapters=[entry])
        engine = EngineCore.load(LoadSettings(mode="lora", ordering=str(file)))
        assert engine.info.base in (str(tmp_path / "base"), str(zoo.base))
        assert estimate(LoadSettings(mode="lora", ordering=str(file))).needed > 0
    with pytest.raises(OrderingError, match="which base"):
        EngineCore.load(LoadSettings(mode="lora", ordering=str(tiny.write_ordering(tmp_path / "n.json", order=[]))))
    with pytest.raises(RequestError, match="No model was named"):
        EngineCore.load(LoadSettings())
    with pytest.raises(OrderingError, match="needs an ordering file"):
        EngineCore.load(LoadSettings(str(zoo.base), mode="lora", repository=str(tmp_path)))


# --- the published files ----------------------------------------------------------------------------------------------

PUBLISHED: dict[str, tuple[type, int, int]] = {
    "lamm-mit/x-lora": (MistralConfig, 9, 160),
    "lamm-mit/x-lora-gemma-7b": (GemmaConfig, 4, 196),
}


@pytest.fixture(scope="module", params=READY)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Hub id, a tiny base of the published one's depth, and a checkpoint of the published form: adapters in folders."""
    config, count, layers = PUBLISHED[request.param]
    root = tmp_path_factory.mktemp("published")
    ordering = OrderingFile.read(str(ready_file(request.param)))
    assert (len(ordering.order or ()), len(ordering.layers or ())) == (count, layers)
    targets = sorted({path.rpartition(".")[2] for path in ordering.layers or ()})
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    blocks = {"num_hidden_layers": 1 + max(int(path.split(".")[2]) for path in ordering.layers or ())}
    torch.manual_seed(2)
    values = {**tiny.SMALL, **sizes, **blocks, "head_dim": 8, "pad_token_id": 0}
    AutoModelForCausalLM.from_config(config(**values)).save_pretrained(root / "base")
    tiny.write_tokenizer(root / "base")
    tiny.make_lora(root / "base", root / "one", 1, r=1, target_modules=targets)
    checkpoint = root / "checkpoint"
    for name in ordering.order or ():
        shutil.copytree(root / "one", checkpoint / name)
    written = {"hidden_size": 16, "base_model_id": ordering.base_model_id, "adapters": list(ordering.order or ())}
    text = json.dumps({**written, "layerwise_scalings": True, "xlora_depth": 1, "enable_relu_and_dropout": False})
    (checkpoint / "xlora_config.json").write_text(text)
    tensors = {"last.weight": torch.randn(count * layers, 16), "last.bias": torch.randn(count * layers)}
    save_file(tensors, checkpoint / "xlora_classifier.safetensors")
    return request.param, root / "base", checkpoint


@pytest.fixture
def published_hub(published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:  # type: ignore[no-untyped-def]
    hub_id, _, checkpoint = published
    with serve(FakeHub({hub_id: checkpoint})) as server:
        point_at(monkeypatch, server.url, tmp_path / "cache")
        yield server


def test_the_published_xlora_files_load(published, published_hub: FakeHub) -> None:  # type: ignore[no-untyped-def]
    hub_id, base, checkpoint = published
    _, count, layers = PUBLISHED[hub_id]
    for source in (str(checkpoint), hub_id):
        settings = LoadSettings(base=str(base), mode="xlora", xlora=source, ordering=str(ready_file(hub_id)))
        engine = EngineCore.load(settings)
        assert len(engine.adapters) == count
        assert len(engine.layer_paths) == layers
    assert any("/resolve/" in path for _, path in published_hub.asked)


def test_the_published_lora_file_loads(published, published_hub: FakeHub, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """`order` names one adapter and `preload_adapters` another of the same repository; there are no layers."""
    hub_id, base, checkpoint = published
    for source in (str(checkpoint), hub_id):
        preload = [{"name": "adapter_2", "adapter_model_id": source}]
        file = tiny.write_ordering(
            tmp_path / "lora.json", base_model_id="org/base", order=["adapter_1"], preload_adapters=preload
        )
        settings = LoadSettings(base=str(base), mode="lora", ordering=str(file), repository=source)
        engine = EngineCore.load(settings)
        assert sorted(adapter.name for adapter in engine.adapters) == ["adapter_1", "adapter_2"]
        assert dict(engine.active) == {"adapter_1": 1.0}
    fetched = {
        path.partition("/resolve/main/")[2].split("/")[0] for _, path in published_hub.asked if "resolve" in path
    }
    assert fetched == {"adapter_1", "adapter_2"}
