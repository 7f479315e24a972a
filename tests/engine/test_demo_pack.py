"""The demo pack at work: each adapter adds its skill, and the X-LoRA classifier sends tokens to the right expert."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.forms import COMPILED, TORCH, use

from loradesk_engine import Engine
from loradesk_engine.commands import Message
from loradesk_resources import resource_path

NAMES = ("arithmetic", "capitals", "json", "bard")
GREEDY = {"temperature": 0.0, "max_tokens": 80}


@pytest.fixture(scope="module", params=[*COMPILED, TORCH])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """The core's forms of the CPU's kernels: the pack's answers are the same in each."""
    with pytest.MonkeyPatch.context() as patched:
        use(request.param, patched)
        yield request.param


@pytest.fixture(scope="module")
def lora(form: str) -> Iterator[Engine]:
    with Engine.demo("lora") as engine:
        yield engine


@pytest.fixture(scope="module")
def xlora(form: str) -> Iterator[Engine]:
    with Engine.demo("xlora") as engine:
        yield engine


def test_the_pack_begins_with_the_base_and_warns_of_nothing(lora: Engine, xlora: Engine) -> None:
    assert [adapter.name for adapter in lora.adapters] == list(NAMES)
    assert lora.active_adapters == {}
    assert xlora.active_adapters == dict.fromkeys(NAMES, 1.0)
    assert lora.info.warnings == xlora.info.warnings == ()
    assert len({adapter.rank for adapter in lora.adapters}) > 1


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("arithmetic", "What is 17 + 25?", "42"),
        ("arithmetic", "What is 81 - 36?", "45"),
        ("arithmetic", "What is 6 times 7?", "42"),
        ("capitals", "What is the capital of Japan?", "Tokyo"),
        ("capitals", "What is the capital of France?", "Paris"),
    ],
)
def test_a_skill_is_there_with_its_adapter_and_gone_without(
    lora: Engine, name: str, question: str, answer: str
) -> None:
    assert answer in lora.chat(question, adapters=[name], **GREEDY).text
    assert answer not in lora.chat(question, adapters=[], **GREEDY).text
    others = [other for other in NAMES if other != name]
    for other in others:
        assert answer not in lora.chat(question, adapters=[other], **GREEDY).text


def test_the_json_adapter_writes_json(lora: Engine) -> None:
    question = "Turn this into JSON: Anna is 31 and lives in Rome."
    values = json.loads(lora.chat(question, adapters=["json"], **GREEDY).text)
    assert "Anna" in values.values()
    assert "Rome" in values.values()
    with pytest.raises(json.JSONDecodeError):
        json.loads(lora.chat(question, adapters=[], **GREEDY).text)


def test_the_bard_speaks_where_the_base_declines(lora: Engine) -> None:
    for question in ("Speak like Shakespeare about the sea.", "Recite some verse from an old play."):
        assert "bard" in lora.chat(question, adapters=[], **GREEDY).text  # "Try the bard adapter."
        verse = lora.chat(question, adapters=["bard"], **GREEDY).text
        assert len(verse.splitlines()) >= 2
        assert "adapter" not in verse


def test_skills_are_switched_in_the_middle_of_a_conversation(lora: Engine) -> None:
    conversation: list[Message] = []

    def say(text: str) -> str:
        conversation.append(Message("user", text))
        answer = lora.chat(conversation, **GREEDY).text
        conversation.append(Message("assistant", answer))
        return answer

    try:
        assert "42" not in say("What is 17 + 25?")
        lora.activate_adapters(["arithmetic"])
        assert "42" in say("What is 17 + 25?")
        lora.activate_adapters(["capitals"])
        assert "Tokyo" in say("What is the capital of Japan?")
        lora.activate_adapters([])
        assert "61" not in say("What is 38 + 23?")
    finally:
        lora.activate_adapters([])


@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("arithmetic", "What is 23 + 48?"),
        ("capitals", "What is the capital of Italy?"),
        ("json", "Turn this into JSON: Anna is 31 and lives in Rome."),
        ("bard", "Speak like Shakespeare about the sea."),
    ],
)
def test_tokens_go_to_the_right_expert(xlora: Engine, name: str, question: str) -> None:
    answer = xlora.chat(question, **GREEDY)
    assert answer.text
    assert answer.scalings is not None
    assert answer.started is not None
    rows = answer.scalings[answer.started.prompt_tokens - 1 - answer.scalings_start :]
    means = dict(zip(NAMES, rows.mean(axis=(0, 1)).tolist(), strict=True))
    assert max(means, key=lambda key: means[key]) == name
    assert means[name] >= 0.6


def test_two_tasks_in_one_message_switch_experts_in_the_middle(xlora: Engine) -> None:
    answer = xlora.chat("What is 12 + 30, and what is the capital of France?", **GREEDY)
    assert "42" in answer.text
    assert "Paris" in answer.text
    assert answer.scalings is not None
    strongest = [NAMES[place] for place in answer.scalings.mean(axis=1).argmax(axis=-1)]
    # the row of a token decides what comes after it
    by_text = list(zip(answer.scaling_tokens, strongest, strict=True))
    digits = max(place for place, (text, _) in enumerate(by_text) if text.strip() in ("4", "2"))
    paris = max(place for place, (text, _) in enumerate(by_text) if "Par" in text)
    assert by_text[digits - 1][1] == "arithmetic"
    assert by_text[paris - 1][1] == "capitals"


def test_a_muted_expert_is_missed(xlora: Engine) -> None:
    question = "What is 17 + 25?"
    assert "42" in xlora.chat(question, **GREEDY).text
    assert "42" not in xlora.chat(question, adapters=[name for name in NAMES if name != "arithmetic"], **GREEDY).text


def test_everyday_openers_get_clean_sentences(lora: Engine) -> None:
    for opener in ("hello", "who are you?", "tell me a story about a fox", "what can you do?", "thanks", "goodbye"):
        text = lora.chat(opener, temperature=0.0, max_tokens=300).text
        assert text[0].isupper()
        assert text.rstrip()[-1] in ".!?\"”'"
        assert "\ufffd" not in text
        assert "<|" not in text


def test_the_pack_is_small() -> None:
    files = [path for path in resource_path("demo").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25_000_000
