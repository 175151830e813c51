"""TIFF files: what their tags say, and the bands of those that OpenCV does not read, or reads wrongly."""

import io
import warnings
from typing import IO, NamedTuple

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from core.utils.errors import UserError

ENDINGS = (".tif", ".tiff")
_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0")
_BIG = b"+"  # in the beginning: numbers of 64 bits, and so a longer header
_WIDTH, _HEIGHT, _BITS, _KIND, _ORIENTATION, _BANDS, _PLANAR, _EXTRA, _FORMAT = (
    256,
    257,
    258,
    262,
    274,
    277,
    284,
    338,
    339,
)
_DATA = ((273, 279), (324, 325))  # where strips or tiles begin, and their bytes
_WHITE_IS_ZERO, _CMYK = 0, 5
_GREY, _RGB, _YCBCR = (_WHITE_IS_ZERO, 1, 3), 2, 6  # kinds: white is 0, black is 0, palette; and colours
_ALPHA = (1, 2)  # what an extra band may be
_WHOLE_NUMBERS = 1


class Layout(NamedTuple):
    """What the tags say.

    Attributes:
        size: (width, height) as stored.
        bands: how many.
        bits: of a number.
        numbers: whether these are whole and without sign.
        alpha: whether the last band is.
        orientation: EXIF's, 1 to 8.
        end: bytes that the file has at least.
        by_opencv: whether OpenCV reads it rightly, if it does.
        white_is_zero: grey is stored inverted.
        cmyk: the colours are printers'.
    """

    size: tuple[int, int]
    bands: int
    bits: int
    numbers: bool
    alpha: bool
    orientation: int
    end: int
    by_opencv: bool
    white_is_zero: bool
    cmyk: bool


def is_tiff(beginning: bytes) -> bool:
    return beginning[:4] in _BEGINNINGS


def read_layout(file: IO[bytes]) -> Layout:
    """Of a TIFF file's first image. Raises whatever a broken file makes it raise."""
    header = file.read(8)
    header += file.read(8) if _BIG in header[2:4] else b""
    tags = ImageFileDirectory_v2(header)
    file.seek(tags.next)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tags.load(file)
    bands, bits, kind = tags.get(_BANDS, 1), set(tags.get(_BITS, (1,))), tags.get(_KIND, 1)
    if len(bits) != 1:
        raise ValueError("bands of different depths")
    (bits,), orientation = bits, tags.get(_ORIENTATION, 1)
    colours = (bands in (3, 4) and kind == _RGB) or (bands, kind, bits) == (3, _YCBCR, 8)
    usual = (bands == 1 and kind in _GREY) or (colours and tags.get(_PLANAR, 1) == 1)
    parts = [zip(tags.get(at, ()), tags.get(sizes, ()), strict=True) for at, sizes in _DATA]
    return Layout(
        size=(int(tags[_WIDTH]), int(tags[_HEIGHT])),
        bands=bands,
        bits=bits,
        numbers=set(tags.get(_FORMAT, (_WHOLE_NUMBERS,))) == {_WHOLE_NUMBERS},
        alpha=bands in (2, 4) and tags.get(_EXTRA, (0,))[-1] in _ALPHA,
        orientation=orientation if orientation in range(1, 9) else 1,
        end=max(start + size for part in parts for start, size in part),
        by_opencv=usual and bits in (1, 8, 16),
        white_is_zero=kind == _WHITE_IS_ZERO,
        cmyk=kind == _CMYK,
    )


def read_bands(data: bytes, where: str) -> np.ndarray:
    """The bands of any TIFF file, H×W×N in the file's order, not turned.

    Args:
        where: begins the message.
    Raises:
        UserError: the package that reads them is not installed; beside whatever a broken file makes it raise.
    """
    try:
        from tifffile import TiffFile
    except ImportError:
        raise UserError(f"{where} needs another reader: pip install tifffile imagecodecs") from None
    with TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        bands = page.asarray()
        if "S" not in page.axes:
            return bands.reshape(*bands.shape, 1)
        return np.moveaxis(bands, page.axes.index("S"), -1)
