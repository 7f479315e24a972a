"""Memory estimates of what is on the hub and not downloaded: equal to those of the files, from headers alone."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import HfApi
from support import gguf_files, tiny
from support.clock import PATIENCE
from support.hub_server import FakeHub

from loradesk_engine.cli import main
from loradesk_engine.commands import AdapterSource, Estimate, LoadSettings
from loradesk_engine.errors import FileFormatError, HubError, LoradeskError
from loradesk_engine.events import EstimateFailed, MemoryEstimate, MemoryEstimated
from loradesk_engine.formats import hub_headers, hub_outline, hub_ranges, sparse
from loradesk_engine.formats.gguf import read_gguf, read_gguf_beginning
from loradesk_engine.formats.hub import HubSource, resolve_source
from loradesk_engine.formats.hub_headers import HubHeaders
from loradesk_engine.formats.hub_outline import fetch_outline
from loradesk_engine.formats.safetensors import read_header
from loradesk_engine.generation.estimate import estimate
from loradesk_engine.serving.worker import EngineWorker

SMALL_SHARE = 0.02  # of the weights' bytes


@dataclass(frozen=True)
class Large:
    """A model of 20 MiB as one file, in shards, and as GGUF."""

    single: Path
    sharded: Path
    gguf: Path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Large:
    root = tmp_path_factory.mktemp("large")
    model = tiny.make_llama(root / "single", vocab_size=8192, hidden_size=256, intermediate_size=512)
    model.save_pretrained(root / "sharded", max_shard_size="9MB")
    tiny.write_tokenizer(root / "sharded")
    (root / "gguf").mkdir()
    gguf_files.write(model, root / "gguf" / "m-f16.gguf", "llama", "F16", rope_freqs=np.linspace(1, 8, 32))
    assert len(list((root / "sharded").glob("*.safetensors"))) > 1
    return Large(root / "single", root / "sharded", root / "gguf")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go; they must be gone, and the hub's cache untouched, after every test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _nothing_stays(temporary: Path, hub: FakeHub) -> object:
    yield
    assert not list(temporary.iterdir())


def from_hub(settings: LoadSettings) -> MemoryEstimate:
    """The estimate by hub id; nothing may have come into the hub's cache."""
    found = estimate(settings, hub=HubHeaders())
    assert not Path(huggingface_hub.constants.HF_HUB_CACHE).exists()
    return found


def assert_equal(remote: LoadSettings, local: LoadSettings) -> None:
    """The same in all that does not change by the second."""
    assert replace(from_hub(remote), free=0) == replace(estimate(local), free=0)


def served_share(hub: FakeHub, folder: Path) -> float:
    """Bytes of weights that the hub sent, as a part of those it has."""
    weights = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".gguf")]
    return sum(hub.served[path.name] for path in weights) / sum(path.stat().st_size for path in weights)


# --- what is estimated ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["single", "sharded"])
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_safetensors(hub: FakeHub, large: Large, form: str, quantize: str) -> None:
    folder = getattr(large, form)
    hub.repositories["people/large"] = folder
    remote = LoadSettings(base="people/large", dtype="bfloat16", context=300, quantize=quantize)  # type: ignore[arg-type]
    assert_equal(remote, replace(remote, base=str(folder)))
    assert served_share(hub, folder) < SMALL_SHARE
    assert "tokenizer.json" not in hub.served


def test_gguf_with_numbers_of_the_configuration_among_its_tensors(hub: FakeHub, large: Large) -> None:
    hub.repositories["people/packed"] = large.gguf
    local = LoadSettings(base=str(large.gguf / "m-f16.gguf"))
    for base in ("people/packed", "people/packed/m-f16.gguf"):
        hub.served.clear()
        assert_equal(LoadSettings(base=base), local)
        assert served_share(hub, large.gguf) < 0.06  # the first 512 KiB at once


