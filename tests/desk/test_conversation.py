"""A conversation is a tree: nothing is overwritten, and one path is shown."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loradesk_desk.conversation import Conversation
from loradesk_desk.conversation_file import from_json, to_json, to_markdown
from loradesk_desk.errors import ConversationError
from loradesk_desk.message import Message
from loradesk_desk.provenance import AdapterUse, Provenance


@pytest.fixture
def talk() -> Conversation:
    """Two questions; the first was answered twice."""
    conversation = Conversation(system_prompt="Be brief.")
    conversation.append(Message("user", "What is 12 + 30?", id="q1"))
    conversation.append(Message("assistant", "41", id="a1"))
    conversation.add(Message("assistant", "42", id="a1b", parent="q1"))
    conversation.append(Message("user", "Thanks", id="q2"))
    conversation.append(Message("assistant", "", id="a2", state="failed"))
    return conversation


def ids(messages) -> list[str]:
    return [message.id for message in messages]


def test_another_answer_is_a_sibling_and_is_shown(talk):
    assert ids(talk.path) == ["q1", "a1b", "q2", "a2"]
    assert ids(talk.siblings("a1")) == ["a1", "a1b"]
    talk.show("a1")
    assert ids(talk.path) == ["q1", "a1"]
    talk.show("a1b")  # the path below it goes on as it was
    assert ids(talk.path) == ["q1", "a1b", "q2", "a2"]


def test_showing_a_deep_message_shows_all_above_it(talk):
    talk.show("a1")
    talk.show("a2")
    assert ids(talk.path) == ["q1", "a1b", "q2", "a2"]


def test_an_edited_first_question_is_another_beginning(talk):
    talk.add(Message("user", "What is 2 + 2?", id="q1b"))
    assert ids(talk.path) == ["q1b"]
    assert ids(talk.children(None)) == ["q1", "q1b"]


def test_the_prompt_leaves_out_what_does_not_count(talk):
    assert [(m.role, m.content) for m in talk.prompt()] == [
        ("system", "Be brief."),
        ("user", "What is 12 + 30?"),
        ("assistant", "42"),
        ("user", "Thanks"),
    ]
    talk["a1b"].excluded = True
    assert "42" not in [m.content for m in talk.prompt()]
    assert [m.content for m in talk.prompt("a1")] == ["Be brief.", "What is 12 + 30?", "41"]


def test_what_is_removed_can_be_put_back(talk):
    before = {message.id: message.parent for message in talk}
    removed = talk.remove("a1b")
    assert ids(removed) == ["a1b", "q2", "a2"]
    assert ids(talk.path) == ["q1", "a1"]
    talk.put_back(removed)
    assert {message.id: message.parent for message in talk} == before
    assert ids(talk.path) == ["q1", "a1b", "q2", "a2"]


def test_a_fork_shares_nothing(talk):
    fork = talk.fork("q2")
    assert [message.text for message in fork.path] == ["What is 12 + 30?", "42", "Thanks"]
    assert not {message.id for message in fork} & {message.id for message in talk}
    fork.path[0].shares["arithmetic"] = 1.0
    assert not talk["q1"].shares


@pytest.mark.parametrize(
    "message", [Message("user", id="q1"), Message("user", id="new", parent="nobody")], ids=["id taken", "no parent"]
)
def test_what_makes_no_tree_is_refused(talk, message):
    with pytest.raises(ConversationError):
        talk.add(message)
    assert len(talk) == 5


def test_the_title_is_the_first_question_until_there_is_one(talk):
    assert talk.display_title == "What is 12 + 30?"
    talk.title = "Sums"
    assert talk.display_title == "Sums"
    assert len(Conversation([Message("user", "long " * 100)]).display_title) <= 60


def test_json_keeps_the_tree_the_choice_and_the_provenance(talk):
    talk.show("a1")
    talk["a1"].shares = {"arithmetic": 0.75}
    record = Provenance(base="models/demo", sampling={"seed": 7}, adapters=(AdapterUse("arithmetic", rank=8),))
    record = record.with_step(0, {"arithmetic": 1.0}).with_step(3, {"arithmetic": 0.5})
    data = json.loads(json.dumps(to_json(talk, {"a1": record})))
    back, provenance = from_json(data)
    assert [message.text for message in back.path] == ["What is 12 + 30?", "41"]
    assert [message.text for message in back] == [message.text for message in talk]
    assert back.system_prompt == "Be brief."
    assert back.path[1].shares == {"arithmetic": 0.75}
    assert provenance == {back.path[1].id: record}


def test_version_1_is_a_list_of_turns():
    turns = [{"role": "user", "text": "hi"}, {"role": "assistant", "text": "hello", "state": "streaming", "tokens": 3}]
    conversation, _ = from_json({"loradesk_conversation": 1, "turns": [*turns, "rubbish", {"role": "wizard"}]})
    assert [(m.role, m.text, m.state) for m in conversation.path] == [
        ("user", "hi", "done"),
        ("assistant", "hello", "stopped"),
    ]
    assert conversation.path[1].tokens == 3


@pytest.mark.parametrize("data", [None, [], {}, {"turns_": []}, {"loradesk_conversation": 3, "messages": []}])
def test_what_is_no_conversation_is_refused(data):
    with pytest.raises(ConversationError):
        from_json(data)


def test_markdown_is_the_shown_path(talk):
    text = to_markdown(talk)
    assert "42" in text
    assert "41" not in text


def test_weights_over_an_answer_are_steps():
    record = Provenance().with_step(0, {"a": 1.0}).with_step(4, {"a": 1.0}).with_step(6, {"b": 0.5})
    assert [step.token for step in record.steps] == [0, 6]
    assert record.weights_at(5) == {"a": 1.0}
    assert record.weights_at(6) == {"b": 0.5}
    assert record.with_step(6, {"a": 1.0}).steps == record.steps[:1]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["id", "parent", "role", "text", "state", "shares", "created", "tokens", "provenance"])


@given(st.lists(st.dictionaries(fields, values | st.sampled_from(["user", "assistant", "x"])), max_size=6), values)
@settings(deadline=None, max_examples=60)
def test_any_json_gives_a_tree_or_a_typed_error(entries, shown):
    data = {"loradesk_conversation": 2, "messages": entries, "shown": shown}
    conversation, _ = from_json(data)
    for message in conversation:
        assert message in conversation.path_to(message.id)
    assert all(isinstance(message.text, str) for message in conversation)


class Model:
    """What a tree must be, written as plainly as possible: parent by id."""

    def __init__(self) -> None:
        self.parents: dict[str, str | None] = {}

    def below(self, id: str) -> set[str]:
        found = {id}
        while more := {child for child, parent in self.parents.items() if parent in found} - found:
            found |= more
        return found


@given(
    st.lists(st.tuples(st.sampled_from(["add", "append", "show", "remove", "undo"]), st.integers(0, 50)), max_size=40)
)
@settings(deadline=None, max_examples=100)
def test_any_order_of_changes_keeps_a_tree_and_a_path(actions):
    talk, model, removed = Conversation(), Model(), []
    for number, (action, pick) in enumerate(actions):
        there = list(model.parents)
        chosen = there[pick % len(there)] if there else None
        if action == "add":
            talk.add(Message("user", id=str(number), parent=chosen))
            model.parents[str(number)] = chosen
        elif action == "append":
            end = talk.path[-1].id if talk.path else None
            talk.append(Message("assistant", id=str(number)))
            model.parents[str(number)] = end
        elif action == "show" and chosen:
            talk.show(chosen)
            assert chosen in ids(talk.path)
        elif action == "remove" and chosen:
            removed = talk.remove(chosen)
            assert set(ids(removed)) == model.below(chosen)
            for id in model.below(chosen):
                del model.parents[id]
        elif action == "undo" and removed and (removed[0].parent is None or removed[0].parent in talk):
            talk.put_back(removed)
            model.parents |= {message.id: message.parent for message in removed}
            removed = []
        assert {message.id: message.parent for message in talk} == model.parents
        path = talk.path
        assert [message.parent for message in path] == [None, *ids(path)][: len(path)]
        assert not path or not talk.children(path[-1].id)  # it leads to an end
