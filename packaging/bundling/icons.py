"""The icons of the installer, drawn from the one SVG by Qt."""

from __future__ import annotations

import os
import shutil
import struct
import sys
from pathlib import Path

from bundling.project import BUILD, ICON_SIZES, NAME, ROOT

SVG = ROOT / "resources" / "loradesk_resources" / "icons" / f"{NAME}.svg"
ICO_SIZES = (16, 24, 32, 48, 64, 128, 256)
ICNS_TYPES = {16: b"icp4", 32: b"icp5", 64: b"icp6", 128: b"ic07", 256: b"ic08", 512: b"ic09"}


def render(folder: Path = BUILD / "icons") -> dict[int, Path]:
    """PNG pictures of every size, an .ico and an .icns; returns the pictures by size."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from PySide6.QtCore import QRectF, Qt
    from PySide6.QtGui import QGuiApplication, QImage, QPainter
    from PySide6.QtSvg import QSvgRenderer

    application = QGuiApplication.instance() or QGuiApplication(sys.argv[:1])
    folder.mkdir(parents=True, exist_ok=True)
    renderer = QSvgRenderer(str(SVG))
    if not renderer.isValid():
        raise ValueError(f"{SVG} is no drawing that Qt can read")
    pictures = {}
    for size in ICON_SIZES:
        image = QImage(size, size, QImage.Format.Format_ARGB32)
        image.fill(Qt.GlobalColor.transparent)
        painter = QPainter(image)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        renderer.render(painter, QRectF(0, 0, size, size))
        painter.end()
        pictures[size] = folder / f"{NAME}-{size}.png"
        if not image.save(str(pictures[size])):
            raise OSError(f"{pictures[size]} could not be written")
    del application
    (folder / f"{NAME}.ico").write_bytes(ico([(size, pictures[size].read_bytes()) for size in ICO_SIZES]))
    (folder / f"{NAME}.icns").write_bytes(icns({size: pictures[size].read_bytes() for size in ICNS_TYPES}))
    shutil.copyfile(SVG, folder / f"{NAME}.svg")
    return pictures


def ico(pictures: list[tuple[int, bytes]]) -> bytes:
    """A Windows icon of PNG pictures: a directory of 16 bytes each, then the pictures."""
    offset = 6 + 16 * len(pictures)
    entries, data = b"", b""
    for size, png in pictures:
        side = 0 if size == 256 else size  # a byte; 0 means 256
        entries += struct.pack("<BBBBHHII", side, side, 0, 0, 1, 32, len(png), offset + len(data))
        data += png
    return struct.pack("<HHH", 0, 1, len(pictures)) + entries + data


def icns(pictures: dict[int, bytes]) -> bytes:
    """A macOS icon of PNG pictures: each with its type and length, big-endian."""
    data = b"".join(ICNS_TYPES[size] + struct.pack(">I", len(png) + 8) + png for size, png in pictures.items())
    return b"icns" + struct.pack(">I", len(data) + 8) + data
