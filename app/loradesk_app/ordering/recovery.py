"""Keeps work that is not saved yet, and finds it again after a crash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import QLockFile, QObject, QStandardPaths, QTimer, Signal

from loradesk_app.background import Background
from loradesk_app.ordering.analysis import State, state_of
from loradesk_app.ordering.document import Document
from loradesk_engine.errors import LoradeskError, OrderingError
from loradesk_engine.files import MAX_JSON_BYTES, read_bytes, read_json_object, write_atomic

SAVE_MS = 1_000
_LOCK = "lock"


@dataclass(frozen=True)
class Recovered:
    """A document that was not saved.

    Attributes:
        key: name of its file in the recovery folder.
        path: the file it was opened from or saved to; None if there is none yet.
        on_disk: what that file holds; empty when it is no longer what the document knew.
    """

    key: str
    state: State
    path: str | None
    title: str
    on_disk: bytes | None


class Recovery(QObject):
    """Writes each unsaved document into a folder of this session, which only this session's process may touch.

    A folder whose process has ended belongs to whoever comes first: its files are moved over, not copied, so that at
    every moment they are in one place.
    """

    restored = Signal(list)  # Recovered
    failed = Signal(object)  # the error, once until a save works again

    def __init__(
        self,
        background: Background,
        documents: Callable[[], Sequence[Document]],
        folder: str | Path | None = None,
        parent: QObject | None = None,
    ) -> None:
        super().__init__(parent)
        self._background, self._documents = background, documents
        self._root = recovery_folder(folder)
        self._own = self._root / uuid.uuid4().hex
        self._lock = QLockFile(str(self._own / _LOCK))
        self._lock.setStaleLockTime(0)  # a lock is stale when its process has ended, however old it is
        self._keys: dict[Document, str] = {}
        self._written: dict[Document, State] = {}
        self._broken = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SAVE_MS)
        self._timer.timeout.connect(self.save)

    def restore(self) -> None:
        """Take over what sessions that have ended left; `restored` follows if there is something."""
        self._background.run(self._adopt, self._give, self._note_failure)

    def note_change(self) -> None:
        """A document changed."""
        if not self._timer.isActive():
            self._timer.start()

    def save(self) -> None:
        """Write what is not saved and has changed, and forget what is saved or closed."""
        self._timer.stop()
        open_now = list(self._documents())
        for document in [known for known in self._keys if known not in open_now or not known.is_dirty]:
            self.forget(document)
        for document in open_now:
            if document.is_dirty and self._written.get(document) is not document.state:
                key = self._keys.setdefault(document, uuid.uuid4().hex)
                self._written[document] = document.state
                self._write(key, document)

    def adopt(self, document: Document, key: str) -> None:
        """A recovered document is open again; its file stays until it is saved or thrown away."""
        self._keys[document] = key
        self._written[document] = document.state

    def forget(self, document: Document) -> None:
        """A document was saved, or its changes were thrown away."""
        key = self._keys.pop(document, None)
        self._written.pop(document, None)
        if key is not None:
            file = self._own / f"{key}.json"
            self._background.run(lambda: file.unlink(missing_ok=True), None, self._note_failure)

    def close(self) -> None:
        """The session ends in order: what is left of it is for the next one."""
        self._timer.stop()

        def leave() -> None:
            self._lock.unlock()
            with contextlib.suppress(OSError):
                self._own.rmdir()  # only when nothing is in it

        self._background.run(leave)

    # ------------------------------------------------------------------------------------------------------------

    def _write(self, key: str, document: Document) -> None:
        state, path, title, on_disk = document.state, document.path, document.title, document.on_disk

        def work() -> None:
            entry = {"path": path, "title": title, "disk": None if on_disk is None else _digest(on_disk)}
            entry["text"] = state.draft if state.draft is not None else state.ordering.dumps()
            self._begin()
            write_atomic(self._own / f"{key}.json", json.dumps(entry).encode("ascii"))

        self._background.run(work, self._note_success, self._note_failure)

    def _begin(self) -> None:
        self._own.mkdir(parents=True, exist_ok=True)
        if not self._lock.isLocked():
            self._lock.tryLock(0)

    def _adopt(self) -> list[Recovered]:
        result = []
        for folder in _left_behind(self._root, self._own):
            lock = QLockFile(str(folder / _LOCK))
            lock.setStaleLockTime(0)
            if not lock.tryLock(0):
                continue  # its process is alive
            for file in sorted(folder.glob("*.json")):
                self._begin()
                target = self._own / file.name
                os.replace(file, target)
                with contextlib.suppress(LoradeskError, OSError, KeyError, TypeError):
                    result.append(_read(target))
            lock.unlock()
            with contextlib.suppress(OSError):
                folder.rmdir()
        return result

    def _give(self, found: list[Recovered]) -> None:
        if found:
            self.restored.emit(found)

    def _note_success(self, _result: object) -> None:
        self._broken = False

    def _note_failure(self, error: Exception) -> None:
        if not self._broken:
            self._broken = True
            self.failed.emit(error)


def recovery_folder(folder: str | Path | None = None) -> Path:
    """Where unsaved work is kept: by default in the user's data folder."""
    if folder is not None:
        return Path(folder)
    data = QStandardPaths.writableLocation(QStandardPaths.StandardLocation.AppDataLocation)
    return Path(data) / "unsaved-ordering-files"


def has_unsaved_work(folder: str | Path | None = None) -> bool:
    """Whether a session may have left something. Touches the disk: call it off the GUI thread."""
    return any(any(left.glob("*.json")) for left in _left_behind(recovery_folder(folder), None))


def _left_behind(root: Path, own: Path | None) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and path != own) if root.is_dir() else []


def _read(file: Path) -> Recovered:
    entry = read_json_object(file, error=OrderingError)
    path, text = entry["path"], entry["text"]
    on_disk: bytes | None = None
    if path is not None and os.path.exists(path):
        try:
            on_disk = read_bytes(path, limit=MAX_JSON_BYTES, error=OrderingError)
        except OrderingError:
            on_disk = b""
        if _digest(on_disk) != entry["disk"]:
            on_disk = b""
    return Recovered(file.stem, state_of(text, path or "ordering file"), path, str(entry["title"]), on_disk)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
