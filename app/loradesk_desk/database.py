"""The conversations' SQLite database, used by one thread: the store's."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from loradesk_desk.conversation import Conversation
from loradesk_desk.errors import StoreError
from loradesk_desk.message import Message
from loradesk_desk.migrations import migrate
from loradesk_desk.provenance import Provenance
from loradesk_desk.scalings import KeptScalings, pack, unpack

BUSY_SECONDS = 5.0
MAX_HITS = 200
MARK_START, MARK_END = "\x02", "\x03"
"""Around what was found in `Hit.snippet`; characters that no text shows."""
SHORTEST_TRIGRAM = 3

_COLUMNS = ("id", "parent", "role", "text", "state", "created", "excluded")
_FIGURES = tuple(field.name for field in fields(Message) if field.name not in (*_COLUMNS, "request_id", "problem"))


@dataclass(frozen=True)
class Entry:
    """A conversation in the list.

    Attributes:
        title: as given or made of the first question.
        created, updated: seconds since the epoch.
        messages: how many there are, alternatives included.
    """

    id: str
    title: str
    created: float
    updated: float
    pinned: bool
    folder: str
    messages: int


@dataclass(frozen=True)
class Hit:
    """A message (or title, with an empty `message`) that holds what was searched for."""

    conversation: str
    message: str
    snippet: str


class Database:
    """Opens or makes the database and brings it to the newest version.

    Answers that were under way when the process ended are marked as stopped.

    Raises:
        StoreError: it cannot be opened. A damaged file is set aside as `NAME.damaged-TIME` and a new one is made; then
            `set_aside` holds its path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set_aside: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._open()
        except sqlite3.DatabaseError as problem:
            if isinstance(problem, sqlite3.OperationalError) or not path.exists():
                raise self._error(problem, "opened") from problem
            self.set_aside = self._step_aside()
            try:
                self._connection = self._open()
            except sqlite3.Error as second:
                raise self._error(second, "opened") from second
        except OSError as problem:
            raise self._error(problem, "opened") from problem

    def close(self) -> None:
        self._connection.close()

    # -- conversations ------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All conversations: pinned ones first, then by the time of their last change."""
        with self._guarded("read"):
            rows = self._connection.execute(
                """SELECT c.id, c.title, c.created, c.updated, c.pinned, c.folder, count(m.place),
                          (SELECT text FROM message WHERE conversation = c.id AND role = 'user' AND trim(text) <> ''
                           ORDER BY place LIMIT 1)
                   FROM conversation c LEFT JOIN message m ON m.conversation = c.id
                   GROUP BY c.id ORDER BY c.pinned DESC, c.updated DESC, c.id"""
            ).fetchall()
        entries = []
        for id, title, created, updated, pinned, folder, count, first in rows:
            shown = title or Conversation([Message("user", first or "")]).display_title
            entries.append(Entry(id, shown, created, updated, bool(pinned), folder, count))
        return entries

    def read(self, conversation_id: str) -> Conversation:
        """A whole conversation.

        Raises:
            StoreError: there is none of this id.
        """
        with self._guarded("read"):
            row = self._connection.execute(
                "SELECT title, created, system_prompt, draft FROM conversation WHERE id = ?", (conversation_id,)
            ).fetchone()
            messages = self._connection.execute(
                f"SELECT {', '.join(_COLUMNS)}, figures FROM message WHERE conversation = ? ORDER BY place",
                (conversation_id,),
            ).fetchall()
            shown = self._connection.execute(
                "SELECT parent, child FROM shown WHERE conversation = ?", (conversation_id,)
            ).fetchall()
        if row is None:
            raise StoreError("The conversation is no longer there.", file=self.path, field=conversation_id)
        title, created, system_prompt, draft = row
        return Conversation(
            map(_message, messages),
            {parent or None: child for parent, child in shown},
            id=conversation_id,
            title=title,
            created=created,
            system_prompt=system_prompt,
            draft=draft,
        )

    def write(self, conversation: Conversation) -> None:
        """Keep a whole conversation; messages that it no longer has are removed."""
        with self._transaction():
            self._write_head(conversation)
            kept = {message.id for message in conversation}
            there = self._connection.execute("SELECT id FROM message WHERE conversation = ?", (conversation.id,))
            gone = [(id,) for (id,) in there.fetchall() if id not in kept]
            self._connection.executemany("DELETE FROM message WHERE id = ?", gone)
            for message in conversation:
                self._write_message(conversation.id, message)
            self._write_shown(conversation)

    def write_head(self, conversation: Conversation) -> None:
        """Keep title, system prompt, draft and which messages are shown."""
        with self._transaction():
            self._write_head(conversation)
            self._write_shown(conversation)

    def write_messages(self, conversation: Conversation, messages: Iterable[Message]) -> None:
        """Keep new or changed messages, parents before their children, and which ones are shown."""
        with self._transaction():
            self._write_head(conversation)
            for message in messages:
                self._write_message(conversation.id, message)
            self._write_shown(conversation)

    def remove_messages(self, ids: Iterable[str]) -> None:
        """Remove messages with everything that follows them."""
        with self._transaction():
            self._connection.executemany("DELETE FROM message WHERE id = ?", [(id,) for id in ids])

    def remove(self, conversation_id: str) -> None:
        """Remove a conversation with everything kept for it."""
        with self._transaction():
            self._connection.execute("DELETE FROM conversation WHERE id = ?", (conversation_id,))

    def mark(self, conversation_id: str, *, pinned: bool | None = None, folder: str | None = None) -> None:
        """Pin a conversation or put it in a folder; None leaves that as it is."""
        with self._transaction():
            self._connection.execute(
                "UPDATE conversation SET pinned = coalesce(?, pinned), folder = coalesce(?, folder) WHERE id = ?",
                (pinned, folder, conversation_id),
            )

    def search(self, text: str, limit: int = MAX_HITS) -> list[Hit]:
        """Where a text occurs, in titles and in messages, newest first; upper and lower case are alike.

        Under three characters, where the index of trigrams has nothing, every text is looked at.
        """
        text = text.strip()
        if not text:
            return []
        with self._guarded("read"):
            titles, messages = (
                self._find_indexed(text, limit) if len(text) >= SHORTEST_TRIGRAM else self._scan(text, limit)
            )
        return [Hit(id, "", snippet) for id, snippet in titles] + [Hit(*row) for row in messages][:limit]

    # -- answers ------------------------------------------------------------------------------------------------

    def write_provenance(self, message_id: str, record: Provenance) -> None:
        with self._transaction():
            self._connection.execute(
                "INSERT INTO provenance VALUES (?, ?) ON CONFLICT(message) DO UPDATE SET record = excluded.record",
                (message_id, json.dumps(record.to_json(), ensure_ascii=False)),
            )

    def provenance(self, message_id: str) -> Provenance | None:
        """What made an answer, if it is known."""
        with self._guarded("read"):
            row = self._connection.execute("SELECT record FROM provenance WHERE message = ?", (message_id,)).fetchone()
        return None if row is None else Provenance.from_json(json.loads(row[0]))

    def write_scalings(self, message_id: str, kept: KeptScalings) -> None:
        """Keep an answer's scalings: means in 16 bits, the whole array in 8."""
        with self._transaction():
            self._connection.execute(
                "INSERT OR REPLACE INTO scalings VALUES (?, ?, ?, ?, ?)",
                (
                    message_id,
                    kept.start,
                    json.dumps(kept.adapters),
                    pack(kept.means, 16),
                    None if kept.whole is None else pack(kept.whole, 8),
                ),
            )

    def scalings(self, message_id: str) -> KeptScalings | None:
        """An answer's scalings, if they were kept.

        Raises:
            StoreError: they are damaged.
        """
        with self._guarded("read"):
            row = self._connection.execute(
                "SELECT start, adapters, means, whole FROM scalings WHERE message = ?", (message_id,)
            ).fetchone()
        if row is None:
            return None
        start, adapters, means, whole = row
        return KeptScalings(start, tuple(json.loads(adapters)), unpack(means), None if whole is None else unpack(whole))

    # ------------------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        ended_badly = Path(f"{self.path}-wal").exists()
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            migrate(connection, self.path)  # before anything else: another program's file stays untouched
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            # Reads the whole file, so only where the last process was killed; other damage shows when it is read.
            if ended_badly and connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("the database is damaged")
            connection.execute("UPDATE message SET state = 'stopped' WHERE state IN ('waiting', 'streaming')")
        except BaseException:
            connection.close()
            raise
        return connection

    def _step_aside(self) -> Path:
        """Rename a damaged database: it is the user's, and another program may still read it."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        number = 1
        while aside.exists():
            number += 1
            aside = aside.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{number}")
        self.path.replace(aside)
        for ending in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{ending}").replace(f"{aside}{ending}")
        return aside

    def _write_head(self, conversation: Conversation) -> None:
        self._connection.execute(
            """INSERT INTO conversation(id, title, created, updated, system_prompt, draft) VALUES (?, ?, ?, ?, ?, ?)
               ON CONFLICT(id) DO UPDATE SET title = excluded.title, updated = excluded.updated,
                   system_prompt = excluded.system_prompt, draft = excluded.draft""",
            (
                conversation.id,
                conversation.title,
                conversation.created,
                time.time(),
                conversation.system_prompt,
                conversation.draft,
            ),
        )

    def _write_message(self, conversation_id: str, message: Message) -> None:
        values = [getattr(message, name) for name in _COLUMNS]
        figures = {name: value for name, value in asdict(message).items() if name in _FIGURES}
        self._connection.execute(
            f"""INSERT INTO message(conversation, {", ".join(_COLUMNS)}, figures) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT(id) DO UPDATE SET text = excluded.text, state = excluded.state,
                    excluded = excluded.excluded, figures = excluded.figures""",
            (conversation_id, *values, json.dumps(figures, ensure_ascii=False)),
        )

    def _write_shown(self, conversation: Conversation) -> None:
        self._connection.execute("DELETE FROM shown WHERE conversation = ?", (conversation.id,))
        self._connection.executemany(
            "INSERT INTO shown VALUES (?, ?, ?)",
            [(conversation.id, parent or "", child) for parent, child in conversation.shown.items()],
        )

    def _find_indexed(self, text: str, limit: int) -> tuple[list[Any], list[Any]]:
        phrase = '"' + text.replace('"', '""') + '"'
        titles = self._connection.execute(
            "SELECT id, snippet(conversation_title, 1, ?, ?, '…', 32) FROM conversation_title "
            "WHERE conversation_title MATCH ? ORDER BY rowid DESC LIMIT ?",
            (MARK_START, MARK_END, phrase, limit),
        ).fetchall()
        messages = self._connection.execute(
            "SELECT m.conversation, m.id, snippet(message_text, 0, ?, ?, '…', 48) FROM message_text "
            "JOIN message m ON m.place = message_text.rowid WHERE message_text MATCH ? "
            "ORDER BY message_text.rowid DESC LIMIT ?",
            (MARK_START, MARK_END, phrase, limit),
        ).fetchall()
        return titles, messages

    def _scan(self, text: str, limit: int) -> tuple[list[Any], list[Any]]:
        escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        titles = self._connection.execute(
            "SELECT id, title FROM conversation WHERE title LIKE ? ESCAPE '\\' ORDER BY updated DESC LIMIT ?",
            (f"%{escaped}%", limit),
        ).fetchall()
        messages = self._connection.execute(
            "SELECT conversation, id, text FROM message WHERE text LIKE ? ESCAPE '\\' ORDER BY place DESC LIMIT ?",
            (f"%{escaped}%", limit),
        ).fetchall()
        return (
            [(id, _snippet(title, text)) for id, title in titles],
            [(conversation, id, _snippet(whole, text)) for conversation, id, whole in messages],
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guarded("written"):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has ended it already
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _guarded(self, action: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as problem:
            raise self._error(problem, action) from problem

    def _error(self, problem: Exception, action: str) -> StoreError:
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
        return StoreError(
            f"The conversations could not be {action}: {reason}.",
            file=self.path,
            remedy="Check the disk's free space and the folder's permissions.",
        )


def _message(row: tuple[Any, ...]) -> Message:
    *values, figures = row
    message = Message(**dict(zip(_COLUMNS, values, strict=True)))
    message.excluded = bool(message.excluded)
    for name, value in json.loads(figures).items():
        if name in _FIGURES:
            setattr(message, name, value)
    return message


def _snippet(text: str, wanted: str, around: int = 24) -> str:
    """The neighbourhood of the first place where a text occurs, marked as FTS5's `snippet` does."""
    place = text.lower().find(wanted.lower())
    if place < 0:
        return text[: 2 * around]
    end = place + len(wanted)
    before = text[max(0, place - around) : place]
    after = text[end : end + around]
    return (
        ("…" if place > around else "")
        + f"{before}{MARK_START}{text[place:end]}{MARK_END}{after}"
        + ("…" if end + around < len(text) else "")
    )
