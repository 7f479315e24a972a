"""Turn the frame buffer that `Xvfb -fbdir` keeps (XWD format) into a PNG picture. Standard library only."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

HEADER_WORDS = 25
COLOURMAP_ENTRY = 12


def picture(xwd: bytes) -> tuple[int, int, bytes]:
    """Width, height and RGB bytes of a dump with 32 bits a pixel.

    Raises:
        ValueError: it is another kind of dump.
    """
    header = struct.unpack(f">{HEADER_WORDS}I", xwd[: HEADER_WORDS * 4])
    width, height, order, bits, stride, colours = (header[at] for at in (4, 5, 7, 11, 12, 19))
    if header[1] != 7 or bits != 32:
        raise ValueError("not an XWD dump with 32 bits a pixel")
    start = header[0] + colours * COLOURMAP_ENTRY
    rows = []
    for row in range(height):
        line = xwd[start + row * stride : start + row * stride + width * 4]
        rgb = bytearray(width * 3)
        for channel in range(3):  # blue, green, red, unused in memory when the low byte comes first
            rgb[2 - channel :: 3] = line[channel::4] if order == 0 else line[3 - channel :: 4]
        rows.append(bytes(rgb))
    return width, height, b"".join(rows)


def png(width: int, height: int, rgb: bytes) -> bytes:
    """A PNG picture of RGB bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + rgb[row * width * 3 : (row + 1) * width * 3] for row in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def main() -> int:
    """Convert FILE to PNG; 1 when the screen is of a few colours only, as one without a window."""
    source, target = sys.argv[1:3]
    width, height, rgb = picture(Path(source).read_bytes())
    Path(target).write_bytes(png(width, height, rgb))
    colours = {rgb[at : at + 3] for at in range(0, len(rgb), 3)}
    return 0 if len(colours) > 16 else 1


if __name__ == "__main__":
    sys.exit(main())
