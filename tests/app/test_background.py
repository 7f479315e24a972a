"""Work beside the window."""

from __future__ import annotations

import threading
from typing import Any

from shiboken6 import delete
from support.clock import PATIENCE

from loradesk_app.background import Background


def test_work_that_outlives_the_window_ends_without_a_word(qtbot: Any) -> None:
    background, go, reports = Background(), threading.Event(), []
    background.run(lambda: go.wait(PATIENCE), reports.append, reports.append)
    delete_and_release = threading.Timer(0.1, go.set)
    delete_and_release.start()
    delete(background)  # waits for the pool's thread, whose report nobody takes any more
    delete_and_release.join()
    with qtbot.capture_exceptions() as exceptions:
        qtbot.wait(50)
    assert reports == []
    assert exceptions == []
