"""Recorded passes give what their calls give one by one, to the last bit, whatever changes in between."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from support import tiny
from support.forms import COMPILED, use
from torch import Tensor

from loradesk_engine.adapters.mixture import Mixture
from loradesk_engine.commands import AdapterSource, CompletionRequest, LoadSettings, Sampling
from loradesk_engine.demo import demo_settings
from loradesk_engine.events import TokensGenerated
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model import kernels
from loradesk_engine.model.batch import Batch, Delta, Segment
from loradesk_engine.model.cache import KVCache
from loradesk_engine.model.decoder import Decoder
from loradesk_engine.model.native import library, recording
from loradesk_engine.model.native.recording import Recording
from loradesk_resources import resource_path

SLOTS = 4


@pytest.fixture(scope="module", params=COMPILED)
def demo(request: pytest.FixtureRequest) -> Iterator[EngineCore]:
    """The demo pack's base in 16 bits, with its four LoRA adapters, in each form of the kernels."""
    with pytest.MonkeyPatch.context() as patched:
        use(request.param, patched)
        yield EngineCore.load(demo_settings("lora"))


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each pass that is made again."""
    found: list[int] = []
    replay = Recording.replay

    def counted(self: Recording, hidden: Tensor, x: Tensor, batch: Batch) -> Tensor:
        found.append(len(x))
        return replay(self, hidden, x, batch)

    monkeypatch.setattr(Recording, "replay", counted)
    return found


def some_delta(chance: random.Random, mixture: Mixture, layers: int, rows: int) -> Delta | None:
    """Adapters as a step may have them: none, all alike, or others for each row and layer."""
    active = chance.choice(((), (0, 1, 2, 3), (1, 3)))
    shape = chance.choice(((1, 1, 4), (rows, layers, 4)))
    generator = torch.Generator().manual_seed(chance.randrange(10**6))
    return mixture.delta(torch.rand(shape, generator=generator), active)


@torch.inference_mode()
def passes(decoder: Decoder, mixture: Mixture | None, seed: int, count: int = 80) -> tuple[list[Tensor], KVCache]:
    """What passes of some sequences give, which go on and begin anew, and the cache they leave."""
    chance = random.Random(seed)
    cache = decoder.new_cache()
    layers = len(mixture.adapted_paths()) if mixture is not None else 0
    lengths, found = [0] * SLOTS, []
    step = kernels.step_kernels(decoder.device, decoder.dtype)
    assert step is not None
    forms = [[chance.choice((1, 1, 2, 3)) for _ in range(chance.randint(1, SLOTS))] for _ in range(3)]
    for _ in range(count):
        form = chance.choice(forms)
        segments, tokens, positions = [], [], []
        for slot, length in zip(chance.sample(range(SLOTS), len(form)), form, strict=True):
            if chance.random() < 0.05:
                lengths[slot] = 0
            elif chance.random() < 0.05:
                lengths[slot] += 200  # as if it had been long: what lies there may be anything that is a number
            segments.append(Segment(slot, len(tokens), length, lengths[slot]))
            tokens += [chance.randrange(200) for _ in range(length)]
            positions += range(lengths[slot], lengths[slot] + length)
            lengths[slot] += length
        cache.reserve(SLOTS, max(lengths))
        if not found:
            for tensor in (*cache.keys, *cache.values):
                tensor.zero_()
        delta = None if mixture is None else some_delta(chance, mixture, layers, len(tokens))
        batch = Batch(torch.tensor(tokens), torch.tensor(positions), tuple(segments), delta)
        with kernels.used(step):
            found.append(decoder.forward(batch, cache))
    return found, cache


def never(monkeypatch: pytest.MonkeyPatch, work: Callable[[], tuple[list[Tensor], KVCache]]) -> list[Tensor]:
    with monkeypatch.context() as patched:
        patched.setattr(recording, "MOST_ROWS", 0)
        found, cache = work()
    return [*found, *cache.keys, *cache.values]


@pytest.mark.parametrize("seed", range(6))
def test_a_pass_that_is_made_again_is_the_same(
    demo: EngineCore, replays: list[int], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loradesk_engine.model.cache.KVCache._grown", grown_of_zeros)
    mixture = demo.mixture if seed % 3 else None
    expected = never(monkeypatch, lambda: passes(demo.decoder, mixture, seed))
    assert not replays
    found, cache = passes(demo.decoder, mixture, seed)
    assert len(replays) >= 10
    for one, other in zip([*found, *cache.keys, *cache.values], expected, strict=True):
        assert torch.equal(one, other)


def grown_of_zeros(self: KVCache, old: list[Tensor], slots: int, capacity: int) -> list[Tensor]:
    """As the cache grows, but nothing in it is left to chance."""
    shape = (slots, self.config.num_kv_heads, capacity, self.config.head_dim)
    grown = []
    for layer in range(self.config.num_layers):
        tensor = torch.zeros(shape)
        if old:
            tensor[: self.slots, :, : self.capacity] = old[layer]
        grown.append(tensor)
    return grown


def test_what_a_pass_gave_stays_when_the_next_one_is_made(demo: EngineCore, replays: list[int]) -> None:
    found, _ = passes(demo.decoder, None, seed=0)
    kept = [one.clone() for one in found]
    passes(demo.decoder, None, seed=1)
    assert replays
    assert all(map(torch.equal, found, kept))


def test_biases_are_recorded(tmp_path: Path, replays: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loradesk_engine.model.cache.KVCache._grown", grown_of_zeros)
    model = tiny.make_llama(tmp_path, attention_bias=True, mlp_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    decoder = EngineCore.load(LoadSettings(base=str(tmp_path))).decoder
    expected = never(monkeypatch, lambda: passes(decoder, None, seed=2))
    found, cache = passes(decoder, None, seed=2)
    assert len(replays) > 20
    assert all(map(torch.equal, [*found, *cache.keys, *cache.values], expected))


def test_other_threads_make_another_recording(
    demo: EngineCore, replays: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loradesk_engine.model.cache.KVCache._grown", grown_of_zeros)
    results = []
    for threads in (1, 2, 3, 1):
        monkeypatch.setattr(library, "threads", threads)
        results.append(passes(demo.decoder, demo.mixture, seed=5)[0])
    assert replays
    assert all(map(torch.equal, results[0], other) for other in results[1:])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Qwen3", {"head_dim": 8}),  # norms of each head
        ("Gemma2", {"head_dim": 8}),
        ("Phi", {}),
        ("Mixtral", {"num_local_experts": 2}),
    ],
)
def test_a_pass_that_torch_has_a_part_in_is_not_recorded(
    tmp_path: Path, replays: list[int], kind: str, changes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loradesk_engine.model.cache.KVCache._grown", grown_of_zeros)
    config = getattr(transformers, f"{kind}Config")(**{**tiny.SMALL, "pad_token_id": 0, **changes})
    torch.manual_seed(1)
    getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(tmp_path)
    tiny.write_tokenizer(tmp_path)
    decoder = EngineCore.load(LoadSettings(base=str(tmp_path))).decoder
    assert decoder.native
    expected = never(monkeypatch, lambda: passes(decoder, None, seed=2))
    found, cache = passes(decoder, None, seed=2)
    assert not replays
    assert all(map(torch.equal, [*found, *cache.keys, *cache.values], expected))


@pytest.mark.parametrize("option", ["use_dora", "lora_bias"])
def test_what_torch_changes_in_place_is_not_recorded(
    tmp_path: Path, replays: list[int], option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loradesk_engine.model.cache.KVCache._grown", grown_of_zeros)
    tiny.make_llama(tmp_path / "base").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    sources = tuple(AdapterSource(name, str(tmp_path / name)) for name in "abcd")
    for seed, source in enumerate(sources):
        tiny.make_lora(tmp_path / "base", Path(source.source), seed, **{option: True} if seed else {})
    settings = LoadSettings(base=str(tmp_path / "base"), mode="lora", adapters=sources)
    engine = EngineCore.load(settings)
    assert engine.decoder.native
    expected = never(monkeypatch, lambda: passes(engine.decoder, engine.mixture, seed=3))
    found, cache = passes(engine.decoder, engine.mixture, seed=3)
    assert replays  # of the base alone
    assert all(map(torch.equal, [*found, *cache.keys, *cache.values], expected))


def test_to_record_imports_nothing() -> None:
    """torch's own way of seeing all that it does imports half of the compiler for it: a second, and 80 MB."""
    code = """if True:
        import sys
        from loradesk_engine.commands import CompletionRequest, Sampling
        from loradesk_engine.demo import demo_settings
        from loradesk_engine.generation.engine import EngineCore
        engine = EngineCore.load(demo_settings("xlora"))
        before = set(sys.modules)
        engine.submit(CompletionRequest("a", (5, 6, 7), Sampling(max_tokens=12, ignore_end=True)))
        while engine.busy:
            engine.step()
        print(len(engine.decoder._passes._forms), sorted(set(sys.modules) - before))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1)[1].strip() == "[]"
    assert int(done.stdout.split()[0]) > 0


def test_recordings_go_with_their_adapters(demo: EngineCore, replays: list[int]) -> None:
    engine = EngineCore.load(demo_settings("lora"))
    assert engine.mixture is not None
    ask(engine, {"capitals": 1.0})
    assert replays
    delta = engine.mixture.delta(torch.ones(1, 1, 4), [1])
    assert delta is not None
    held = weakref.ref(delta.form)
    del delta
    assert held() is not None
    engine.remove_adapter("capitals")
    gc.collect()
    assert held() is None


@torch.inference_mode()
def test_a_recording_holds_no_cache_that_was_let_go_of(demo: EngineCore, replays: list[int]) -> None:
    _, cache = passes(demo.decoder, None, seed=0)
    held = weakref.ref(cache.keys[0])
    assert replays
    cache.clear()
    gc.collect()
    assert held() is None


def test_engines_of_several_threads_record_their_own(replays: list[int]) -> None:
    settings = demo_settings("xlora")
    expected = ask(EngineCore.load(settings), None)
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(ask(EngineCore.load(settings), None))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3
    assert len(replays) > 4 * 10


def ask(engine: EngineCore, adapters: dict[str, float] | None) -> list[int]:
    """The tokens of a greedy answer."""
    engine.enter_thread()
    engine.submit(CompletionRequest("a", (5, 6, 7), Sampling(max_tokens=24, ignore_end=True), adapters))
    ids: list[int] = []
    while engine.busy:
        for event in engine.step():
            if isinstance(event, TokensGenerated):
                ids += event.token_ids
    return ids


def test_an_adapter_that_is_added_counts_at_once(replays: list[int]) -> None:
    """It has a place among the factors of the others."""
    folder = resource_path("demo", "adapters")
    sources = [AdapterSource(name, str(folder / name)) for name in ("bard", "capitals")]
    settings = LoadSettings(base=str(resource_path("demo", "base")), mode="lora", adapters=(sources[0],))
    engine = EngineCore.load(settings)
    before = ask(engine, {"bard": 1.0})
    engine.add_adapter(sources[1])
    both = ask(engine, {"bard": 1.0, "capitals": 1.0})
    assert replays
    engine.remove_adapter("capitals")
    assert ask(engine, {"bard": 1.0}) == before
    fresh = EngineCore.load(replace(settings, adapters=tuple(sources)))
    assert ask(fresh, {"bard": 1.0, "capitals": 1.0}) == both != before
