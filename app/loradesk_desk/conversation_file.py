"""A conversation as JSON and Markdown: what is exported, and what is read back."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields
from typing import Any

from loradesk_desk.conversation import Conversation
from loradesk_desk.errors import ConversationError
from loradesk_desk.message import ENDED_STATES, ROLES, Message, new_id
from loradesk_desk.provenance import Provenance
from loradesk_engine.files import finite_number

VERSION = 2
KEY = "loradesk_conversation"
_LEFT_OUT = ("request_id", "problem")  # of a running process, and nothing that another one can act on


def to_json(conversation: Conversation, provenance: dict[str, Provenance] | None = None) -> dict[str, Any]:
    """The whole tree; an answer under way is kept as one that was stopped.

    Args:
        provenance: message id -> what made it.
    """
    return {
        KEY: VERSION,
        "title": conversation.title,
        "created": conversation.created,
        "system_prompt": conversation.system_prompt,
        "messages": [_message_to_json(message, provenance or {}) for message in conversation],
        "shown": list(conversation.shown.values()),
    }


def from_json(data: object, *, file: str | None = None) -> tuple[Conversation, dict[str, Provenance]]:
    """A conversation and the provenance of its answers, from this version's form or the list of turns of version 1.

    Entries that are not messages are left out: half a conversation beats none. Ids are new, so that a file can be read
    twice.

    Raises:
        ConversationError: it is not a conversation, or was written by a newer version.
    """
    if not isinstance(data, dict) or (KEY not in data and "turns" not in data):
        raise ConversationError(
            "This is not a conversation.", file=file, remedy="Choose a file that Loradesk exported."
        )
    version = data.get(KEY, 1)
    if not isinstance(version, int) or version > VERSION:
        raise ConversationError(
            f"The conversation has the version {version}; this Loradesk reads up to {VERSION}.",
            file=file,
            field=KEY,
            remedy="Update Loradesk.",
        )
    return _from_turns(data) if "turns" in data else _from_tree(data)


def to_markdown(conversation: Conversation) -> str:
    """The shown path for reading: one section a message."""
    sections = []
    for message in conversation.path:
        author = "You" if message.role == "user" else message.model or "Model"
        section = f"## {author}\n\n{message.text}\n"
        if message.shares and message.text:
            mixed = ", ".join(f"{name} {share:.2f}" for name, share in message.shares.items())
            section += f"\n*{mixed}*\n"
        sections.append(section)
    return f"# {conversation.display_title or 'Conversation'}\n\n" + "\n".join(sections)


def turns_from_json(entries: object) -> Conversation:
    """A conversation from version 1's list of turns; empty where it is no list."""
    conversation = Conversation()
    for entry in entries if isinstance(entries, list) else ():
        message = _message_from_json(entry)
        if message is not None:
            conversation.append(message)
    return conversation


def _from_turns(data: dict[str, Any]) -> tuple[Conversation, dict[str, Provenance]]:
    return turns_from_json(data["turns"]), {}


def _from_tree(data: dict[str, Any]) -> tuple[Conversation, dict[str, Provenance]]:
    messages: dict[str, Message] = {}  # by the id in the file
    provenance: dict[str, Provenance] = {}
    entries = data.get("messages")
    for entry in entries if isinstance(entries, list) else ():
        message = _message_from_json(entry)
        parent = entry.get("parent") if message else None
        if message is None or not (parent is None or _is_id(parent, messages)):
            continue
        message.parent = None if parent is None else messages[parent].id
        name = entry.get("id")
        messages[name if isinstance(name, str) else message.id] = message
        if isinstance(entry.get("provenance"), dict):
            provenance[message.id] = Provenance.from_json(entry["provenance"])
    shown = data.get("shown")
    chosen = [messages[name] for name in shown if _is_id(name, messages)] if isinstance(shown, list) else []
    conversation = Conversation(
        messages.values(),
        {message.parent: message.id for message in chosen},
        title=_text(data, "title"),
        system_prompt=_text(data, "system_prompt"),
        created=finite_number(data.get("created")),
    )
    return conversation, {id: record for id, record in provenance.items() if id in conversation}


def _is_id(name: object, messages: dict[str, Message]) -> bool:
    return isinstance(name, str) and name in messages


def _message_to_json(message: Message, provenance: dict[str, Provenance]) -> dict[str, Any]:
    entry = {name: value for name, value in asdict(message).items() if name not in _LEFT_OUT}
    entry["shares"] = {name: round(share, 4) for name, share in message.shares.items()}
    if message.is_open:
        entry["state"] = "stopped"
    if message.id in provenance:
        entry["provenance"] = provenance[message.id].to_json()
    return entry


def _message_from_json(entry: object) -> Message | None:
    """A message with a new id and no parent; fields of a wrong type keep their defaults."""
    if not isinstance(entry, dict) or entry.get("role") not in ROLES:
        return None
    message = Message(entry["role"], id=new_id())
    for field in fields(Message):
        if field.name in ("id", "parent", "role", "shares", *_LEFT_OUT) or field.name not in entry:
            continue
        value = _fitting(entry[field.name], type(getattr(message, field.name)))
        if value is not MISSING:
            setattr(message, field.name, value)
    if message.state not in ENDED_STATES:
        message.state = "stopped"
    shares = entry.get("shares")
    if isinstance(shares, dict):
        numbers = {str(name): finite_number(share) for name, share in shares.items()}
        message.shares = {name: share for name, share in numbers.items() if share is not None}
    return message


def _fitting(value: object, kind: type) -> object:
    """A value of the wanted type, or MISSING."""
    if kind is float:
        number = finite_number(value)
        return MISSING if number is None else number
    return value if type(value) is kind else MISSING


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    return value if isinstance(value, str) else ""
