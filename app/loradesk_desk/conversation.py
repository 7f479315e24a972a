"""A conversation: a tree of messages, and the path through it that is shown.

Alternatives (another answer, an edited question) are siblings. Nothing is overwritten: a new alternative is added
beside the old one and becomes the one that is shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from loradesk_desk.errors import ConversationError
from loradesk_desk.message import Message, new_id
from loradesk_engine.commands import Message as PromptMessage

NO_TITLE = "New conversation"
TITLE_LENGTH = 60


class Conversation:
    """Messages by id, in the order in which they were added.

    Args:
        messages: parents before their children.
        shown: parent id (None for the start) -> the child that is shown; missing entries show the newest child.
        id, title, created: of the conversation; `created` in seconds since the epoch.
        system_prompt, draft: the system prompt, and what is being written.

    Raises:
        ConversationError: an id occurs twice, or a parent is unknown.
    """

    def __init__(
        self,
        messages: Iterable[Message] = (),
        shown: Mapping[str | None, str] | None = None,
        *,
        id: str | None = None,
        title: str = "",
        created: float | None = None,
        system_prompt: str = "",
        draft: str = "",
    ) -> None:
        self.id = id or new_id()
        self.title = title
        self.created = time.time() if created is None else created
        self.system_prompt = system_prompt
        self.draft = draft
        self._messages: dict[str, Message] = {}
        self._children: dict[str | None, list[str]] = {}
        self._shown: dict[str | None, str] = {}
        for message in messages:
            self._insert(message)
        for parent, child in (shown or {}).items():
            if child in self._children.get(parent, ()):
                self._shown[parent] = child

    # -- what is there ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self._messages.values())

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._messages

    def __getitem__(self, message_id: str) -> Message:
        """The message of this id.

        Raises:
            ConversationError: there is none.
        """
        try:
            return self._messages[message_id]
        except KeyError:
            raise ConversationError("There is no such message in the conversation.", field=message_id) from None

    @property
    def shown(self) -> dict[str | None, str]:
        """Parent id (None for the start) -> the child that is shown."""
        return dict(self._shown)

    @property
    def path(self) -> list[Message]:
        """The shown messages, first to last."""
        path: list[Message] = []
        at = self._shown.get(None)
        while at is not None:
            path.append(self._messages[at])
            at = self._shown.get(at)
        return path

    @property
    def display_title(self) -> str:
        """The title, or the beginning of the first question."""
        if self.title:
            return self.title
        first = next((message.text for message in self if message.role == "user" and message.text.strip()), "")
        line = " ".join(first.split())
        return line if len(line) <= TITLE_LENGTH else f"{line[: TITLE_LENGTH - 1].rstrip()}…"

    def children(self, message_id: str | None) -> tuple[Message, ...]:
        """What follows a message (None: what the conversation starts with), oldest first."""
        return tuple(self._messages[child] for child in self._children.get(message_id, ()))

    def siblings(self, message_id: str) -> tuple[Message, ...]:
        """The alternatives to a message and itself, oldest first."""
        return self.children(self[message_id].parent)

    def path_to(self, message_id: str) -> list[Message]:
        """The messages from the start to this one, whether shown or not."""
        path = [self[message_id]]
        while path[-1].parent is not None:
            path.append(self._messages[path[-1].parent])
        return path[::-1]

    def subtree(self, message_id: str) -> list[Message]:
        """A message and everything that follows it, parents before their children."""
        found = [self[message_id]]
        for message in found:  # grows while it is read
            found.extend(self.children(message.id))
        return found

    def prompt(self, upto: str | None = None) -> tuple[PromptMessage, ...]:
        """What a model gets to answer: the system prompt and the messages of a path that count.

        Args:
            upto: the path's last message; None takes the shown path.
        """
        path = self.path if upto is None else self.path_to(upto)
        said = [PromptMessage(message.role, message.text) for message in path if message.counts]
        system = [PromptMessage("system", self.system_prompt)] if self.system_prompt.strip() else []
        return (*system, *said)

    # -- changes ------------------------------------------------------------------------------------------------

    def add(self, message: Message) -> Message:
        """Add a message after its parent, and show it.

        Raises:
            ConversationError: its id is taken, or its parent is unknown.
        """
        self._insert(message)
        self.show(message.id)
        return message

    def append(self, message: Message) -> Message:
        """Add a message at the end of the shown path."""
        path = self.path
        message.parent = path[-1].id if path else None
        return self.add(message)

    def show(self, message_id: str) -> None:
        """Put a message on the shown path; below it the path goes on as it was last shown."""
        for message in self.path_to(message_id):
            self._shown[message.parent] = message.id

    def remove(self, message_id: str) -> list[Message]:
        """Remove a message and everything that follows it. Returns what was removed, for `put_back`."""
        removed = self.subtree(message_id)
        parent = removed[0].parent
        place = self._children[parent].index(message_id)
        for message in removed:
            del self._messages[message.id]
            self._children.pop(message.id, None)
            self._shown.pop(message.id, None)
        left = self._children[parent]
        left.remove(message_id)
        if not left:
            del self._children[parent]
            self._shown.pop(parent, None)
        elif self._shown.get(parent) == message_id:
            self._shown[parent] = left[max(0, place - 1)]
        return removed

    def put_back(self, messages: Iterable[Message]) -> None:
        """Undo `remove`: the messages come back as the newest of their siblings and are shown."""
        messages = list(messages)
        for message in messages:
            self._insert(message)
        if messages:
            self.show(messages[0].id)

    def fork(self, message_id: str) -> Conversation:
        """A new conversation that holds copies of the messages up to this one."""
        path = [replace(message, id=new_id(), shares=dict(message.shares)) for message in self.path_to(message_id)]
        for before, message in zip([None, *path], path, strict=False):
            message.parent = before.id if before else None
        return Conversation(path, title=self.title, system_prompt=self.system_prompt)

    # ------------------------------------------------------------------------------------------------------------

    def _insert(self, message: Message) -> None:
        if message.id in self._messages:
            raise ConversationError("The message's id is taken.", field=message.id)
        if message.parent is not None and message.parent not in self._messages:
            raise ConversationError(
                "The message follows one that is not there.",
                field=message.id,
                remedy="List parents before their children.",
            )
        self._messages[message.id] = message
        self._children.setdefault(message.parent, []).append(message.id)
        self._shown[message.parent] = message.id
