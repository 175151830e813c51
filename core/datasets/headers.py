"""What the bytes of an image file say before anything is decoded: how large it is, and whether its end is there."""

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_PIXELS = 2**28  # of one image: a wider one is a mistake, or made to exhaust the memory
MAX_PARTS = 100_000  # segments or chunks of one file
FORMATS = "PNG, JPEG, BMP or WebP"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff]")
_JPEG_SCAN = 0xDA
_JPEG_END = b"\xff\xd9"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset((0x01, *range(0xD0, 0xDA)))  # markers without a segment
_BMP_OLD_HEADER = 12
_BMP_PLAIN = (0, 3)  # compressions whose rows have a fixed length


class Header(NamedTuple):
    """Size in pixels as the file declares it, and whether nothing is missing at its end."""

    width: int
    height: int
    complete: bool


def parse_header(data: bytes) -> Header | None:
    """The header of a PNG, JPEG, BMP or WebP file, of which `data` is the whole; None for any other."""
    if data.startswith(PNG_SIGNATURE):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    return None


def _png(data: bytes) -> Header:
    position, complete = len(PNG_SIGNATURE), False
    for _ in range(MAX_PARTS):
        kind = data[position + 4 : position + 8]
        position += 12 + int.from_bytes(data[position : position + 4], "big")
        if len(kind) < 4 or kind == b"IEND":
            complete = kind == b"IEND" and position <= len(data)
            break
    return Header(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"), complete)


def _jpeg(data: bytes) -> Header:
    width = height = 0
    for marker, position in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:  # a second one is an error to the decoder, but it may see it too late
            height = max(height, int.from_bytes(data[position + 3 : position + 5], "big"))
            width = max(width, int.from_bytes(data[position + 5 : position + 7], "big"))
        if marker == _JPEG_SCAN:  # what follows is no thumbnail: that stands in a segment before it
            return Header(width, height, data.rfind(_JPEG_END, position) >= 0)
    return Header(width, height, False)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, where its segment starts) from the start of the file."""
    position = 2
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None:
            return
        marker, position = data[found.end() - 1], found.end()
        yield marker, position
        if marker not in _JPEG_BARE:
            position += max(int.from_bytes(data[position : position + 2], "big"), 2)


def _bmp(data: bytes) -> Header:
    def number(start: int, length: int, signed: bool = False) -> int:
        return int.from_bytes(data[start : start + length], "little", signed=signed)

    if number(14, 4) == _BMP_OLD_HEADER:
        width, height, bits, compression = number(18, 2), number(20, 2), number(24, 2), 0
    else:  # a negative height: stored from top to bottom
        width, height = abs(number(18, 4, signed=True)), abs(number(22, 4, signed=True))
        bits, compression = number(28, 2), number(30, 4)
    rows = height * ((width * bits + 31) // 32 * 4)
    return Header(width, height, compression not in _BMP_PLAIN or number(10, 4) + rows <= len(data))


def _webp(data: bytes) -> Header:
    def number(start: int, length: int) -> int:
        return int.from_bytes(data[start : start + length], "little")

    kind = data[12:16]
    if kind == b"VP8X":
        width, height = 1 + number(24, 3), 1 + number(27, 3)
    elif kind == b"VP8L":
        width, height = 1 + (number(21, 4) & 0x3FFF), 1 + (number(21, 4) >> 14 & 0x3FFF)
    else:
        width, height = number(26, 2) & 0x3FFF, number(28, 2) & 0x3FFF
    return Header(width, height, 8 + number(4, 4) <= len(data))
