"""The JSON conversation of earlier versions becomes part of the database, once."""

from __future__ import annotations

import json

import pytest

from loradesk_desk.database import Database
from loradesk_desk.takeover import take_over

TURNS = [
    {"role": "user", "text": "What is 12 + 30?", "state": "done"},
    {"role": "assistant", "text": "42", "state": "done", "model": "demo", "mode": "xlora", "shares": {"sums": 0.8}},
]
STATE = {
    "loradesk_conversation": 1,
    "turns": TURNS,
    "draft": "and now",
    "previous": [{"role": "user", "text": "before that"}],
}


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "conversations.sqlite")
    yield database
    database.close()


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "conversation.json"
    file.write_text(json.dumps(STATE))
    return file


def test_both_conversations_and_the_draft_are_taken_over(database, file):
    taken = take_over(file, database)
    current = database.read(taken.current.id)
    assert [(m.role, m.text, m.mode, m.shares) for m in current.path] == [
        ("user", "What is 12 + 30?", "none", {}),
        ("assistant", "42", "xlora", {"sums": 0.8}),
    ]
    assert current.draft == "and now"
    assert [m.text for m in database.read(taken.previous.id).path] == ["before that"]
    assert [entry.title for entry in database.entries()] == ["What is 12 + 30?", "before that"]


def test_the_file_is_kept_as_a_backup_and_read_once(database, file):
    content = file.read_bytes()
    take_over(file, database)
    assert not file.exists()
    assert (file.parent / "conversation.before-database.json").read_bytes() == content
    assert take_over(file, database).current is None
    assert len(database.entries()) == 2


def test_a_takeover_that_was_cut_off_is_made_once(database, file):
    content = file.read_bytes()
    take_over(file, database)
    file.write_bytes(content)  # as if the process had been killed before the file was renamed
    take_over(file, database)
    assert len(database.entries()) == 2


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"x": 1}', b"\xff"])
def test_a_damaged_file_steps_aside_whole(database, file, content):
    file.write_bytes(content)
    taken = take_over(file, database)
    assert taken.problem is not None
    assert taken.problem.file
    assert (file.parent / "conversation.damaged.json").read_bytes() == content
    assert not database.entries()


def test_nothing_to_take_over_is_no_problem(database, tmp_path):
    assert take_over(tmp_path / "conversation.json", database).problem is None
