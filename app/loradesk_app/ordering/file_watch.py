"""Tells when files that are open change on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable

from PySide6.QtCore import QFileSystemWatcher, QObject, QTimer, Signal

SETTLE_MS = 150  # a program that saves touches the file several times


class FileWatch(QObject):
    """Watches files and their folders: a file that is replaced is a new one, which only its folder knows of."""

    touched = Signal()  # one of the files may have changed

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._files: tuple[str, ...] = ()
        self._watcher = QFileSystemWatcher(self)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SETTLE_MS)
        self._timer.timeout.connect(self._tell)
        self._watcher.fileChanged.connect(self._note)
        self._watcher.directoryChanged.connect(self._note)

    def set_files(self, files: Iterable[str]) -> None:
        """Watch these files and no others."""
        self._files = tuple(dict.fromkeys(files))
        self._watch()

    def _watch(self) -> None:
        wanted = {path for file in self._files for path in (file, os.path.dirname(os.path.abspath(file)))}
        watched = {*self._watcher.files(), *self._watcher.directories()}
        if watched - wanted:
            self._watcher.removePaths(sorted(watched - wanted))
        missing = [path for path in sorted(wanted - watched) if os.path.exists(path)]
        if missing:
            self._watcher.addPaths(missing)

    def _note(self, _path: str) -> None:
        if not self._timer.isActive():  # a folder that never comes to rest must not put it off for ever
            self._timer.start()

    def _tell(self) -> None:
        self._watch()
        self.touched.emit()
