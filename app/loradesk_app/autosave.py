"""Keeps the conversation on disk while it grows, and finds it again at the next start."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QStandardPaths, QTimer, Signal

from loradesk_app.background import Background
from loradesk_engine.files import read_json_object, write_atomic
from loradesk_engine.log.defects import log_defect

logger = logging.getLogger(__name__)

SAVE_MS = 800


class Autosave(QObject):
    """Writes at most once each 0.8 s, off the GUI thread, whole or not at all.

    Args:
        background: where the disk is touched.
        state: gives what to keep, as JSON; called on the GUI thread.
        path: the file; by default in the user's data folder.
    """

    restored = Signal(object)
    failed = Signal(object)  # the OSError, once until a save works again

    def __init__(
        self,
        background: Background,
        state: Callable[[], dict[str, Any]],
        path: str | Path | None = None,
        parent: QObject | None = None,
    ) -> None:
        super().__init__(parent)
        self.path = conversation_path(path)
        self._background, self._state = background, state
        self._ready = False  # nothing is written before the old file has been read
        self._broken = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SAVE_MS)
        self._timer.timeout.connect(self.save)

    def restore(self, wanted: bool = True) -> None:
        """Read what was kept; `restored` follows with it, or with None.

        A conversation that is not wanted becomes the previous one: it can be brought back until the next begins.
        """
        self._background.run(lambda: _read(self.path, wanted), self._give, lambda _error: self._give(None))

    def note_change(self) -> None:
        """Something changed that is worth keeping."""
        if self._ready and not self._timer.isActive():
            self._timer.start()

    def save(self) -> None:
        """Write now."""
        self._timer.stop()
        if not self._ready:
            return
        data = json.dumps(self._state(), ensure_ascii=False, separators=(",", ":")).encode()
        self._background.run(lambda: _write(self.path, data), self._note_success, self._note_failure)

    def confirm(self, done: Callable[[Exception | None], None]) -> None:
        """Save now, read the file back and compare it; `done` is called with None, or with what went wrong.

        Before the old file has been read there is nothing to save, and nothing of it is touched.
        """
        self._timer.stop()
        if not self._ready:
            done(None)
            return
        try:
            data = json.dumps(self._state(), ensure_ascii=False, separators=(",", ":")).encode()
        except Exception as problem:  # noqa: BLE001 - whatever is wrong with a pane's state is the answer
            log_defect(logger, "Taking the conversation", problem)
            done(problem)
            return
        self._background.run(lambda: _write_and_compare(self.path, data), done, done)

    def _give(self, state: object) -> None:
        self._ready = True
        self.restored.emit(state)

    def _note_success(self, _result: object) -> None:
        self._broken = False

    def _note_failure(self, error: Exception) -> None:
        if not self._broken:
            self._broken = True
            self.failed.emit(error)


def conversation_path(path: str | Path | None = None) -> Path:
    """Where the conversation is kept: by default in the user's data folder."""
    if path is not None:
        return Path(path)
    data = QStandardPaths.writableLocation(QStandardPaths.StandardLocation.AppDataLocation)
    return Path(data) / "conversation.json"


def _read(path: Path, wanted: bool) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state = read_json_object(path)
    except Exception:
        # Not ours to throw away: it steps aside under another name, and a new file begins.
        path.replace(path.with_suffix(".damaged.json"))
        logger.warning("The kept conversation cannot be read; it is kept under another name", exc_info=True)
        raise
    if wanted:
        return state
    return {"turns": [], "previous": state.get("turns") or state.get("previous")}


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)


def _write_and_compare(path: Path, data: bytes) -> None:
    _write(path, data)
    if path.read_bytes() != data:
        raise OSError("what was written is not what is in the file")
