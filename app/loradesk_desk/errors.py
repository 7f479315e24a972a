"""Errors of the desk."""

from __future__ import annotations

from loradesk_engine.errors import LoradeskError


class ConversationError(LoradeskError):
    """A conversation's messages do not form a tree, or a message is not part of it."""


class StoreError(LoradeskError):
    """The conversations' database cannot be opened, read or written."""
