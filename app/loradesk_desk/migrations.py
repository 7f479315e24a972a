"""The database's form, as numbered steps. A step that has landed is never edited: changes are new steps."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from loradesk_desk.errors import StoreError

APPLICATION_ID = 0x4C4F5241  # "LORA" in the file's header: tells our database from any other SQLite file


def _conversations(connection: sqlite3.Connection) -> None:
    """Conversations, their messages, what made each answer, and its scalings."""
    for statement in (
        """CREATE TABLE conversation (
            id TEXT PRIMARY KEY,
            title TEXT NOT NULL DEFAULT '',
            created REAL NOT NULL,
            updated REAL NOT NULL,
            pinned INTEGER NOT NULL DEFAULT 0,
            folder TEXT NOT NULL DEFAULT '',
            system_prompt TEXT NOT NULL DEFAULT '',
            draft TEXT NOT NULL DEFAULT '',
            settings TEXT NOT NULL DEFAULT '{}'
        ) WITHOUT ROWID""",
        """CREATE TABLE message (
            place INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            conversation TEXT NOT NULL REFERENCES conversation(id) ON DELETE CASCADE,
            parent TEXT REFERENCES message(id) ON DELETE CASCADE,
            role TEXT NOT NULL,
            text TEXT NOT NULL,
            state TEXT NOT NULL,
            created REAL NOT NULL,
            excluded INTEGER NOT NULL DEFAULT 0,
            figures TEXT NOT NULL DEFAULT '{}'
        )""",
        "CREATE INDEX message_conversation ON message(conversation)",
        "CREATE INDEX message_parent ON message(parent)",
        # Which child of a message is shown; the parent '' is the start of the conversation.
        """CREATE TABLE shown (
            conversation TEXT NOT NULL REFERENCES conversation(id) ON DELETE CASCADE,
            parent TEXT NOT NULL,
            child TEXT NOT NULL REFERENCES message(id) ON DELETE CASCADE,
            PRIMARY KEY (conversation, parent)
        ) WITHOUT ROWID""",
        """CREATE TABLE provenance (
            message TEXT PRIMARY KEY REFERENCES message(id) ON DELETE CASCADE,
            record TEXT NOT NULL
        ) WITHOUT ROWID""",
        """CREATE TABLE scalings (
            message TEXT PRIMARY KEY REFERENCES message(id) ON DELETE CASCADE,
            start INTEGER NOT NULL,
            adapters TEXT NOT NULL,
            means BLOB NOT NULL,
            whole BLOB
        )""",
        # Trigrams find any part of a word, in every script. A text is indexed when its message has ended: indexing it
        # anew with every token would cost the square of its length.
        "CREATE VIRTUAL TABLE message_text USING fts5(text, content='message', content_rowid='place', "
        "tokenize='trigram')",
        "CREATE VIRTUAL TABLE conversation_title USING fts5(id UNINDEXED, title, tokenize='trigram')",
        *_index_triggers(),
    ):
        connection.execute(statement)


def _index_triggers() -> tuple[str, ...]:
    ended = "{row}.state IN ('done', 'stopped', 'failed')"
    add = "INSERT INTO message_text(rowid, text) VALUES (new.place, new.text)"
    drop = "INSERT INTO message_text(message_text, rowid, text) VALUES ('delete', old.place, old.text)"
    is_new, was_old = ended.format(row="new"), ended.format(row="old")
    return (
        f"CREATE TRIGGER message_added AFTER INSERT ON message WHEN {is_new} BEGIN {add}; END",
        f"CREATE TRIGGER message_removed AFTER DELETE ON message WHEN {was_old} BEGIN {drop}; END",
        f"CREATE TRIGGER message_changes BEFORE UPDATE OF text, state ON message WHEN {was_old} BEGIN {drop}; END",
        f"CREATE TRIGGER message_changed AFTER UPDATE OF text, state ON message WHEN {is_new} BEGIN {add}; END",
        "CREATE TRIGGER title_added AFTER INSERT ON conversation BEGIN "
        "INSERT INTO conversation_title(id, title) VALUES (new.id, new.title); END",
        "CREATE TRIGGER title_removed AFTER DELETE ON conversation BEGIN "
        "DELETE FROM conversation_title WHERE id = old.id; END",
        "CREATE TRIGGER title_changed AFTER UPDATE OF title ON conversation WHEN new.title IS NOT old.title BEGIN "
        "UPDATE conversation_title SET title = new.title WHERE id = new.id; END",
    )


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_conversations,)
"""Step n makes version n + 1 of the database; `PRAGMA user_version` holds the version."""


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a database to the newest version, one transaction a step. A database that holds anything is copied to
    `NAME.version-N` beside it first.

    Args:
        connection: in autocommit mode.
        path: of the database.

    Raises:
        StoreError: it was written by a newer Loradesk, or is somebody else's database.
        sqlite3.Error: as SQLite says; the step that failed is undone.
    """
    version = _pragma(connection, "user_version")
    application = _pragma(connection, "application_id")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"The database has the version {version}; this Loradesk reads up to {len(MIGRATIONS)}.",
            file=path,
            remedy="Update Loradesk.",
        )
    if application not in (0, APPLICATION_ID) or (application == 0 and _has_tables(connection)):
        raise StoreError(
            "This SQLite file is not a database of Loradesk.", file=path, remedy="Move it to another folder."
        )
    if 0 < version < len(MIGRATIONS):
        _copy(connection, path.with_name(f"{path.name}.version-{version}"))
    for number in range(version, len(MIGRATIONS)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            MIGRATIONS[number](connection)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _has_tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None


def _copy(connection: sqlite3.Connection, target: Path) -> None:
    copy = sqlite3.connect(target)
    try:
        connection.backup(copy)
    finally:
        copy.close()
