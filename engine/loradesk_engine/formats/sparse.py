"""Files with holes: as long as they say, but only what was written into them takes room on the disk."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path

PROBE = 2**20
"""A hole of so many bytes shows whether the file system has holes at all, before anything large is made."""


def write_sparse(path: Path, size: int, pieces: Iterable[tuple[int, bytes]]) -> None:
    """Write a new file of `size` bytes. All but the pieces, (first byte, data), reads as zeros.

    Raises:
        OSError: it cannot be written, or the file system would fill the holes: a model's size would go to the disk.
    """
    with path.open("xb", buffering=0) as file:
        if size > PROBE:
            _allow_holes(file.fileno())
            _lengthen(file.fileno(), PROBE)
            if _room_taken(file.fileno()) > PROBE // 2:
                raise OSError(errno.EOPNOTSUPP, "the file system has no sparse files", str(path))
        _lengthen(file.fileno(), size)
    with path.open("r+b") as file:  # buffered: a raw write may take only a part
        for start, data in pieces:
            file.seek(start)
            file.write(data)


def _room_taken(file: int) -> int:
    """Bytes of the disk. Windows does not tell; there `_allow_holes` has refused already."""
    return int(getattr(os.fstat(file), "st_blocks", 0)) * 512


def _lengthen(file: int, size: int) -> None:
    # Not by truncating: on Windows that writes all the zeros.
    if size:
        os.lseek(file, size - 1, os.SEEK_SET)
        os.write(file, b"\0")


if sys.platform == "win32":
    import ctypes
    import msvcrt
    from ctypes import wintypes

    FSCTL_SET_SPARSE = 0x900C4

    def _allow_holes(file: int) -> None:
        """NTFS has to be told for each file, else it keeps room for all of it."""
        control = ctypes.WinDLL("kernel32", use_last_error=True).DeviceIoControl
        handle, returned = wintypes.HANDLE(msvcrt.get_osfhandle(file)), wintypes.DWORD()
        if not control(handle, FSCTL_SET_SPARSE, None, 0, None, 0, ctypes.byref(returned), None):
            raise ctypes.WinError(ctypes.get_last_error())

else:

    def _allow_holes(file: int) -> None:
        """Elsewhere a file may always have holes, where the file system has them."""
