"""The Python API on a tiny model."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest

from loradesk_engine import Engine
from loradesk_engine.errors import (
    AdapterError,
    BusyError,
    HubError,
    LoradeskError,
    MemoryShortageError,
    NoModelError,
    RequestError,
)
from loradesk_engine.generation import loading as loading_module

ENDLESS = {"ignore_end": True, "max_tokens": 12}


@pytest.fixture(scope="module")
def lora(zoo):  # type: ignore[no-untyped-def]
    with Engine.load(str(zoo.base), adapters={name: str(path) for name, path in zoo.adapters.items()}) as engine:
        yield engine


def test_pieces_make_the_text(lora: Engine) -> None:
    answer = lora.chat("hello", **ENDLESS)
    pieces = list(answer)
    assert "".join(pieces) == answer.text
    assert len(answer.token_ids) == 12
    assert answer.finished is not None
    assert answer.finished.finish_reason == "length"


def test_conversations_as_dictionaries(lora: Engine) -> None:
    conversation = [{"role": "user", "content": "hello"}]
    assert lora.chat(conversation, **ENDLESS).text == lora.chat("hello", **ENDLESS).text


def test_activation_and_per_request_adapters(lora: Engine) -> None:
    base = lora.complete("abc", **ENDLESS).text
    wide = lora.complete("abc", adapters=["wide"], **ENDLESS).text
    half = lora.complete("abc", adapters={"wide": 0.5}, **ENDLESS).text
    lora.activate_adapters("wide")
    assert lora.active_adapters == {"wide": 1.0}
    assert lora.complete("abc", **ENDLESS).text == wide
    assert lora.complete("abc", adapters=[], **ENDLESS).text == base
    lora.activate_adapters({"wide": 0.5})
    assert lora.complete("abc", **ENDLESS).text == half
    lora.activate_adapters([])
    assert lora.complete("abc", **ENDLESS).text == base
    assert len({base, wide, half}) == 3


def test_a_load_that_runs_out_of_memory_raises_a_typed_error(zoo, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def refuse(*given, **options):  # type: ignore[no-untyped-def]
        raise MemoryError

    monkeypatch.setattr(loading_module, "build_decoder", refuse)
    with pytest.raises(MemoryShortageError, match="not enough memory") as caught:
        Engine.load(str(zoo.base))
    assert caught.value.remedy


def test_several_requests_at_once_from_several_threads(lora: Engine) -> None:
    alone = {name: lora.complete("abc", adapters=[name], **ENDLESS).text for name in ("wide", "adapter_1")}
    found: dict[int, tuple[str, str]] = {}

    def ask(number: int) -> None:
        name = ("wide", "adapter_1")[number % 2]
        found[number] = (name, lora.complete("abc", adapters=[name], **ENDLESS).text)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6
    assert all(text == alone[name] for name, text in found.values())


def test_every_thread_gets_the_answer_to_its_own_command(lora: Engine) -> None:
    names = [adapter.name for adapter in lora.adapters]
    wrong: list[str] = []

    def toggle(number: int) -> None:
        for turn in range(20):
            if (number + turn) % 2:
                lora.activate_adapters({names[number % len(names)]: 0.25})  # raises if another's failure came here
                continue
            mine = f"nobody_{number}_{turn}"
            try:
                lora.activate_adapters([mine])
                wrong.append(f"{mine} was taken")
            except AdapterError as problem:
                if mine not in str(problem):
                    wrong.append(f"{mine} got {problem}")

    def run(number: int) -> None:
        try:
            toggle(number)
        except LoradeskError as problem:
            wrong.append(f"thread {number}: {problem}")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert list(lora.active_adapters.values()) == [0.25]
    lora.activate_adapters([])


def test_adapters_come_and_go(zoo) -> None:  # type: ignore[no-untyped-def]
    with Engine.load(str(zoo.base), adapters={"one": str(zoo.adapters["adapter_1"])}) as engine:
        assert engine.active_adapters == {"one": 1.0}
        engine.add_adapter("two", str(zoo.adapters["wide"]))
        assert [adapter.name for adapter in engine.adapters] == ["one", "two"]
        engine.remove_adapter("one")
        assert [adapter.name for adapter in engine.adapters] == ["two"]
        assert engine.active_adapters == {}
        with pytest.raises(AdapterError):
            engine.remove_adapter("one")


def test_xlora_scalings_as_numpy(zoo) -> None:  # type: ignore[no-untyped-def]
    with Engine.load(str(zoo.base), xlora=str(zoo.xlora), ordering=str(zoo.xlora_ordering)) as engine:
        answer = engine.complete("abcdef", **ENDLESS)
        assert answer.text
        scalings = answer.scalings
        assert scalings is not None
        assert scalings.dtype == np.float32
        assert scalings.shape == (6 + 12 - 1, 14, 3)  # the last token is never computed
        np.testing.assert_allclose(scalings.sum(-1), 1.0, atol=1e-5)
        assert "".join(answer.scaling_tokens[:6]) == "abcdef"
        assert engine.scalings is not None
        assert np.array_equal(engine.scalings, scalings)


def test_cancel_ends_the_iteration(lora: Engine) -> None:
    answer = lora.complete("abc", ignore_end=True)
    for _ in answer:
        answer.cancel()
        break
    assert list(answer) is not None
    assert answer.finished is not None
    assert answer.finished.finish_reason == "cancelled"


def test_errors_are_raised_as_their_class(lora: Engine) -> None:
    with pytest.raises(RequestError) as caught:
        lora.chat("x", temperature=-1.0)
    assert caught.value.field == "temperature"
    with pytest.raises(AdapterError):
        lora.activate_adapters(["nobody"])
    with pytest.raises(AdapterError):
        _ = lora.complete("x", adapters=["nobody"]).text
    with pytest.raises(HubError):
        Engine.load("./nowhere")


def test_a_closed_engine_says_so(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = Engine.load(str(zoo.base))
    answer = engine.complete("abc", ignore_end=True)
    engine.close()
    with pytest.raises(NoModelError, match="closed"):
        _ = answer.text
    with pytest.raises(LoradeskError, match="closed"):
        _ = engine.complete("abc").text
    with pytest.raises(LoradeskError, match="closed"):
        engine.activate_adapters([])


def test_logprobs_carry_their_tokens(lora: Engine) -> None:
    answer = lora.complete("abc", logprobs=3, **ENDLESS)
    text = answer.text
    assert b"".join(item.data for item in answer.logprobs).decode("utf-8", "replace") == text
    assert all(len(item.top) == 3 and item.top[0].data == item.data for item in answer.logprobs)


def test_an_answer_that_nobody_reads_leaves_nothing_behind(lora: Engine) -> None:
    before = len(lora.worker._subscribers)
    for _ in range(5):
        lora.complete("abc", **ENDLESS).cancel()
    assert lora.complete("abc", **ENDLESS).text
    gc.collect()
    assert len(lora.worker._subscribers) == before


def test_adapters_stay_while_requests_run(lora: Engine, zoo) -> None:  # type: ignore[no-untyped-def]
    answer = lora.complete("abc", ignore_end=True, max_tokens=400)
    next(iter(answer))
    with pytest.raises(BusyError):
        lora.remove_adapter("wide")
    with pytest.raises(BusyError):
        lora.add_adapter("more", str(zoo.adapters["wide"]))
    answer.cancel()
    _ = answer.text


def test_a_load_can_be_cancelled_by_its_progress(zoo) -> None:  # type: ignore[no-untyped-def]
    def progress(stage: str, fraction: float | None) -> None:
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        Engine.load(str(zoo.base), progress=progress)
    assert not [thread for thread in threading.enumerate() if thread not in before]


def test_plain_data_needs_no_torch_and_the_engine_no_qt() -> None:
    script = (
        "import sys, loradesk_engine, loradesk_engine.events, loradesk_engine.demo, loradesk_engine.cli, "
        "loradesk_engine.serving.worker, loradesk_engine.ordering.check\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "from loradesk_engine import Engine\n"
        "import loradesk_engine.generation.engine\n"
        "assert not [name for name in sys.modules if name.startswith(('PySide6', 'pyqtgraph'))]"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
