"""One window for each kept conversation: a second process hands over what it was asked to open, and ends.

Two processes that keep the same conversation would overwrite each other's words.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from PySide6.QtCore import QFileSystemWatcher, QLockFile, QObject, Signal

from loradesk_app.background import Background
from loradesk_engine.errors import BusyError, LoradeskError
from loradesk_engine.files import read_json_object, write_atomic

WAIT_SECONDS = 20.0  # longer than a window needs to close
POLL_SECONDS = 0.05
MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class OpenRequest:
    """What a start of the application asks for.

    Attributes:
        path: absolute path of what is to be opened; empty for nothing.
        demo: mode in which the demo pack is to be loaded; empty for not at all.
    """

    path: str = ""
    demo: str = ""


class SingleInstance(QObject):
    """Held by the process whose window keeps a conversation; others leave it requests as files beside that.

    A lock file says who holds it, and is void when that process has ended, in whatever way.

    Args:
        conversation: the file that is kept.
    """

    requested = Signal(object)  # OpenRequest of another process; empty when the window is only to come forward

    def __init__(self, conversation: Path, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._conversation = conversation
        self._requests = Path(f"{conversation}.requests")
        self._lock = QLockFile(f"{conversation}.lock")
        self._lock.setStaleLockTime(0)  # as long as its process lives
        self._background: Background | None = None
        self._watcher = QFileSystemWatcher(self)
        self._watcher.directoryChanged.connect(self._take)

    def enter(self, request: OpenRequest, seconds: float = WAIT_SECONDS) -> bool:
        """Whether this process is to open the window; otherwise the request is with the one that has it.

        Waits, so it is for the time before there is a window.

        Raises:
            BusyError: another process has it and does not answer, or cannot be asked.
        """
        if self.claim():
            return True
        try:
            file = self._leave(request)
        except OSError as problem:
            raise BusyError(
                f"Loradesk is running already and cannot be told what to open: {problem.strerror}.",
                file=self._requests,
                remedy="Open it there, or make room on the disk.",
            ) from None
        deadline = time.monotonic() + seconds
        while file.exists():
            if self.claim():  # it was about to end
                file.unlink(missing_ok=True)
                return True
            if time.monotonic() > deadline:
                file.unlink(missing_ok=True)
                raise BusyError(
                    "Loradesk is running already and does not answer.",
                    file=self._conversation,
                    remedy="Close it first, or start with --conversation FILE to keep another conversation.",
                )
            time.sleep(POLL_SECONDS)
        return False

    def listen(self, background: Background) -> None:
        """Take the requests of other processes from now on; their files are read by `background`."""
        self._background = background
        background.run(self._make_folder, lambda _made: self._watch())

    def stop(self) -> None:
        """Take no more of them: the next process waits for this one's end and opens its own window."""
        self._background = None
        if self._watcher.directories():
            self._watcher.removePaths(self._watcher.directories())

    def release(self) -> None:
        """Everything is saved: another process may have it."""
        self._lock.unlock()

    def claim(self) -> bool:
        """Whether this process has it now; asks nobody and does not wait."""
        with contextlib.suppress(OSError):
            self._conversation.parent.mkdir(parents=True, exist_ok=True)
        # Where no lock can be made nothing can be kept either, so nothing is lost by opening.
        return self._lock.tryLock(0) or self._lock.error() != QLockFile.LockError.LockFailedError

    def _leave(self, request: OpenRequest) -> Path:
        self._make_folder()
        file = self._requests / f"{time.time_ns()}-{uuid.uuid4().hex}.json"
        write_atomic(file, json.dumps(asdict(request)).encode())
        return file

    def _make_folder(self) -> None:
        self._requests.mkdir(parents=True, exist_ok=True)

    def _watch(self) -> None:
        if self._background is not None:
            self._watcher.addPath(str(self._requests))
            self._take()  # what came before

    def _take(self, _folder: str = "") -> None:
        if self._background is not None:
            self._background.run(self._read, self._tell)

    def _read(self) -> list[OpenRequest]:
        found = []
        for file in sorted(self._requests.glob("*.json")):
            with contextlib.suppress(LoradeskError):
                values = read_json_object(file, limit=MAX_BYTES)
                found.append(OpenRequest(str(values.get("path", "")), str(values.get("demo", ""))))
            file.unlink(missing_ok=True)  # the sign that it was taken
        return found

    def _tell(self, found: list[OpenRequest]) -> None:
        for request in found:
            self.requested.emit(request)
