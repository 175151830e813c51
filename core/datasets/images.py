"""Reading and writing image files, one way for all data sets."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from core.datasets.skipping import BadImage
from core.utils.files import open_regular, replacing

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAX_PIXELS = 2**28  # of one image: a wider one is a mistake, or made to exhaust the memory
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_TRANSPOSING_ORIENTATIONS = (5, 6, 7, 8)
_EXIF_ORIENTATION = 0x0112
_JPEG_END = b"\xff\xd9"
_PNG_END = b"\0\0\0\0IEND"  # and four bytes of checksum
_PNG_DEPTH, _PNG_COLOURS, _PNG_PALETTE = 24, 25, 3  # two positions in a PNG file, and the colour type with a palette
_MAX_BYTES = 8 * MAX_PIXELS  # of a file: what 16-bit RGBA takes where nothing can be compressed
_PNG_FILTER, _PNG_UP = getattr(cv2, "IMWRITE_PNG_FILTER", None), 32  # the latter is libpng's PNG_FILTER_UP
_LABEL_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1)
if _PNG_FILTER is not None:  # OpenCV 4.12
    _LABEL_PNG += (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE, _PNG_FILTER, _PNG_UP)

# OpenCV's own warnings; a file that cannot be decoded raises here
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
cv2.setNumThreads(0)  # the loader's workers are the parallelism
Image.MAX_IMAGE_PIXELS = None  # PIL's own bound, below ours: it opens files for their size, which is checked here


@contextmanager
def _opened(file: IO[bytes] | str | Path) -> Iterator[Image.Image]:
    """The file as PIL sees it before anything is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=_FORMATS) as image:
            yield image