def test_a_gguf_header_that_is_longer_than_the_first_request(
    hub: FakeHub, large: Large, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_outline, "GGUF_FIRST", 1000)
    hub.repositories["people/packed"] = large.gguf
    assert_equal(LoadSettings(base="people/packed"), LoadSettings(base=str(large.gguf / "m-f16.gguf")))
    assert served_share(hub, large.gguf) < SMALL_SHARE


def test_a_safetensors_header_that_is_longer_than_the_first_request(
    hub: FakeHub, large: Large, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_outline, "SAFETENSORS_FIRST", 8)
    hub.repositories["people/large"] = large.sharded
    assert_equal(LoadSettings(base="people/large"), LoadSettings(base=str(large.sharded)))


def test_lora(hub: FakeHub, zoo) -> None:  # type: ignore[no-untyped-def]
    def settings(base: str, wide: str) -> LoadSettings:
        return LoadSettings(base=base, mode="lora", adapters=(AdapterSource("wide", wide),))

    assert_equal(settings("people/tiny", "people/wide"), settings(str(zoo.base), str(zoo.adapters["wide"])))
    assert_equal(settings(str(zoo.base), "people/wide"), settings(str(zoo.base), str(zoo.adapters["wide"])))


def test_an_adapter_in_a_folder_leaves_what_lies_beside_it_alone(hub: FakeHub, zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name in ("adapter_1", "wide"):
        shutil.copytree(zoo.adapters[name], tmp_path / "both" / "adapters" / name)
    shutil.copytree(zoo.adapters["wide"], tmp_path / "both" / "adapters" / "wide" / "checkpoint-500")
    hub.repositories["people/both"] = tmp_path / "both"
    settings = LoadSettings(
        base=str(zoo.base), mode="lora", adapters=(AdapterSource("a", "people/both/adapters/wide"),)
    )
    assert_equal(settings, replace(settings, adapters=(AdapterSource("a", str(zoo.adapters["wide"])),)))
    assert not [path for _, path in hub.asked if "adapter_1" in path or "checkpoint-500" in path]


@pytest.mark.parametrize("flat", [False, True], ids=["folders", "flat"])
def test_xlora(hub: FakeHub, zoo, tmp_path: Path, flat: bool) -> None:  # type: ignore[no-untyped-def]
    repository = tmp_path / "experts"
    shutil.copytree(zoo.xlora, repository)
    if flat:
        for name in ("adapter_1", "adapter_10", "adapter_2"):
            shutil.move(repository / name / "adapter_model.safetensors", repository / f"{name}.safetensors")
            shutil.move(repository / name / "adapter_config.json", repository / f"{name}_config.json")
            (repository / name).rmdir()
    hub.repositories["people/experts"] = repository
    local = zoo.xlora_settings()
    assert_equal(replace(local, base="people/tiny", xlora="people/experts"), local)


def test_xlora_as_peft_saves_it(hub: FakeHub, zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    repository = tmp_path / "experts"
    shutil.copytree(zoo.xlora_peft, repository)
    config = json.loads((repository / "adapter_config.json").read_text(encoding="utf-8"))
    for number, name in enumerate(("adapter_1", "adapter_10", "adapter_2")):
        shutil.copytree(zoo.adapters[name], repository / "parts" / name)
        config["adapters"][str(number)] = f"people/experts/parts/{name}"
    (repository / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    hub.repositories["people/experts"] = repository
    settings = LoadSettings(base="people/tiny", mode="xlora", xlora="people/experts")
    assert_equal(settings, replace(settings, base=str(zoo.base), xlora=str(zoo.xlora_peft)))


def test_a_gated_repository(hub: FakeHub, zoo) -> None:  # type: ignore[no-untyped-def]
    assert_equal(LoadSettings(base="people/gated", token="secret"), LoadSettings(base=str(zoo.base)))
    with pytest.raises(HubError, match="gated"):
        from_hub(LoadSettings(base="people/gated"))
    with pytest.raises(HubError, match="refuses the access token"):
        from_hub(LoadSettings(base="people/gated", token="stolen"))


def test_a_later_load_finds_a_clean_cache(hub: FakeHub, zoo) -> None:  # type: ignore[no-untyped-def]
    from_hub(LoadSettings(base="people/tiny"))
    folder = resolve_source("people/tiny")
    for path in zoo.base.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_what_is_downloaded_is_not_asked_for(hub: FakeHub, zoo) -> None:  # type: ignore[no-untyped-def]
    resolve_source("people/tiny")
    hub.asked.clear()
    found = estimate(LoadSettings(base="people/tiny"), hub=HubHeaders())
    assert found.parts == estimate(LoadSettings(base=str(zoo.base))).parts
    assert hub.asked == []


def test_a_download_that_was_given_up_is_not_taken_for_the_model(hub: FakeHub, large: Large) -> None:
    hub.repositories["people/large"] = large.sharded
    first = sorted(large.sharded.glob("*.safetensors"))[0].name
    for name in ("config.json", first):
        huggingface_hub.hf_hub_download("people/large", name)
    found = estimate(LoadSettings(base="people/large"), hub=HubHeaders())
    assert found.parts == estimate(LoadSettings(base=str(large.sharded))).parts


# --- what others say --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["single", "sharded"])
def test_headers_are_those_that_huggingface_hub_reads(hub: FakeHub, large: Large, form: str, tmp_path: Path) -> None:
    hub.repositories["people/large"] = getattr(large, form)
    outline = fetch_outline(HubSource("people/large"), revision=None, token=None)
    folder = outline.write(tmp_path / "outline")
    theirs = HfApi(endpoint=hub.url).get_safetensors_metadata("people/large").files_metadata
    assert theirs.keys() == {path.name for path in folder.glob("*.safetensors")}
    for file, metadata in theirs.items():
        ours = read_header(folder / file)
        assert {name: (list(it.shape), it.dtype, it.nbytes) for name, it in ours.items()} == {
            name: (it.shape, it.dtype, it.data_offsets[1] - it.data_offsets[0]) for name, it in metadata.tensors.items()
        }


def test_files_of_headers_have_the_models_size_but_take_no_room(hub: FakeHub, large: Large, tmp_path: Path) -> None:
    hub.repositories["people/large"] = large.single
    folder = fetch_outline(HubSource("people/large"), revision=None, token=None).write(tmp_path / "outline")
    weights = (folder / "model.safetensors").stat()
    assert weights.st_size == (large.single / "model.safetensors").stat().st_size
    if hasattr(weights, "st_blocks"):
        assert weights.st_blocks * 512 < weights.st_size * SMALL_SHARE


def test_a_file_system_without_holes_is_left_alone(hub: FakeHub, large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["people/large"] = large.single
    monkeypatch.setattr(sparse, "_room_taken", lambda file: sparse.PROBE)
    with pytest.raises(HubError, match="no sparse files"):
        from_hub(LoadSettings(base="people/large"))


# --- how often the hub is asked ---------------------------------------------------------------------------------------


def test_the_hub_is_asked_once(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(hub_headers, "time", clock)
    headers = HubHeaders()
    estimate(LoadSettings(base="people/tiny"), hub=headers)
    count = len(hub.asked)
    for context in (100, 200, 300):
        estimate(LoadSettings(base="people/tiny", context=context), hub=headers)
    assert len(hub.asked) == count
    estimate(LoadSettings(base="people/tiny", token="secret"), hub=headers)
    assert len(hub.asked) > count
    for _ in range(3):
        with pytest.raises(HubError, match="No such repository") as caught:
            estimate(LoadSettings(base="people/nobody"), hub=headers)
    assert caught.value.file == "people/nobody"
    assert sum("people/nobody" in path for _, path in hub.asked) == 1
    clock.now += 60
    with pytest.raises(HubError):
        estimate(LoadSettings(base="people/nobody"), hub=headers)
    assert sum("people/nobody" in path for _, path in hub.asked) == 2


def test_only_so_much_is_remembered(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_headers, "MAX_KEPT", 1)
    headers = HubHeaders()
    settings = LoadSettings(base="people/tiny", mode="lora", adapters=(AdapterSource("wide", "people/wide"),))
    for _ in range(2):
        estimate(settings, hub=headers)
    assert len(headers._kept) == 1
    assert sum(path.startswith("/api/models/people/tiny") for _, path in hub.asked) == 2


# --- no network, and hubs that break the rules ------------------------------------------------------------------------


def test_offline_it_has_not_been_downloaded(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="not been downloaded yet"):
        from_hub(LoadSettings(base="people/tiny"))
    assert hub.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="not been downloaded yet, and the hub cannot be reached") as caught:
        from_hub(LoadSettings(base="people/tiny"))
    assert caught.value.file == "people/tiny"


@pytest.mark.parametrize("ask", [False, True])
def test_the_hub_is_left_alone_unless_it_may_be_asked(hub: FakeHub, ask: bool) -> None:
    worker = EngineWorker()
    events = worker.subscribe()
    worker.start()
    try:
        worker.send(Estimate(LoadSettings(base="people/tiny"), ask_hub=ask))
        while not isinstance(event := events.get(timeout=PATIENCE), MemoryEstimated | EstimateFailed):
            pass
        assert isinstance(event, MemoryEstimated) == ask
        assert bool(hub.asked) == ask
    finally:
        assert worker.close()


def test_a_server_that_sends_whole_files_is_not_listened_to_for_long(
    hub: FakeHub, zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    hub.whole = True
    folder = tmp_path / "whole"
    shutil.copytree(zoo.base, folder)
    with (folder / "model.safetensors").open("ab") as file:  # so long that the buffers of a connection cannot hold it
        file.truncate(64 * 2**20)
    hub.repositories["people/whole"] = folder
    assert_equal(LoadSettings(base="people/whole"), LoadSettings(base=str(folder)))
    assert served_share(hub, folder) < 0.5
    monkeypatch.setattr(hub_outline, "SAFETENSORS_FIRST", 8)
    with pytest.raises(HubError, match="does not send parts") as caught:
        from_hub(LoadSettings(base="people/whole"))
    assert (caught.value.file, caught.value.field) == ("people/whole", "model.safetensors")


def damaged(hub: FakeHub, source: Path, folder: Path, change) -> LoradeskError:  # type: ignore[no-untyped-def]
    """The error about a repository whose weights were changed; the same as about the files."""
    shutil.copytree(source, folder)
    weights = next(path for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf"))
    weights.write_bytes(change(weights.read_bytes()))
    hub.repositories["people/damaged"] = folder
    local = str(weights if weights.suffix == ".gguf" else folder)
    with pytest.raises(LoradeskError) as expected:
        estimate(LoadSettings(base=local))
    with pytest.raises(LoradeskError) as caught:
        from_hub(LoadSettings(base="people/damaged"))
    assert caught.value.file == f"people/damaged/{weights.name}"
    told, wanted = caught.value, expected.value
    assert (type(told), told.problem, told.field) == (type(wanted), wanted.problem, wanted.field)
    return told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:500], "The header claims"),
        (lambda data: data[:4], "too short"),
        (lambda data: b"", "too short"),
        (lambda data: struct.pack("<Q", 2**60) + data[8:], "1,152,921,504,606,846,976"),
        (lambda data: data[:8] + b"x" + data[9:], "Not valid JSON"),
        (lambda data: data[:-1000], "it is truncated"),
    ],
)
def test_a_damaged_safetensors_header(hub: FakeHub, zoo, tmp_path: Path, change, words: str) -> None:  # type: ignore[no-untyped-def]
    found = damaged(hub, zoo.base, tmp_path / "damaged", change)
    assert isinstance(found, FileFormatError)
    assert words in str(found)
    assert hub.served["model.safetensors"] <= hub_outline.SAFETENSORS_FIRST


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:1000], "in the file"),
        (lambda data: data[:2], "too short"),
        (lambda data: b"<!DO" + data[4:], "web page"),
        (lambda data: data[:16] + struct.pack("<Q", 2**60) + data[24:], "our limit"),
        (lambda data: data[:-100_000], "The tensor ends at"),
    ],
)
def test_a_damaged_gguf_header(hub: FakeHub, large: Large, tmp_path: Path, change, words: str) -> None:  # type: ignore[no-untyped-def]
    found = damaged(hub, large.gguf, tmp_path / "damaged", change)
    assert words in str(found)
    assert hub.served["m-f16.gguf"] <= hub_outline.GGUF_FIRST


