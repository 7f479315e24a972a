"""The conversation: its turns, what is kept of it and what the model is asked."""

from __future__ import annotations

import json

import pytest

from loradesk_app.chat.conversation import Turn, from_json, messages, to_json, to_markdown
from loradesk_app.chat.conversation_model import TURN_ROLE, ConversationModel
from loradesk_engine.events import AdaptersActivated, Problem, RequestFinished, RequestStarted, TokensGenerated


@pytest.fixture
def model(qapp, qtmodeltester, script):
    model = ConversationModel()
    model.set_adapters(script.ADAPTERS)
    yield model
    qtmodeltester.check(model, force_py=True)


def play(model: ConversationModel, events: list, mode: str = "xlora") -> None:
    for event in events:
        if isinstance(event, RequestStarted):
            model.start_answer(event, "demo", mode)
        elif isinstance(event, TokensGenerated):
            model.add_tokens(event)
        elif isinstance(event, RequestFinished):
            model.finish_answer(event)


def test_an_answer_grows_and_ends(model, script):
    request_id = model.ask("What is 12 + 30?")
    assert model.open_request == request_id
    play(model, script.answer_events(request_id))
    answer = model.index(1).data(TURN_ROLE)
    assert answer.text == "".join(script.ANSWER)
    assert (answer.state, answer.tokens, answer.tokens_per_second) == ("done", len(script.ANSWER), 182.4)
    assert model.open_request is None


def test_shares_are_the_mean_scalings_behind_the_answer(model, script):
    request_id = model.ask("sum")
    play(model, script.answer_events(request_id))
    rows = script.scalings_for(script.PROMPT + script.ANSWER)[len(script.PROMPT) - 1 : -1]
    expected = rows.mean(axis=(0, 1))
    shares = model.turn(1).shares
    assert [shares[name] for name in script.ADAPTERS] == pytest.approx(expected.tolist(), abs=1e-5)


def test_lora_shares_are_the_weights_and_grow_with_activations(model):
    request_id = model.ask("hello")
    model.start_answer(RequestStarted(request_id, 5, 0, {"json": 1.0}), "demo", "lora")
    model.note_activation(AdaptersActivated({"bard": 0.5}).weights)
    assert model.turn(1).shares == {"json": 1.0, "bard": 0.5}


def test_events_of_another_request_change_nothing(model, script):
    model.ask("hello")
    play(model, script.answer_events("somebody else's"))
    assert model.turn(1).text == ""


def test_regenerate_drops_the_answer_only(model, script):
    play(model, script.answer_events(model.ask("hello")))
    again = model.regenerate()
    assert again == model.open_request
    assert [turn.text for turn in model.turns] == ["hello", ""]
    assert model.regenerate() is None


def test_editing_replaces_the_last_question_and_its_answer(model, script):
    for text in ("one", "two"):
        play(model, script.answer_events(model.ask(text)))
    model.replace_last_question("three")
    assert [turn.text for turn in model.turns if turn.role == "user"] == ["one", "three"]
    assert model.rowCount() == 4


def test_failed_answers_are_not_sent_to_the_model(model):
    request_id = model.ask("hello")
    model.fail_answer(request_id, Problem("RequestError", "Too long."))
    assert [message.content for message in messages(model.turns)] == ["hello"]
    assert messages(model.turns, "Be brief.")[0].role == "system"


def test_what_is_kept_comes_back(model, script):
    play(model, script.answer_events(model.ask("hello")))
    model.ask("unfinished")
    model.add_tokens(TokensGenerated(model.open_request, "half", (1,), ("half",)))
    kept = json.loads(json.dumps(to_json(model.turns)))
    turns = from_json(kept)
    assert [turn.text for turn in turns] == [turn.text for turn in model.turns]
    assert turns[-1].state == "stopped"
    assert turns[1].shares == pytest.approx(model.turn(1).shares, abs=1e-4)


@pytest.mark.parametrize(
    "damaged",
    [None, [], {}, {"turns": 3}, {"turns": [1, {}, {"role": "nobody"}]}, {"turns": [{"role": "user", "text": 7}]}],
)
def test_damaged_files_never_raise(damaged):
    assert all(turn.text == "" for turn in from_json(damaged))


def test_markdown_names_who_said_what():
    turns = [Turn("user", "Hi"), Turn("assistant", "Hello.", model="demo", shares={"bard": 0.5})]
    assert to_markdown(turns) == "# Conversation\n\n## You\n\nHi\n\n## demo\n\nHello.\n\n*bard 0.50*\n"