def _read_bytes(path: str | Path, kind: str) -> bytes:
    """The whole file, once its header has said that decoding it is reasonable."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MAX_BYTES:
                raise ValueError(f"it has {size} bytes")
            data = file.read()
    except (OSError, ValueError) as error:  # the latter where the name holds a null character
        reason = getattr(error, "strerror", None) or error
        raise BadImage(f"{kind} {path} cannot be read: {reason}", path) from None
    try:
        with _opened(io.BytesIO(data)) as image:
            width, height = image.size
            whole = _has_its_end(data, image)
    except Exception:  # PIL raises SyntaxError, struct.error and more for broken files
        raise _undecodable(path, kind, data, "which begin as no sound PNG, JPEG, BMP or WebP file does") from None
    if width * height > MAX_PIXELS:
        raise BadImage(
            f"{kind} {path} claims to be {width}×{height}: images of more than {MAX_PIXELS} pixels are refused", path
        )
    if not whole:
        raise _undecodable(path, kind, data, "the end is missing")
    return data


def _has_its_end(data: bytes, image: Image.Image) -> bool:
    """Whether a file was not cut off, as far as its bytes say; OpenCV makes up what is missing, and says nothing."""
    if image.format == "PNG":
        return 0 <= data.rfind(_PNG_END) <= len(data) - len(_PNG_END) - 4
    if image.format == "BMP":
        decoder, (*_, height), start, arguments = image.tile[0]
        return decoder != "raw" or start + height * arguments[1] <= len(data)  # bytes of a row
    if image.format == "WEBP":
        return 8 + int.from_bytes(data[4:8], "little") <= len(data)
    pixels = JpegImageFile(io.BytesIO(data)).fp.tell()  # a thumbnail, which has an end of its own, stands before them
    return data.rfind(_JPEG_END, pixels) >= 0


def _undecodable(path: str | Path, kind: str, data: bytes, reason: str = "") -> BadImage:
    found = f"{len(data)} bytes{f', {reason}' if reason and data else ''}"
    return BadImage(f"{kind} {path} cannot be decoded ({found}): replace or remove it", path)


def _decode(path: str | Path, data: bytes, flags: int, kind: str) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise _undecodable(path, kind, data)
    return image


def read_image(path: str | Path) -> np.ndarray:
    """The upright RGB image, H×W×3 uint8, of any file: grey, RGBA, palette, 16-bit (its upper 8 bits), EXIF-rotated.

    Raises:
        BadImage: the file is missing or no regular one, cannot be decoded, lacks its end, or has over 2^28 pixels.
    """
    return cv2.cvtColor(_decode(path, _read_bytes(path, "image"), cv2.IMREAD_COLOR, "image"), cv2.COLOR_BGR2RGB)


def read_label(path: str | Path) -> np.ndarray:
    """An 8-bit label file of one channel, H×W uint8, values as they stand in the file; of a palette PNG the indices.

    Raises:
        BadImage: as :func:`read_image`, or not 8-bit single-channel.
    """
    data = _read_bytes(path, "label")
    is_png = data.startswith(b"\x89PNG")
    if is_png and data[_PNG_COLOURS] == _PNG_PALETTE:  # OpenCV would turn the indices into colours
        try:
            with _opened(io.BytesIO(data)) as image:
                return np.array(image)
        except Exception:  # PIL raises SyntaxError, struct.error and more for broken files
            raise _undecodable(path, "label", data) from None
    label = _decode(path, data, cv2.IMREAD_UNCHANGED, "label")
    depth = data[_PNG_DEPTH] if is_png else 8 * label.itemsize  # OpenCV makes 8 bits of fewer
    if label.ndim != 2 or depth != 8:
        found = f"{depth}-bit with {label[0, 0].size} channel{'s' * (label.ndim > 2)}"
        raise BadImage(f"label {path} is {found}; it must be an 8-bit single-channel image, or a palette PNG", path)
    return label


def read_red_channel(path: str | Path) -> np.ndarray:
    """A 16-bit RGB label file whose red channel holds the values: H×W uint16.

    Raises:
        BadImage: as :func:`read_image`, or not 16-bit RGB.
    """
    label = _decode(path, _read_bytes(path, "label"), cv2.IMREAD_UNCHANGED, "label")
    if label.ndim != 3 or label.dtype != np.uint16:
        found = f"{8 * label.itemsize}-bit with {label[0, 0].size} channel{'s' * (label.ndim > 2)}"
        raise BadImage(f"label {path} is {found}; it must be 16-bit RGB, values in the red channel", path)
    return label[..., 2]  # OpenCV's order is BGR


def write_label(path: str | Path, label: np.ndarray) -> None:
    """Write H×W uint8 as a PNG, losslessly and fast: rows as differences from those above, of which runs are kept."""
    encoded = cv2.imencode(".png", label, _LABEL_PNG)[1]
    Path(path).write_bytes(encoded.tobytes())


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write H×W (grey) or H×W×3 (RGB) uint8, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(png_bytes(image))


def png_bytes(image: np.ndarray) -> bytes:
    """The PNG file of H×W (grey) or H×W×3 (RGB) uint8."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image)[1].tobytes()


def write_palette_png(path: str | Path, label: np.ndarray, palette: np.ndarray) -> None:
    """Write H×W uint8 indices as a palette PNG, atomically (`palette`: 256×3 uint8 RGB)."""
    image = Image.fromarray(label)
    image.putpalette(palette.tobytes())
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def image_size(path: str | Path, upright: bool = True) -> tuple[int, int] | None:
    """(width, height) of the upright image, or as it is stored, by the file's header; None where that says nothing."""
    if not os.path.isfile(path):  # opening a pipe would wait
        return None
    try:
        with _opened(path) as image:
            return image.size[::-1] if upright and _is_turned(image) else image.size
    except Exception:  # PIL raises SyntaxError, struct.error and more for broken files
        return None


def _is_turned(image: Image.Image) -> bool:
    """Whether EXIF says that width and height swap; broken EXIF says nothing."""
    if image.format == "PNG" and "exif" not in image.info:
        return False  # getexif would decode the whole image to look for it at the end of the file
    try:
        return image.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSING_ORIENTATIONS
    except Exception:
        return False