def test_a_gguf_array_that_claims_more_than_the_file_is_not_waited_for(large: Large) -> None:
    data = (large.gguf / "m-f16.gguf").read_bytes()
    whole = read_gguf(large.gguf / "m-f16.gguf")
    start = min(tensor.start for tensor in whole.tensors.values())
    for length in range(0, start - 40, 997):  # cut in every kind of place
        assert read_gguf_beginning("m", data[:length], len(data)) is None
    found = read_gguf_beginning("m", data[:start], len(data))
    assert found is not None
    assert found.tensors == whole.tensors
    place = data.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8
    hostile = data[:place] + struct.pack("<Q", 2**59) + data[place + 8 :]
    with pytest.raises(FileFormatError, match="tokens"):
        read_gguf_beginning("m", hostile[: place + 100], len(data))


@pytest.mark.parametrize(
    ("sibling", "words"),
    [
        ({"rfilename": "../../evil.json", "size": 10}, "no safetensors or JSON"),
        ({"rfilename": "/tmp/evil.json", "size": 10}, "no safetensors or JSON"),
        ({"rfilename": "..\\evil.json", "size": 10}, "no safetensors or JSON"),
        ({"rfilename": "config.json"}, "does not tell the file's size"),
        ({"rfilename": "config.json", "size": -1}, "does not tell the file's size"),
        ({"rfilename": "config.json", "size": 2**70}, "does not tell the file's size"),
        ({"rfilename": "config.json", "size": 2**20}, "sent"),
        ({"rfilename": 7, "size": 1}, "no safetensors or JSON"),
        ({"size": 1}, "makes no sense"),
    ],
)
def test_a_hub_that_lies_about_its_files(hub: FakeHub, temporary: Path, sibling: dict[str, object], words: str) -> None:
    hub.names["people/tiny"] = [sibling]
    with pytest.raises(HubError, match=words) as caught:
        from_hub(LoadSettings(base="people/tiny"))
    assert (caught.value.file or "").startswith("people/tiny")


