"""The plan of a step, without a model: which chunks decode, which catch up, and when a begun step is used."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from loradesk_engine.commands import Sampling
from loradesk_engine.generation.passes import PassOutput
from loradesk_engine.generation.plan import ComputedStep, Output, Plan, make_plan
from loradesk_engine.generation.scheduler import Chunk
from loradesk_engine.generation.sequence import AdapterState, TokenSequence, XLoraState

PROMPT = 5
OUTPUT = PassOutput(torch.empty(0), torch.empty(0), None)


def sequence(name: str, *, ready: bool | None) -> TokenSequence:
    """One that decodes. ready: whether its scaling row has run; None outside X-LoRA mode."""
    state = None if ready is None else XLoraState(ready=torch.zeros(1, 1) if ready else None)
    anything: Any = None
    return TokenSequence(
        request_id=name,
        tokens=list(range(PROMPT)),
        prompt_length=PROMPT,
        limit=100,
        sampling=Sampling(),
        stop_ids=frozenset(),
        state=AdapterState({}, "base"),
        follow_activation=False,
        want_scalings=False,
        stream=anything,
        stops=anything,
        generator=anything,
        xlora=state,
    )


def last(one: TokenSequence) -> Chunk:
    return Chunk(one, len(one.tokens) - 1, 1)


def prompt(one: TokenSequence) -> Chunk:
    return Chunk(one, 0, len(one.tokens))


def test_outside_xlora_everything_is_computed() -> None:
    chunks = [last(sequence("a", ready=None)), prompt(sequence("b", ready=None))]
    assert make_plan(chunks, None) == Plan(tuple(chunks))


def test_a_sequence_whose_guess_was_wrong_catches_up_beside_the_others() -> None:
    right, wrong = last(sequence("right", ready=True)), last(sequence("wrong", ready=False))
    assert make_plan((wrong, right), None) == Plan((right,), (wrong,))


def test_without_a_sequence_that_can_decode_nobody_catches_up() -> None:
    chunks = [last(sequence("a", ready=False)), last(sequence("b", ready=False))]
    assert make_plan(chunks, None) == Plan(tuple(chunks))


def test_a_prompt_brings_its_own_scaling_pass_so_a_wrong_guess_joins_it() -> None:
    chunks = [
        last(sequence("right", ready=True)),
        last(sequence("wrong", ready=False)),
        prompt(sequence("p", ready=False)),
    ]
    assert make_plan(chunks, None) == Plan(tuple(chunks))


def test_a_begun_step_is_used_and_a_new_request_waits_for_the_next() -> None:
    right, wrong = last(sequence("right", ready=True)), last(sequence("wrong", ready=False))
    started = ComputedStep.uniform((right, wrong), 2, OUTPUT)
    new = prompt(sequence("new", ready=False))
    assert make_plan((right, wrong), started) == Plan((right,), (wrong,), started)
    assert make_plan([right, wrong, new], started) == Plan((right,), (wrong,), started, others_wait=True)


def test_a_begun_step_outlives_a_sequence_that_ended() -> None:
    ended, goes_on = last(sequence("ended", ready=None)), last(sequence("goes on", ready=None))
    started = ComputedStep.uniform((ended, goes_on), 0, OUTPUT)
    assert make_plan((goes_on,), started) == Plan((goes_on,), (), started)


def test_a_begun_step_is_ignored_after_a_switch_of_adapters() -> None:
    one = sequence("a", ready=None)
    started = ComputedStep.uniform((last(one),), 0, OUTPUT)
    one.state = AdapterState({"adapter": 1.0}, "adapter")
    assert make_plan((last(one),), started) == Plan((last(one),))


def test_a_begun_step_is_ignored_if_it_has_another_position_or_no_scaling_row() -> None:
    one = sequence("a", ready=None)
    started = ComputedStep.uniform((Chunk(one, 3, 1),), 0, OUTPUT)
    assert make_plan((last(one),), started) == Plan((last(one),))
    wrong = last(sequence("wrong", ready=False))
    assert make_plan((wrong,), ComputedStep.uniform((wrong,), 0, OUTPUT)) == Plan((wrong,))


def test_plan_and_output_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Plan(()).others_wait = True  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Output(()).started = None  # type: ignore[misc]
