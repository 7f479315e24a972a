"""Models by hub id, against a hub on this machine."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import huggingface_hub.constants
import pytest
from support import hub_server
from support.hub_server import FakeHub

from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.errors import Cancelled, HubError
from loradesk_engine.formats.hub import HubSource, resolve_source
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.base import read_base
from loradesk_resources import resource_path


def test_a_model_and_an_adapter_are_downloaded_once_with_progress(hub: FakeHub) -> None:
    told: list[tuple[str, float | None]] = []
    settings = LoadSettings(base="people/tiny", mode="lora", adapters=(AdapterSource("wide", "people/wide"),))
    engine = EngineCore.load(settings, lambda stage, fraction: told.append((stage, fraction)))
    assert engine.adapters[0].applied == "applied to 5 of 15 modules"
    downloads = [fraction for stage, fraction in told if stage.startswith("Downloading") and fraction is not None]
    assert downloads
    assert max(downloads) == 1.0
    files = [path for method, path in hub.asked if method == "GET" and "/resolve/" in path]
    assert any(path.endswith("model.safetensors") for path in files)
    hub.asked.clear()
    EngineCore.load(settings)
    assert not [path for method, path in hub.asked if method == "GET" and "/resolve/" in path]


def test_without_a_network_the_cache_serves(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve_source("people/tiny")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve_source("people/tiny") == folder
    with pytest.raises(HubError, match="not in the cache"):
        resolve_source("people/wide")


def test_a_download_can_be_cancelled_in_the_middle_of_a_file(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.stall["model.safetensors"] = threading.Event()
    fractions: list[float | None] = []

    def progress(stage: str, fraction: float | None) -> None:
        if stage == "Downloading model.safetensors":
            fractions.append(fraction)
            if len(fractions) == 5:  # the server holds the second half of the file back
                raise Cancelled("The load was cancelled.")

    with pytest.raises(Cancelled):
        EngineCore.load(LoadSettings(base="people/tiny"), progress)
    assert len(fractions) == 5
    hub.stall.pop("model.safetensors").set()
    EngineCore.load(LoadSettings(base="people/tiny"))  # what was half done does no harm


@pytest.mark.parametrize(
    ("repo", "revision", "words"),
    [
        ("people/nobody", None, "No such repository"),
        ("people/tiny", "v9", "no such revision"),
        ("people/gated", None, "gated"),
    ],
)
def test_refusals_name_the_repository_and_the_remedy(hub: FakeHub, repo: str, revision: str | None, words: str) -> None:
    with pytest.raises(HubError, match=words) as caught:
        resolve_source(repo, revision=revision)
    assert caught.value.file == repo


def test_a_token_opens_a_gated_repository(hub: FakeHub) -> None:
    assert (resolve_source("people/gated", token="secret") / "config.json").is_file()


def test_a_token_that_the_hub_does_not_know_is_named(hub: FakeHub) -> None:
    for repo in ("people/tiny", "people/gated"):
        with pytest.raises(HubError, match="refuses the access token") as caught:
            resolve_source(repo, token="stolen")
        assert (caught.value.file, caught.value.field) == (repo, "token")


def test_only_what_a_load_needs_is_fetched() -> None:
    names = [
        "a.safetensors", "b.safetensors", "config.json", "x/adapter_config.json", "x/a.safetensors", "model.bin",
        "README.md", "run.py", "q4.gguf", "tokenizer.model", "chat_template.jinja",
    ]  # fmt: skip

    def wanted(source: str) -> list[str]:
        parsed = HubSource.parse(source)
        assert parsed is not None
        return [name for name in names if parsed.wants(name)]

    assert wanted("people/x") == [
        "a.safetensors", "b.safetensors", "config.json", "x/adapter_config.json", "x/a.safetensors",
        "tokenizer.model", "chat_template.jinja",
    ]  # fmt: skip
    assert wanted("people/x/x") == wanted("people/x/x/") == ["x/adapter_config.json", "x/a.safetensors"]
    assert wanted("people/x/q4.gguf") == ["q4.gguf"]
    assert wanted("people/x/a.safetensors") == ["a.safetensors", "config.json"]


@pytest.mark.parametrize("source", ["../x", "people/../x", "people/x/../../y", "/people/x", "people//x", "x/", "a b/c"])
def test_what_cannot_be_a_hub_id_never_reaches_the_hub(hub: FakeHub, source: str, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="Neither"):
        resolve_source(source, near=tmp_path / "none")
    assert hub.asked == []


# --- what arrives -----------------------------------------------------------------------------------------------------


def test_a_file_that_differs_from_the_hubs_hash_is_removed_and_refused(hub: FakeHub) -> None:
    hub.damaged.add("model.safetensors")
    with pytest.raises(HubError, match="SHA-256") as caught:
        resolve_source("people/tiny")
    assert (caught.value.file, caught.value.field) == ("people/tiny", "model.safetensors")
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    assert not list(cache.rglob("model.safetensors"))
    own = (hub.repositories["people/tiny"] / "model.safetensors").read_bytes()
    assert not [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size == len(own)]  # nor its blob
    hub.damaged.clear()
    folder = resolve_source("people/tiny")
    assert (folder / "model.safetensors").read_bytes() == own


def test_a_connection_that_breaks_goes_on_where_it_ended(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one load; huggingface_hub 2 keeps nothing of a file whose download was given up."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.cut.add("model.safetensors")
    folder = resolve_source("people/tiny")
    own = (hub.repositories["people/tiny"] / "model.safetensors").read_bytes()
    assert hub.ranges["model.safetensors"] == f"bytes={len(own) // 2 // 1024 * 1024}-"
    assert (folder / "model.safetensors").read_bytes() == own


def test_files_that_arrived_before_a_cancel_are_not_fetched_again(hub: FakeHub) -> None:
    def progress(stage: str, fraction: float | None) -> None:
        if stage == "Downloading model.safetensors":
            raise Cancelled("The load was cancelled.")

    with pytest.raises(Cancelled):
        resolve_source("people/tiny", progress=progress)
    hub.asked.clear()
    resolve_source("people/tiny")
    fetched = [path.rpartition("/")[2] for method, path in hub.asked if method == "GET" and "/resolve/" in path]
    assert "model.safetensors" in fetched
    assert "config.json" not in fetched


# --- GGUF files, folders and flat repositories ------------------------------------------------------------------------


@pytest.fixture
def packed(hub: FakeHub, tmp_path: Path) -> FakeHub:
    """Repositories with one GGUF file and with several."""
    demo = resource_path("demo", "base-q8_0.gguf").read_bytes()
    for repo, names in (("people/one", ["demo-q8_0.gguf"]), ("people/many", ["sub/demo-q8_0.gguf", "demo-f16.gguf"])):
        for name in names:
            path = tmp_path / repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(demo)
        hub.repositories[repo] = tmp_path / repo
    return hub


def test_a_gguf_file_by_hub_id(packed: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resolve_source("people/many/sub/demo-q8_0.gguf")
    assert path.name == "demo-q8_0.gguf"
    assert read_base(path).config.architecture == "LlamaForCausalLM"
    downloads = {path for method, path in packed.asked if method == "GET" and "/resolve/" in path}
    assert [path.rpartition("/")[2] for path in downloads] == ["demo-q8_0.gguf"]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve_source("people/many/sub/demo-q8_0.gguf") == path
    assert resolve_source("people/many/sub/demo-q8_0.gguf", fetch=False) == path


def test_a_file_that_was_replaced_on_the_hub_is_checked_like_a_new_one(
    packed: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_source("people/one/demo-q8_0.gguf")
    weights = packed.repositories["people/one"] / "demo-q8_0.gguf"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(hub_server, "COMMIT", "b" * 40)
    packed.damaged.add("demo-q8_0.gguf")
    with pytest.raises(HubError, match="SHA-256"):
        resolve_source("people/one/demo-q8_0.gguf")


def test_the_only_gguf_file_of_a_repository_needs_no_name(packed: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resolve_source("people/one")
    assert path.name == "demo-q8_0.gguf"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve_source("people/one") == path


@pytest.mark.parametrize("source", ["people/many", "people/many/none.gguf"])
def test_the_gguf_files_of_a_repository_are_offered(packed: FakeHub, source: str) -> None:
    with pytest.raises(HubError) as caught:
        resolve_source(source)
    assert caught.value.file == "people/many"
    remedy = caught.value.remedy or ""
    assert "people/many/demo-f16.gguf" in remedy
    assert "people/many/sub/demo-q8_0.gguf" in remedy


def test_an_adapter_in_a_folder_of_a_repository(hub: FakeHub, zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name in ("adapter_1", "wide"):
        shutil.copytree(zoo.adapters[name], tmp_path / "both" / "adapters" / name)
    hub.repositories["people/both"] = tmp_path / "both"
    adapters = (AdapterSource("a", "people/both/adapters/wide"),)
    engine = EngineCore.load(LoadSettings(base="people/tiny", mode="lora", adapters=adapters))
    assert engine.adapters[0].applied == "applied to 5 of 15 modules"
    assert not [path for _, path in hub.asked if "adapter_1" in path]


@pytest.mark.parametrize("flat", [False, True], ids=["folders", "flat"])
def test_an_xlora_repository_as_mistral_rs_reads_it(hub: FakeHub, zoo, tmp_path: Path, flat: bool) -> None:  # type: ignore[no-untyped-def]
    """The adapters in sub-folders, or as flat files that carry their names."""
    repository = tmp_path / "experts"
    shutil.copytree(zoo.xlora, repository)
    if flat:
        for name in ("adapter_1", "adapter_10", "adapter_2"):
            shutil.move(repository / name / "adapter_model.safetensors", repository / f"{name}.safetensors")
            shutil.move(repository / name / "adapter_config.json", repository / f"{name}_config.json")
            (repository / name).rmdir()
    hub.repositories["people/experts"] = repository
    settings = LoadSettings(
        base="people/tiny", mode="xlora", xlora="people/experts", ordering=str(zoo.xlora_ordering), dtype="float32"
    )
    engine = EngineCore.load(settings)
    assert [(adapter.name, adapter.rank) for adapter in engine.adapters] == [
        ("adapter_1", 4),
        ("adapter_10", 2),
        ("adapter_2", 8),
    ]


def test_a_checkpoint_whose_map_names_folders_of_a_repository(hub: FakeHub, zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """As published: the map says `owner/name/folder/1/` of the repository itself; from the hub and from a copy."""
    repository = tmp_path / "experts"
    (repository / "parts").mkdir(parents=True)
    for name in ("xlora_config.json", "xlora_classifier.safetensors"):
        shutil.copy(zoo.xlora / name, repository)
    listed = {}
    for number, name in enumerate(("adapter_1", "adapter_10", "adapter_2")):
        shutil.copytree(zoo.xlora / name, repository / "parts" / str(number))
        listed[name] = f"people/experts/parts/{number}/"
    config = json.loads((repository / "xlora_config.json").read_text(encoding="utf-8"))
    (repository / "xlora_config.json").write_text(json.dumps({**config, "adapters": listed}), encoding="utf-8")
    hub.repositories["people/experts"] = repository
    alone = tmp_path / "alone"  # the classifier by itself: its adapters come from the hub
    alone.mkdir()
    for name in ("xlora_config.json", "xlora_classifier.safetensors"):
        shutil.copy(repository / name, alone)
    for source in ("people/experts", str(repository), str(alone)):
        settings = LoadSettings(base=str(zoo.base), mode="xlora", xlora=source, dtype="float32")
        assert [adapter.rank for adapter in EngineCore.load(settings).adapters] == [4, 2, 8]
