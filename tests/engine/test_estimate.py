"""The memory estimate: equal to what a load then holds, and told where people look before they load."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch
import transformers
from support import gguf_files, tiny
from support.clock import PATIENCE

from loradesk_engine.cli import main
from loradesk_engine.commands import AdapterSource, Estimate, Load, LoadSettings
from loradesk_engine.demo import demo_settings
from loradesk_engine.errors import HubError, LoradeskError, RequestError
from loradesk_engine.events import EstimateFailed, MemoryEstimate, MemoryEstimated, ModelLoaded
from loradesk_engine.generation import loading as loading_module
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.generation.estimate import estimate
from loradesk_engine.model import estimate as weights_module
from loradesk_engine.serving.worker import EngineWorker

NEAR = 0.02


def part(found: MemoryEstimate, beginning: str) -> int:
    """The sum of the parts whose names begin so."""
    return sum(each.nbytes for each in found.parts if each.name.startswith(beginning))


def held_cache(engine: EngineCore, slots: int) -> int:
    """Bytes of the cache when `slots` sequences fill the context."""
    cache = engine.decoder.new_cache()
    cache.reserve(slots, engine.context)
    return cache.nbytes


def assert_equals_what_is_held(settings: LoadSettings) -> EngineCore:
    found = estimate(settings)
    engine = EngineCore.load(settings)
    info = engine.info
    assert (found.device, found.dtype, found.context) == (info.device, info.dtype, info.context)
    assert part(found, "Weights") == pytest.approx(info.weight_bytes, rel=NEAR)
    assert part(found, "KV cache") == pytest.approx(held_cache(engine, 2 if info.mode == "xlora" else 1), rel=NEAR)
    for adapter in info.adapters:
        (nbytes,) = [each.nbytes for each in found.parts if each.name == f"Adapter {adapter.name}"]
        assert nbytes == pytest.approx(adapter.nbytes, rel=NEAR)
    classifier = 0 if engine.classifier is None else engine.classifier.nbytes
    assert part(found, "Classifier") == pytest.approx(classifier, rel=NEAR)
    return engine


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("context", [None, 300])
def test_dense_weights(zoo, dtype: str, context: int | None) -> None:  # type: ignore[no-untyped-def]
    assert_equals_what_is_held(LoadSettings(base=str(zoo.base), dtype=dtype, context=context))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("Gemma2", {"head_dim": 16, "sliding_window": 8}),
        ("Phi", {}),
        ("Phi3", {}),
        ("Starcoder2", {}),
    ],
)
def test_every_shape_of_a_decoder(name: str, changes: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**tiny.SMALL, **changes, "pad_token_id": 0})
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(tmp_path)
    tiny.write_tokenizer(tmp_path)
    assert_equals_what_is_held(LoadSettings(base=str(tmp_path), dtype="bfloat16"))


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("packed", [False, True], ids=["dequantized once", "packed"])
def test_gguf(zoo, kind: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    for module in (loading_module, weights_module):
        monkeypatch.setattr(module, "keeps_packed", lambda parameters, device: packed)
    model = transformers.LlamaForCausalLM.from_pretrained(zoo.base, dtype=torch.float32)
    gguf_files.write(model, tmp_path / "m.gguf", "llama", kind)
    settings = LoadSettings(base=str(tmp_path / "m.gguf"))
    assert_equals_what_is_held(settings)
    shown = estimate(settings).parts[0].name
    assert shown == f"Weights, {kind if packed and kind != 'F16' else 'float32'}"


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_quantized_while_loading(zoo, kind: str) -> None:  # type: ignore[no-untyped-def]
    engine = assert_equals_what_is_held(LoadSettings(base=str(zoo.base), quantize=kind))  # type: ignore[arg-type]
    assert engine.info.weight_bytes < EngineCore.load(LoadSettings(base=str(zoo.base))).info.weight_bytes


def test_lora(zoo) -> None:  # type: ignore[no-untyped-def]
    adapters = tuple(AdapterSource(name, str(path)) for name, path in zoo.adapters.items())
    assert_equals_what_is_held(LoadSettings(base=str(zoo.base), mode="lora", adapters=adapters))


def test_xlora_has_a_second_cache_and_a_classifier(zoo) -> None:  # type: ignore[no-untyped-def]
    settings = LoadSettings(
        base=str(zoo.base), mode="xlora", xlora=str(zoo.xlora), ordering=str(zoo.xlora_ordering), dtype="bfloat16"
    )
    assert_equals_what_is_held(settings)
    assert part(estimate(settings), "KV cache of the scaling pass") > 0


@pytest.mark.parametrize("mode", ["none", "lora", "xlora"])
def test_the_demo_pack(mode: str) -> None:
    assert_equals_what_is_held(demo_settings(mode))  # type: ignore[arg-type]


def test_a_base_that_is_loaded_already_is_not_counted_again(zoo) -> None:  # type: ignore[no-untyped-def]
    settings = LoadSettings(base=str(zoo.base), mode="lora", adapters=(AdapterSource("a", str(zoo.adapters["wide"])),))
    previous = EngineCore.load(LoadSettings(base=str(zoo.base)))
    alone, beside = estimate(settings), estimate(settings, previous=previous)
    assert alone.needed - beside.needed == part(alone, "Weights")
    other = estimate(LoadSettings(base=str(zoo.base), dtype="bfloat16"), previous=previous)
    assert not any(each.already_held for each in other.parts)


def test_nothing_is_read_but_headers(zoo, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def refuse(*_what: object) -> None:
        raise AssertionError("a tensor was read")

    from loradesk_engine.formats.safetensors import SafetensorsWeights

    monkeypatch.setattr(SafetensorsWeights, "__getitem__", refuse)
    settings = LoadSettings(base=str(zoo.base), mode="xlora", xlora=str(zoo.xlora_peft))
    assert estimate(settings).needed > 0


def test_what_is_wrong_is_typed(tmp_path: Path, zoo) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(HubError, match="not been downloaded"):
        estimate(LoadSettings(base="people/nowhere"))
    with pytest.raises(RequestError) as caught:
        estimate(LoadSettings(base=str(zoo.base), context=10**6))
    assert caught.value.field == "context"
    with pytest.raises(LoradeskError):
        estimate(LoadSettings(base=str(tmp_path)))


# --- where it is told -------------------------------------------------------------------------------------------------


def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = namedtuple("memory", ["available"])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(1_000_000))


def test_the_worker_answers_between_other_work(zoo) -> None:  # type: ignore[no-untyped-def]
    worker = EngineWorker()
    events = worker.subscribe()
    worker.start()
    try:
        good, bad = LoadSettings(base=str(zoo.base)), LoadSettings(base="people/nowhere")
        seen: list[object] = []

        def wait(kind: type) -> object:
            while not isinstance(seen[-1] if seen else None, kind):
                seen.append(events.get(timeout=PATIENCE))
            return seen[-1]

        worker.send(Estimate(good))
        told = wait(MemoryEstimated)
        assert isinstance(told, MemoryEstimated)
        assert told.settings == good
        assert not any(each.already_held for each in told.estimate.parts)
        worker.send(Estimate(bad))
        failed = wait(EstimateFailed)
        assert isinstance(failed, EstimateFailed)
        assert (failed.settings, failed.problem.kind) == (bad, "HubError")
        worker.send(Load(good))
        wait(ModelLoaded)
        worker.send(Estimate(good))
        told = wait(MemoryEstimated)
        assert isinstance(told, MemoryEstimated)
        assert told.estimate.parts[0].already_held
    finally:
        assert worker.close()


def test_the_terminal_prints_the_table_and_loads_nothing(
    zoo, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(EngineCore, "load", lambda *_what, **_more: pytest.fail("a model was loaded"))
    for subcommand in ("chat", "serve"):
        assert main([subcommand, "--base", str(zoo.base), "--estimate"]) == 0
        out = capsys.readouterr().out
        assert "Weights, float32" in out
        assert "It fits on cpu" in out
    short_of_memory(monkeypatch)
    assert main(["chat", "--base", str(zoo.base), "--context", "512", "--dtype", "float32", "--estimate"]) == 1
    assert "It will not fit" in capsys.readouterr().out


def test_the_terminal_warns_before_a_load_that_does_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["chat", "--demo", "--mode", "none", "--prompt", "What is 1 + 1?", "--max-tokens", "1"]
    assert main(arguments) == 0
    assert "will not fit" not in capsys.readouterr().err
    short_of_memory(monkeypatch)
    assert main(arguments) == 0
    assert "It will not fit" in capsys.readouterr().err
