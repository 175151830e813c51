"""TIFF files as cameras and satellites write them, byte by byte: any bands, in turn or one after the other."""

import struct

import numpy as np

SHORT, LONG = 3, 4


def tiff_bytes(array, planar=False, colours=False, alpha=False, orientation=1, signed=False):
    """An uncompressed TIFF file of H×W×N numbers.

    Args:
        planar: one band after the other, instead of a pixel's bands side by side.
        colours: the first three are said to be red, green, blue; else grey and more.
        alpha: the last one is said to be.
    """
    height, width, bands = array.shape
    stored = array.transpose(2, 0, 1) if planar else array
    data = stored.astype(array.dtype.newbyteorder("<")).tobytes()
    parts = bands if planar else 1
    size = len(data) // parts
    extra = bands - (3 if colours else 1)
    tags = [
        (256, LONG, [width]),
        (257, LONG, [height]),
        (258, SHORT, [8 * array.itemsize] * bands),
        (259, SHORT, [1]),
        (262, SHORT, [2 if colours else 1]),
        (273, LONG, [8 + n * size for n in range(parts)]),
        (274, SHORT, [orientation]),
        (277, SHORT, [bands]),
        (278, LONG, [height]),
        (279, LONG, [size] * parts),
        (284, SHORT, [2 if planar else 1]),
        (338, SHORT, [0] * (extra - 1) + [2 if alpha else 0]),
        (339, SHORT, [{"u": 2 if signed else 1, "f": 3}[array.dtype.kind]] * bands),
    ]
    tags = [tag for tag in tags if tag[0] != 338 or extra]
    start = 8 + len(data)
    after, entries, values = start + 2 + 12 * len(tags) + 4, b"", b""
    for tag, kind, numbers in tags:
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == SHORT else 'I'}", *numbers)
        if len(packed) > 4:
            packed, values = struct.pack("<I", after + len(values)), values + packed
        entries += struct.pack("<HHI4s", tag, kind, len(numbers), packed)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + values
    return struct.pack("<2sHI", b"II", 42, start) + data + directory


def random_bands(bands, dtype=np.uint16, seed=0):
    """24×32×N numbers up to 4000 (250, of 8 bits)."""
    most = 4000 if np.dtype(dtype).itemsize > 1 else 250
    return np.random.default_rng(seed).integers(0, most, (24, 32, bands)).astype(dtype)
