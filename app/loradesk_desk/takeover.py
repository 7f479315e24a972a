"""Takes over the conversation that earlier versions kept as one JSON file."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from dataclasses import dataclass
from pathlib import Path

from loradesk_desk.conversation import Conversation
from loradesk_desk.conversation_file import from_json, turns_from_json
from loradesk_desk.database import Database
from loradesk_engine.errors import LoradeskError
from loradesk_engine.files import MAX_JSON_BYTES, parse_json, read_bytes

BACKUP, DAMAGED = ".before-database.json", ".damaged.json"


@dataclass(frozen=True)
class TakenOver:
    """What was found.

    Attributes:
        current: the conversation that was open, with the draft; None where there was none.
        previous: the one before it, which could be brought back.
        problem: why the file could not be read; it stays where it is, renamed to `NAME.damaged.json`.
    """

    current: Conversation | None = None
    previous: Conversation | None = None
    problem: LoradeskError | None = None


def take_over(path: Path, database: Database) -> TakenOver:
    """Move the conversations of an earlier version's file into the database, once: the file is kept as a backup under
    the ending `.before-database.json`, and is not read again.

    Raises:
        StoreError: the database cannot be written; the file stays as it was.
    """
    if not path.exists():
        return TakenOver()
    try:
        data = read_bytes(path, limit=MAX_JSON_BYTES)
        state = parse_json(data, file=path)
        current, previous = _conversations(state, path)
    except LoradeskError as problem:
        with contextlib.suppress(OSError):
            path.replace(path.with_suffix(DAMAGED))
        return TakenOver(problem=problem)
    # Killed before the file is renamed, this runs again: the same file must give the same conversations.
    digest = hashlib.sha256(data).hexdigest()
    for name, conversation in (
        ("previous", previous),
        ("current", current),
    ):  # the newest last: it is first in the list
        conversation.id = uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {digest}").hex
        if _holds_something(conversation):
            database.write(conversation)
    path.replace(path.with_suffix(BACKUP))
    return TakenOver(current if _holds_something(current) else None, previous if _holds_something(previous) else None)


def _conversations(state: object, path: Path) -> tuple[Conversation, Conversation]:
    current, _ = from_json(state, file=str(path))
    assert isinstance(state, dict)  # or from_json had refused it
    draft = state.get("draft")
    current.draft = draft if isinstance(draft, str) else ""
    return current, turns_from_json(state.get("previous"))


def _holds_something(conversation: Conversation) -> bool:
    return bool(len(conversation) or conversation.draft)
