"""What a test may leave running: nothing of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def none_left() -> Iterator[None]:
    """No thread of ours that was started inside is left at the end. Those of fixtures that live longer, such as a
    server that all tests of a session share, were there before.
    """
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before and thread.name.startswith("loradesk")]
    assert not left, left
