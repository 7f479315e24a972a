"""What is kept of conversations, and that nothing of it is lost."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loradesk_desk import migrations
from loradesk_desk.conversation import Conversation
from loradesk_desk.database import MARK_END, MARK_START, Database
from loradesk_desk.errors import StoreError
from loradesk_desk.message import Message
from loradesk_desk.provenance import Provenance
from loradesk_desk.scalings import KeptScalings, pack, unpack
from loradesk_desk.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "conversations.sqlite"


@pytest.fixture
def database(path: Path):
    database = Database(path)
    yield database
    database.close()


def talk(*texts: str) -> Conversation:
    conversation = Conversation()
    for number, text in enumerate(texts):
        conversation.append(Message(("user", "assistant")[number % 2], text))
    return conversation


def test_a_tree_comes_back_as_it_was(database):
    conversation = talk("What is 1 + 1?", "3", "Really?", "No")
    first = conversation.path[0].id
    better = conversation.add(Message("assistant", "2", parent=first, tokens=1, shares={"arithmetic": 0.5}))
    conversation.show(conversation.children(first)[0].id)
    conversation.draft, conversation.system_prompt = "unsent", "Be brief."
    database.write(conversation)
    back = database.read(conversation.id)
    assert list(back) == list(conversation)
    assert back.path == conversation.path
    assert back.shown == conversation.shown
    assert (back.draft, back.system_prompt, back.created) == ("unsent", "Be brief.", conversation.created)
    back.show(better.id)
    database.write_head(back)
    assert [message.text for message in database.read(conversation.id).path] == ["What is 1 + 1?", "2"]


def test_messages_are_kept_one_by_one(database):
    conversation = talk("hello", "")
    answer = conversation.path[1]
    answer.state = "streaming"
    database.write(conversation)
    for word in ("one ", "two ", "three"):
        answer.text += word
        database.write_messages(conversation, [answer])
    assert database.read(conversation.id).path[1].text == "one two three"
    assert not database.search("three"), "an answer is indexed when it has ended"
    answer.state = "done"
    database.write_messages(conversation, [answer])
    assert [hit.message for hit in database.search("three")] == [answer.id]


def test_removed_messages_take_what_follows_with_them(database):
    conversation = talk("a question", "an answer", "another question", "another answer")
    database.write(conversation)
    database.write_provenance(conversation.path[3].id, Provenance(base="b"))
    second = conversation.path[1].id
    gone = conversation.path[3].id
    conversation.remove(second)
    database.remove_messages([second])
    assert [message.text for message in database.read(conversation.id)] == ["a question"]
    assert database.provenance(gone) is None
    assert not database.search("another")


def test_entries_are_the_newest_first_and_pinned_ones_before_them(database):
    conversations = [talk(f"question {number}") for number in range(3)]
    for conversation in conversations:
        database.write(conversation)
    database.mark(conversations[0].id, pinned=True, folder="sums")
    entries = database.entries()
    assert entries[0].title == "question 0"
    assert (entries[0].pinned, entries[0].folder, entries[0].messages) == (True, "sums", 1)
    database.remove(conversations[0].id)
    assert {entry.title for entry in database.entries()} == {"question 1", "question 2"}
    with pytest.raises(StoreError):
        database.read(conversations[0].id)


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        ("Die Straße nach Köln ist gesperrt.", "straße", "Straße"),
        ("The lamplight fell on the stair.", "mpli", "mpli"),
        ("كيف حالك اليوم؟", "حالك", "حالك"),
        ("שלום עולם", "עולם", "עולם"),
        ("今天天气很好", "天气很", "天气很"),
        ("今天天气很好", "天气", "天气"),  # two characters: under a trigram
        ("fun 🎉 party", "🎉", "🎉"),
        ('He said "stop" AND left* (NEAR)', '"stop" AND', '"stop" AND'),
        ("100 % sure_thing", "0 %", "0 %"),
        ("100 % sure_thing", "e_", "e_"),
    ],
)
def test_search_finds_any_part_in_any_script(database, text, wanted, found):
    conversation = talk(text, "something else")
    conversation.title = f"About {text}"
    database.write(conversation)
    title, message = database.search(wanted)
    assert (title.conversation, title.message) == (conversation.id, "")
    assert message.message == conversation.path[0].id
    for hit in (title, message):
        assert f"{MARK_START}{found}{MARK_END}" in hit.snippet
    assert not database.search("nowhere to be found")
    assert not database.search("  ")


def test_search_follows_changes_of_text_and_title(database):
    conversation = talk("about lamps")
    conversation.title = "Lamps"
    database.write(conversation)
    conversation.path[0].text, conversation.title = "about chairs", "Chairs"
    database.write(conversation)
    assert not database.search("lamps")
    assert len(database.search("chairs")) == 2
    database.remove(conversation.id)
    assert not database.search("chairs")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (33, 42, 4)])
def test_scalings_lose_at_most_half_a_step(bits, shape):
    array = np.random.default_rng(3).normal(0, 2, shape).astype(np.float32)
    data = pack(array, bits)
    back = unpack(data)
    assert (back.shape, back.dtype) == (shape, np.float32)
    if array.size:
        step = (float(array.max()) - float(array.min())) / (2**bits - 1)
        assert np.abs(back.astype(float) - array).max() <= step / 2 + 4 * np.finfo(np.float32).eps * np.abs(array).max()


@pytest.mark.parametrize("cut", [0, 5, 12, 20, -1])
def test_damaged_scalings_are_refused(cut):
    data = pack(np.ones((5, 3), np.float32), 16)
    with pytest.raises(StoreError):
        unpack(data[:cut])


def test_hostile_scalings_ask_for_no_memory():
    from loradesk_desk.scalings import _HEAD

    with pytest.raises(StoreError):
        unpack(_HEAD.pack(8, 2, 0.0, 1.0) + b"\xff" * 8 + b"x")


def test_scalings_stay_with_their_answer(database):
    conversation = talk("hello", "hi")
    database.write(conversation)
    answer = conversation.path[1].id
    whole = np.random.default_rng(1).random((6, 42, 4), np.float32)
    database.write_scalings(answer, KeptScalings(9, ("a", "b", "c", "d"), whole.mean(axis=1), whole))
    back = database.scalings(answer)
    assert (back.start, back.adapters) == (9, ("a", "b", "c", "d"))
    np.testing.assert_allclose(back.means, whole.mean(axis=1), atol=1 / 131070 + 1e-7)
    np.testing.assert_allclose(back.whole, whole, atol=1 / 510 + 1e-6)
    assert database.scalings(conversation.path[0].id) is None


def test_an_answer_under_way_is_stopped_when_the_process_is_gone(path):
    first = Database(path)
    conversation = talk("hello", "half an ans")
    conversation.path[1].state = "streaming"
    first.write(conversation)
    first.close()
    second = Database(path)
    answer = second.read(conversation.id).path[1]
    assert (answer.text, answer.state) == ("half an ans", "stopped")
    assert [hit.message for hit in second.search("half an")] == [answer.id]
    second.close()


def test_a_damaged_database_steps_aside(path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
    database = Database(path)
    assert database.entries() == []
    assert database.set_aside is not None
    assert database.set_aside.read_bytes().endswith(bytes(range(256)))
    database.close()


def test_another_programs_database_is_left_alone(path):
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not a database of Loradesk"):
        Database(path)
    assert path.read_bytes() == before


def test_a_newer_database_is_left_alone(path):
    Database(path).close()
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(StoreError, match="Update Loradesk"):
        Database(path)


def test_a_migration_keeps_a_copy_and_a_failed_one_changes_nothing(path, monkeypatch):
    database = Database(path)
    conversation = talk("kept")
    database.write(conversation)
    database.close()

    def half(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE conversation ADD COLUMN colour TEXT")
        raise sqlite3.OperationalError("disk I/O error")

    version = len(migrations.MIGRATIONS)
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, half))
    with pytest.raises(StoreError):
        Database(path)
    monkeypatch.setattr(
        migrations,
        "MIGRATIONS",
        (*migrations.MIGRATIONS[:version], lambda c: c.execute("ALTER TABLE conversation ADD COLUMN colour TEXT")),
    )
    database = Database(path)
    assert database.read(conversation.id).path[0].text == "kept"
    database.close()
    copy = path.with_name(f"{path.name}.version-{version}")
    with sqlite3.connect(copy) as old:
        assert old.execute("PRAGMA user_version").fetchone()[0] == version
        assert old.execute("SELECT text FROM message").fetchall() == [("kept",)]
    old.close()


def test_a_path_below_a_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as caught:
        Database(tmp_path / "file" / "conversations.sqlite")
    assert "conversations.sqlite" in str(caught.value.file)
    assert caught.value.remedy


def test_the_store_runs_jobs_in_order_and_survives_their_errors(path):
    opened: list[object] = []
    store = Store(path, opened.append)
    conversation = talk("hello")
    futures = [store.run(lambda database: database.write(conversation))]
    futures.append(store.run(lambda database: database.read("nothing")))
    futures.append(store.run(lambda database: database.entries()))
    assert [entry.title for entry in futures[2].result(60)] == ["hello"]
    assert isinstance(futures[1].exception(60), StoreError)
    assert store.close(60)
    assert isinstance(opened[0], Database)


def test_a_store_that_cannot_open_fails_every_job(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "conversations.sqlite")
    assert isinstance(store.run(lambda database: database.entries()).exception(60), StoreError)
    assert store.close(60)


WRITER = """
import sys
from pathlib import Path
from loradesk_desk.conversation import Conversation
from loradesk_desk.database import Database
from loradesk_desk.message import Message
database = Database(Path(sys.argv[1]))
number = int(sys.argv[2])
while True:
    conversation = Conversation(id=f"c{number}")
    answer = None
    for turn in range(3):
        conversation.append(Message("user", f"question {number} {turn}"))
        answer = conversation.append(Message("assistant", state="streaming"))
        database.write_messages(conversation, conversation.path[-2:])
        for token in range(5):
            answer.text += f"word{token} "
            database.write_messages(conversation, [answer])
        answer.state = "done"
        database.write_messages(conversation, [answer])
        print(conversation.id, answer.id, flush=True)
    if number % 3 == 0:
        database.remove_messages([conversation.path[4].id])
        print("removed", conversation.path[4].id, flush=True)
    number += 1
"""


def kill_and_look(path: Path, times: int, seed: int) -> None:
    """Kill a process that writes at random moments, and look for every message that it reported as finished."""
    chance = random.Random(seed)
    number = 0
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(number)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(chance.randint(1, 20))]
        process.kill()
        lines += [line.split() for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        process.wait()
        process.stdout.close()
        database = Database(path)
        assert database.set_aside is None
        for conversation, message in (line for line in lines if line and line[0] != "removed"):
            there = database.read(conversation)
            if message in there:
                assert there[message].text == "word0 word1 word2 word3 word4 "
                assert there[message].state == "done"
            else:  # only what the process removes itself may be gone
                assert int(conversation[1:]) % 3 == 0
                assert len(there) == 4
        number = 1 + max(int(entry.id[1:]) for entry in database.entries())
        assert database._connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        database._connection.execute("INSERT INTO message_text(message_text) VALUES ('integrity-check')")
        database.close()


def test_killed_processes_lose_no_finished_message(path):
    kill_and_look(path, 6, seed=1)


@pytest.mark.slow
def test_two_hundred_kills_lose_no_finished_message(path):
    kill_and_look(path, 200, seed=2)
