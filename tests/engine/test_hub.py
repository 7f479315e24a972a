"""Models by hub id, against a hub on this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from support.hub_server import FakeHub, serve

from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.errors import Cancelled, HubError
from loradesk_engine.formats import hub as hub_module
from loradesk_engine.formats.hub import resolve_source
from loradesk_engine.generation.engine import EngineCore


@pytest.fixture
def hub(zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:  # type: ignore[no-untyped-def]
    repositories = {"people/tiny": zoo.base, "people/wide": zoo.adapters["wide"], "people/gated": zoo.base}
    with serve(FakeHub(repositories, gated={"people/gated": "secret"})) as server:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield server


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


def test_only_what_a_load_needs_is_fetched() -> None:
    wanted = [
        name
        for name in ("a.safetensors", "x/adapter_config.json", "model.bin", "README.md", "run.py")
        if hub_module._wanted(name)
    ]
    assert wanted == ["a.safetensors", "x/adapter_config.json"]