def test_a_model_that_claims_to_be_too_large_for_any_disk(hub: FakeHub) -> None:
    names = [("config.json", None), ("model.safetensors", 2**59)]
    hub.names["people/tiny"] = [
        {"rfilename": name, "size": size or (hub.repositories["people/tiny"] / name).stat().st_size}
        for name, size in names
    ]
    with pytest.raises(HubError, match="cannot be laid down"):
        from_hub(LoadSettings(base="people/tiny"))


def test_too_many_bytes_or_too_much_time(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_ranges, "MAX_BYTES", 1000)
    with pytest.raises(HubError, match="more than 1,000 bytes"):
        from_hub(LoadSettings(base="people/tiny"))
    monkeypatch.undo()


def test_a_hub_that_is_too_slow(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_ranges, "ALL_SECONDS", -1.0)
    with pytest.raises(HubError, match="took more than"):
        from_hub(LoadSettings(base="people/tiny"))


def test_a_connection_that_breaks(hub: FakeHub) -> None:
    hub.cut.add("model.safetensors")
    with pytest.raises(HubError, match=r"cannot be reached|sent"):
        from_hub(LoadSettings(base="people/tiny"))
    assert from_hub(LoadSettings(base="people/tiny")).needed > 0


# --- where it is told -------------------------------------------------------------------------------------------------


def test_the_terminal_tells_before_the_download(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--base", "people/tiny", "--estimate"]) == 0
    assert "It fits on" in capsys.readouterr().out
    assert main(["chat", "--base", "people/nobody", "--estimate"]) != 0
    assert "No such repository" in capsys.readouterr().err
