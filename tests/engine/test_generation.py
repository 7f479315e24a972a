"""What requests get: against transformers' generate, against recomputation without a cache, and beside one another."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from support.precision import reference

from loradesk_engine.commands import AdapterSource, ChatRequest, CompletionRequest, LoadSettings, Message, Sampling
from loradesk_engine.errors import AdapterError, BusyError, RequestError, TemplateError
from loradesk_engine.events import Event, RequestFailed, RequestFinished, RequestStarted, TokensGenerated
from loradesk_engine.generation import lookahead as lookahead_module
from loradesk_engine.generation import runner as runner_module
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.batch import Batch, Segment

PROMPT = tuple(range(40, 60))
_ids = itertools.count()


def lora(zoo, **options) -> EngineCore:  # type: ignore[no-untyped-def]
    adapters = tuple(AdapterSource(name, str(path)) for name, path in zoo.adapters.items())
    settings = LoadSettings(base=str(zoo.base), mode="lora", adapters=adapters, dtype="float32")
    return EngineCore.load(settings, **options)


def xlora(zoo, index: int | None = None, **options) -> EngineCore:  # type: ignore[no-untyped-def]
    return EngineCore.load(zoo.xlora_settings(tgt_non_granular_index=index), **options)


def request(
    prompt=PROMPT, tokens: int = 24, adapters: Mapping[str, float] | None = None, **options
) -> CompletionRequest:  # type: ignore[no-untyped-def]
    follow = options.pop("follow_activation", False)
    sampling = Sampling(max_tokens=tokens, ignore_end=True, **options)
    return CompletionRequest(f"r{next(_ids)}", prompt, sampling, adapters, follow)


def run(engine: EngineCore) -> list[Event]:
    events: list[Event] = []
    while engine.busy:
        events += engine.step()
    return events


def answers(events: list[Event]) -> dict[str, list[int]]:
    """Token ids by request."""
    result: dict[str, list[int]] = {}
    for event in events:
        if isinstance(event, RequestStarted):
            result.setdefault(event.request_id, [])
        if isinstance(event, TokensGenerated):
            result.setdefault(event.request_id, []).extend(event.token_ids)
    return result


def ask(engine: EngineCore, *args, **options) -> list[int]:  # type: ignore[no-untyped-def]
    asked = request(*args, **options)
    engine.submit(asked)
    return answers(run(engine))[asked.request_id]


def finished(events: list[Event]) -> RequestFinished:
    return next(event for event in events if isinstance(event, RequestFinished))


def test_greedy_answer_equals_transformers_generate(zoo) -> None:  # type: ignore[no-untyped-def]
    from transformers import LlamaForCausalLM

    reference = LlamaForCausalLM.from_pretrained(zoo.base, dtype=torch.float32).eval()
    expected = reference.generate(
        torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, len(PROMPT) :].tolist()
    engine = EngineCore.load(LoadSettings(base=str(zoo.base), dtype="float32"))
    assert ask(engine, tokens=40) == expected


@torch.inference_mode()
def xlora_without_cache(engine: EngineCore, tokens: int) -> tuple[list[int], np.ndarray]:
    """Every token from scratch: scaling pass and forward over the whole sequence, on fresh caches."""
    ids = list(PROMPT)

    def forward(scalings: torch.Tensor | None) -> torch.Tensor:
        assert engine.mixture is not None
        cache = engine.decoder.new_cache()
        cache.reserve(1, len(ids))
        delta = engine.mixture.delta(scalings, range(3)) if scalings is not None else None
        device = engine.decoder.device
        batch = Batch(
            torch.tensor(ids, device=device),
            torch.arange(len(ids), device=device),
            (Segment(0, 0, len(ids), 0),),
            delta,
        )
        return engine.decoder.forward(batch, cache)

    assert engine.classifier is not None
    for _ in range(tokens):
        scalings = engine.classifier(forward(None))
        ids.append(int(engine.decoder.logits(forward(scalings)[-1:])[0].argmax()))
    return ids[len(PROMPT) :], scalings.cpu().numpy()


@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("step_tokens", [512, 7])
def test_xlora_cached_decode_equals_recomputation(zoo, lookahead: bool, step_tokens: int) -> None:  # type: ignore[no-untyped-def]
    engine = xlora(zoo, lookahead=lookahead, step_tokens=step_tokens)
    expected, scalings = xlora_without_cache(engine, 24)
    asked = request()
    engine.submit(asked)
    events = run(engine)
    assert answers(events)[asked.request_id] == expected
    told = [event for event in events if isinstance(event, TokensGenerated) and event.scalings is not None]
    seen = np.concatenate([event.scalings for event in told])
    np.testing.assert_allclose(seen, scalings, atol=1e-5, rtol=2e-5)  # rtol: rounding of a GPU's float32 products
    starts = np.cumsum([0] + [len(event.scalings) for event in told])[:-1]
    assert [event.scalings_start for event in told] == starts.tolist()
    labels = [label for event in told for label in event.scaling_token_texts]
    assert "".join(labels[: len(PROMPT)]) == bytes(PROMPT).decode()


def test_lookahead_hits_and_misses_give_the_same_answer(zoo) -> None:  # type: ignore[no-untyped-def]
    ahead, plain = xlora(zoo), xlora(zoo, lookahead=False)
    for seed in range(4):
        options = {"temperature": 1.0, "seed": seed, "tokens": 40}
        assert ask(ahead, **options) == ask(plain, **options)


def test_events_tell_how_often_lookahead_was_right(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = xlora(zoo)
    engine.submit(request(tokens=40))
    events = run(engine)
    counts = [event.look_ahead for event in events if isinstance(event, TokensGenerated) and event.look_ahead]
    told = [count.hits + count.misses for count in counts]
    assert told == sorted(told)
    assert 0 < told[-1] <= 40
    assert finished(events).look_ahead == counts[-1]
    assert counts[-1].rate == counts[-1].hits / told[-1]
    plain = xlora(zoo, lookahead=False)
    plain.submit(request(tokens=4))
    assert finished(run(plain)).look_ahead is None


def test_muted_experts_are_the_base_model(zoo) -> None:  # type: ignore[no-untyped-def]
    base = EngineCore.load(LoadSettings(base=str(zoo.base), dtype="float32"))
    engine = xlora(zoo)
    assert ask(engine, adapters={}) == ask(base)
    assert ask(engine, adapters={"adapter_1": 1.0}) != ask(base)


def test_non_granular_scalings_freeze_after_k_tokens(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = xlora(zoo, 3)
    asked = request()
    engine.submit(asked)
    events = run(engine)
    seen = np.concatenate([e.scalings for e in events if isinstance(e, TokensGenerated) and e.scalings is not None])
    frozen_from = len(PROMPT) + 3
    for row in range(frozen_from, len(seen)):
        assert np.array_equal(seen[row], seen[frozen_from - 1])
    assert not np.array_equal(seen[frozen_from - 1], seen[frozen_from - 2])
    free = xlora(zoo)
    assert answers(events)[asked.request_id][:4] == ask(free)[:4]
    # the slot remembers nothing that was made under frozen scalings: asking again gives the same
    assert ask(engine) == answers(events)[asked.request_id]


def test_non_granular_runs_one_sequence_at_a_time(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = xlora(zoo, 2)
    for _ in range(2):
        engine.submit(request(tokens=3))
    events = run(engine)
    kinds = [(type(event), event.request_id) for event in events if isinstance(event, RequestStarted | RequestFinished)]
    assert [kind for kind, _ in kinds] == [RequestStarted, RequestFinished] * 2


@pytest.mark.parametrize("mode", ["lora", "xlora"])
def test_batched_equals_alone(zoo, mode: str) -> None:  # type: ignore[no-untyped-def]
    make = {"lora": lora, "xlora": xlora}[mode]
    mixes: list[dict[str, float]] = [
        {},
        {"adapter_1": 1.0},
        {"adapter_10": 0.5},
        {"adapter_1": 1.0, "adapter_10": -1.0},
        {"adapter_2": 2.0},
    ]
    prompts = [PROMPT[:5], PROMPT, tuple(range(100, 170)), PROMPT[3:9], tuple(range(200, 203))]
    alone = [ask(make(zoo), prompt, adapters=mix) for prompt, mix in zip(prompts, mixes, strict=True)]
    engine = make(zoo, step_tokens=16)
    asked = [request(prompt, adapters=mix) for prompt, mix in zip(prompts, mixes, strict=True)]
    for one in asked:
        engine.submit(one)
    together = answers(run(engine))
    assert [together[one.request_id] for one in asked] == alone


def test_nobody_waits_for_anothers_wrong_guess(zoo, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(lookahead_module, "ROW_COST", 0.0)  # guesses are worth it, as wrong as they are
    engine, passes = xlora(zoo), []
    compute = engine._runner.passes._compute
    monkeypatch.setattr(engine._runner.passes, "graphs", None)  # where there are any
    monkeypatch.setattr(
        engine._runner.passes, "_compute", lambda rows, *rest: passes.append(len(rows)) or compute(rows, *rest)
    )
    prompts = [PROMPT[number:] for number in range(4)]
    alone = [ask(engine, prompt, temperature=0.7, seed=number) for number, prompt in enumerate(prompts)]
    asked = [request(prompt, temperature=0.7, seed=number) for number, prompt in enumerate(prompts)]
    for one in asked:
        engine.submit(one)
    events = engine.step()  # the prompts
    more = 0  # passes beyond one a step
    while engine.busy:
        passes.clear()
        events += engine.step()
        more += len(passes) - 1
    together = answers(events)
    assert [together[one.request_id] for one in asked] == alone
    misses = sum(end.look_ahead.misses for end in events if isinstance(end, RequestFinished) and end.look_ahead)
    assert misses > 8
    assert more < misses / 4  # the least that a pass for the wrong guesses of each step would be


def test_wrong_guesses_are_left_out_and_heard_of_again(zoo, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    engine = xlora(zoo)
    monkeypatch.setattr(engine._runner.passes, "graphs", None)  # where there are any
    drawn: list[bool] = []
    listened: list[bool] = []
    compute = engine._runner.passes.run

    def counted(rows, requested, classified, active):  # type: ignore[no-untyped-def]
        if len(classified) == len(rows):  # a scaling pass
            listened.append(len(requested) > 0)
        return compute(rows, requested, classified, active)

    def sample(prediction):  # type: ignore[no-untyped-def]
        known = prediction.sequence.xlora.guesses
        drawn.append(len(drawn) >= 40)
        if drawn[-1] and known:
            return torch.tensor(known[0], device=prediction.logits.device)
        return torch.tensor(7 if not known or known[0] != 7 else 8, device=prediction.logits.device)

    monkeypatch.setattr(engine._runner.passes, "run", counted)
    monkeypatch.setattr(runner_module, "sample", sample)
    engine.submit(request(tokens=120))
    checked, heard = [], []
    while engine.busy:
        for event in engine.step():
            if isinstance(event, TokensGenerated) and event.look_ahead:
                checked.append(event.look_ahead.hits + event.look_ahead.misses)
                heard.append(len(listened))
    assert checked[39] == checked[20]  # none was checked any more
    assert sum(listened[heard[20] : heard[39]]) <= 6  # of 19 tokens
    assert checked[-1] > checked[39] + 30


def test_more_requests_than_slots_are_all_answered_in_order(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = lora(zoo, max_sequences=2)
    expected = ask(engine, tokens=5)
    asked = [request(tokens=5) for _ in range(7)]
    for one in asked:
        engine.submit(one)
    events = run(engine)
    assert all(answers(events)[one.request_id] == expected for one in asked)
    started = [event.request_id for event in events if isinstance(event, RequestStarted)]
    assert started == [one.request_id for one in asked]


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_activation_changes_the_next_answer_and_back(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = lora(zoo)
    base = ask(engine)
    engine.activate({"adapter_1": 1.0})
    one = ask(engine)
    engine.activate({"adapter_1": 1.0, "wide": 0.7})
    two = ask(engine)
    engine.activate({})
    assert ask(engine) == base
    assert len({tuple(base), tuple(one), tuple(two)}) == 3


def test_a_request_keeps_the_adapters_it_started_with(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = lora(zoo)
    base = ask(engine)
    asked = request()
    engine.submit(asked)
    events = [event for _ in range(5) for event in engine.step()]
    engine.activate({"adapter_1": 1.0})
    assert answers(events + run(engine))[asked.request_id] == base


def test_a_request_that_follows_changes_at_its_next_token_and_leaves_no_prefix(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = lora(zoo)
    base = ask(engine)
    other = ask(engine, adapters={"wide": 1.0})
    asked = request(follow_activation=True)
    engine.submit(asked)
    events = [event for _ in range(5) for event in engine.step()]
    engine.activate({"wide": 1.0})
    followed = answers(events + run(engine))[asked.request_id]
    assert followed[:5] == base[:5]
    assert followed != base
    assert ask(engine) == other
    engine.activate({})
    assert ask(engine) == base


def test_the_next_turn_computes_only_what_is_new(zoo) -> None:  # type: ignore[no-untyped-def]
    for make in (lora, xlora):
        engine = make(zoo)
        answer = ask(engine)
        longer = (*PROMPT, *answer, 7, 8, 9)
        asked = request(longer)
        engine.submit(asked)
        events = run(engine)
        started = next(event for event in events if isinstance(event, RequestStarted))
        assert started.cached_tokens == len(PROMPT) + len(answer) - 1
        assert answers(events)[asked.request_id] == ask(make(zoo), longer)


def test_a_prefix_made_under_other_adapters_is_never_reused(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = lora(zoo)
    expected = ask(lora(zoo), adapters={"adapter_10": 1.0})
    ask(engine)
    ask(engine, adapters={"adapter_1": 1.0})
    ask(engine, adapters={"adapter_10": 0.5})
    asked = request(adapters={"adapter_10": 1.0})
    engine.submit(asked)
    events = run(engine)
    assert next(event for event in events if isinstance(event, RequestStarted)).cached_tokens == 0
    assert answers(events)[asked.request_id] == expected


def test_adapters_come_and_go_at_run_time(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = lora(zoo)
    wide = ask(engine, adapters={"wide": 1.0})
    base = ask(engine)
    engine.activate({"wide": 1.0})
    left = engine.remove_adapter("adapter_10")
    assert [info.name for info in left.adapters] == ["adapter_1", "adapter_2", "wide"]
    assert ask(engine) == wide
    engine.remove_adapter("wide")
    assert engine.active == {}
    assert ask(engine) == base
    engine.add_adapter(AdapterSource("again", str(zoo.adapters["wide"])))
    assert ask(engine) == base
    assert ask(engine, adapters={"again": 1.0}) == wide


@pytest.mark.parametrize("weights", [{"nobody": 1.0}, {"wide": float("nan")}, {"wide": 1e9}, {"wide": True}])
def test_a_bad_activation_is_refused_and_changes_nothing(zoo, weights: dict[str, float]) -> None:  # type: ignore[no-untyped-def]
    engine = lora(zoo)
    engine.activate({"adapter_1": 0.5})
    with pytest.raises(AdapterError) as caught:
        engine.activate(weights)
    assert caught.value.field == next(iter(weights))
    assert engine.active == {"adapter_1": 0.5}


def test_adapters_cannot_be_removed_under_a_running_request(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = lora(zoo)
    engine.submit(request())
    with pytest.raises(BusyError):
        engine.remove_adapter("wide")
    run(engine)
    engine.remove_adapter("wide")


# --- ends -------------------------------------------------------------------------------------------------------------


def test_cancel_takes_effect_at_the_next_step_and_frees_the_slot(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = xlora(zoo, max_sequences=1)
    asked, waiting = request(tokens=200), request(tokens=2)
    engine.submit(asked)
    engine.submit(waiting)
    before = [event for _ in range(4) for event in engine.step()]
    engine.cancel(asked.request_id)
    after = engine.step()
    end = finished(after)
    assert (end.request_id, end.finish_reason) == (asked.request_id, "cancelled")
    assert end.completion_tokens == len(answers(before)[asked.request_id])
    assert answers(after + run(engine))[waiting.request_id]


def test_the_context_ends_an_answer(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = EngineCore.load(LoadSettings(base=str(zoo.base), dtype="float32", context=30))
    engine.submit(CompletionRequest("c", PROMPT, Sampling(ignore_end=True)))
    end = finished(run(engine))
    assert (end.finish_reason, end.completion_tokens) == ("length", 10)


def test_stop_strings_and_ids(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = EngineCore.load(LoadSettings(base=str(zoo.base), dtype="float32"))
    whole = ask(engine, tokens=30)
    engine.submit(request(tokens=30))
    text = finished(run(engine)).text
    middle = text[len(text) // 2 : len(text) // 2 + 2]
    engine.submit(request(tokens=30, stop=(middle,)))
    events = run(engine)
    end = finished(events)
    assert end.finish_reason == "stop"
    assert end.text == text[: text.index(middle)]
    assert "".join(event.text for event in events if isinstance(event, TokensGenerated)) == end.text
    engine.submit(request(tokens=30, stop_token_ids=(whole[6],)))
    events = run(engine)
    assert finished(events).finish_reason == "stop"
    assert finished(events).completion_tokens == whole.index(whole[6])


def test_seeds_repeat_and_differ(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = EngineCore.load(LoadSettings(base=str(zoo.base), dtype="float32"))
    options = {"temperature": 1.5, "tokens": 20}
    assert ask(engine, seed=1, **options) == ask(engine, seed=1, **options)
    assert ask(engine, seed=1, **options) != ask(engine, seed=2, **options)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1e-159},
        {"temperature": 1.0, "top_p": 1e-300},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 100.0, "top_k": 1},
        {"repetition_penalty": 1e-30},
        {"temperature": 1.0, "repetition_penalty": 1e-300},
        {"presence_penalty": 100.0, "frequency_penalty": -100.0},
        {"temperature": 1.0, "logit_bias": {65: 1e300, 66: -1e300}},
    ],
)
def test_extreme_sampling_ends_at_most_its_own_request(zoo, sampling: dict[str, float]) -> None:  # type: ignore[no-untyped-def]
    engine = EngineCore.load(LoadSettings(base=str(zoo.base), dtype="float32"))
    expected = ask(engine)
    extreme, plain = request(tokens=5, seed=1, **sampling), request()
    engine.submit(extreme)
    engine.submit(plain)
    events = run(engine)
    assert answers(events)[plain.request_id] == expected
    ends = [event for event in events if isinstance(event, RequestFinished | RequestFailed)]
    assert {event.request_id for event in ends} == {extreme.request_id, plain.request_id}


def test_logprobs_are_those_of_the_model(zoo) -> None:  # type: ignore[no-untyped-def]
    from transformers import LlamaForCausalLM

    engine = EngineCore.load(LoadSettings(base=str(zoo.base), dtype="float32"))
    engine.submit(request(tokens=1, logprobs=5))
    (logprob,) = next(event for event in run(engine) if isinstance(event, TokensGenerated)).logprobs
    model = LlamaForCausalLM.from_pretrained(zoo.base, dtype=torch.float32)
    expected = reference(model.eval(), lambda model: model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1))
    ids = expected.exact.topk(5).indices
    assert [other.token_id for other in logprob.top] == ids.tolist()
    expected[ids].assert_near(torch.tensor([other.logprob for other in logprob.top]))
    assert [other.data for other in logprob.top] == [bytes([token]) for token in ids.tolist()]  # id = byte
    assert logprob.logprob == logprob.top[0].logprob


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (CompletionRequest("b", ()), "prompt"),
        (CompletionRequest("b", (9999,)), "prompt"),
        (CompletionRequest("b", tuple([1] * 600)), "prompt"),
        (CompletionRequest("b", (1,), Sampling(logit_bias={9999: 1.0})), "logit_bias"),
    ],
)
def test_requests_that_cannot_be_answered_say_why(zoo, bad: CompletionRequest, field: str) -> None:  # type: ignore[no-untyped-def]
    engine = EngineCore.load(LoadSettings(base=str(zoo.base), dtype="float32"))
    with pytest.raises(RequestError) as caught:
        engine.submit(bad)
    assert caught.value.field == field
    assert not engine.busy


def test_chat_uses_the_models_template(zoo) -> None:  # type: ignore[no-untyped-def]
    engine = EngineCore.load(LoadSettings(base=str(zoo.base), dtype="float32"))
    engine.submit(ChatRequest("chat", (Message("user", "hé"),), Sampling(max_tokens=1)))
    assert finished(run(engine)).prompt_tokens == 1 + len("hé".encode()) + 1 + 1
    engine.tokenizer.template = None
    with pytest.raises(TemplateError, match="no chat template"):
        engine.submit(ChatRequest("chat", (Message("user", "x"),)))


def test_a_cache_that_cannot_grow_fails_what_runs_and_nothing_after_it(zoo, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    engine, long = lora(zoo), tuple(range(40, 250)) * 2
    expected, expected_long = ask(engine, tokens=8), ask(lora(zoo), long, tokens=8)
    grown, calls = engine._runner.passes.cache._grown, itertools.count()

    def refuse(*given):  # type: ignore[no-untyped-def]
        if next(calls) == 1:
            raise MemoryError("no room for the values")
        return grown(*given)

    monkeypatch.setattr(engine._runner.passes.cache, "_grown", refuse)
    for prompt in (PROMPT, long):
        engine.submit(request(prompt, tokens=8))
    events = run(engine)
    assert sum(isinstance(event, RequestFailed) for event in events) == 2
    assert ask(engine, tokens=8) == expected
    assert ask(engine, long, tokens=8) == expected_long
