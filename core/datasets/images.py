"""Reading and writing image files, one way for all data sets."""

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from core.utils.errors import UserError
from core.utils.files import replacing

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_TRANSPOSING_ORIENTATIONS = (5, 6, 7, 8)
_EXIF_ORIENTATION = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PALETTE = 3  # colour type

cv2.utils.logging.setLogLevel(
    cv2.utils.logging.LOG_LEVEL_SILENT
)  # OpenCV's own warnings; a file that cannot be decoded raises here
cv2.setNumThreads(0)  # the loader's workers are the parallelism


def _read_bytes(path: str | Path, kind: str) -> np.ndarray:
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{kind} {path} cannot be read: {error.strerror}") from None


def _decode(path: str | Path, encoded: np.ndarray, flags: int, kind: str) -> np.ndarray:
    try:
        image = cv2.imdecode(encoded, flags)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{kind} {path} cannot be decoded ({len(encoded)} bytes): replace or remove it")
    return image


def read_image(path: str | Path) -> np.ndarray:
    """The upright RGB image, H×W×3 uint8, of any file: grey, RGBA, palette, 16-bit (its upper 8 bits), EXIF-rotated.

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    return cv2.cvtColor(_decode(path, _read_bytes(path, "image"), cv2.IMREAD_COLOR, "image"), cv2.COLOR_BGR2RGB)


def read_label(path: str | Path) -> np.ndarray:
    """An 8-bit label file of one channel, H×W uint8, values as they stand in the file; of a palette PNG the indices.

    Raises:
        UserError: missing, undecodable or not 8-bit single-channel.
    """
    encoded = _read_bytes(path, "label")
    depth, colour_type = _png_header(encoded)
    if colour_type == _PNG_PALETTE:
        return _decode_palette(path, encoded)
    label = _decode(path, encoded, cv2.IMREAD_UNCHANGED, "label")
    if label.ndim != 2 or label.dtype != np.uint8 or depth not in (8, None):
        found = f"{depth or 8 * label.itemsize}-bit with {label[0, 0].size} channel{'s' * (label.ndim > 2)}"
        raise UserError(f"label {path} is {found}; it must be an 8-bit single-channel image, or a palette PNG")
    return label


def read_red_channel(path: str | Path) -> np.ndarray:
    """A 16-bit RGB label file whose red channel holds the values: H×W uint16.

    Raises:
        UserError: missing, undecodable or not 16-bit RGB.
    """
    label = _decode(path, _read_bytes(path, "label"), cv2.IMREAD_UNCHANGED, "label")
    if label.ndim != 3 or label.dtype != np.uint16:
        found = f"{8 * label.itemsize}-bit with {label[0, 0].size} channel{'s' * (label.ndim > 2)}"
        raise UserError(f"label {path} is {found}; it must be 16-bit RGB, values in the red channel")
    return label[..., 2]  # OpenCV's order is BGR


def _png_header(encoded: np.ndarray) -> tuple[int | None, int | None]:
    """(bits per channel, colour type) of a PNG file, Nones for any other file."""
    head = encoded[: len(_PNG_SIGNATURE) + 18].tobytes()
    return (head[24], head[25]) if head.startswith(_PNG_SIGNATURE) and len(head) == 26 else (None, None)


def _decode_palette(path: str | Path, encoded: np.ndarray) -> np.ndarray:
    """The indices, which OpenCV would turn into colours."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(encoded)) as image:
            warnings.simplefilter("ignore")
            return np.array(image)
    except Exception:  # PIL raises SyntaxError, struct.error and more for broken files
        raise UserError(f"label {path} cannot be decoded ({len(encoded)} bytes): replace or remove it") from None


def write_label(path: str | Path, label: np.ndarray) -> None:
    """Write H×W uint8 as a PNG, losslessly and fast."""
    encoded = cv2.imencode(".png", label, (cv2.IMWRITE_PNG_COMPRESSION, 1))[1]
    Path(path).write_bytes(encoded.tobytes())


def write_palette_png(path: str | Path, label: np.ndarray, palette: np.ndarray) -> None:
    """Write H×W uint8 indices as a palette PNG, atomically (`palette`: 256×3 uint8 RGB)."""
    image = Image.fromarray(label)
    image.putpalette(palette.tobytes())
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def image_size(path: str | Path) -> tuple[int, int] | None:
    """(width, height) of the upright image, from the file's header; None where the header is not understood."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                size = image.size
                turned = _is_turned(image)
        except Exception:  # PIL raises SyntaxError, struct.error and more for broken files
            return None
    return size[::-1] if turned else size


def _is_turned(image: Image.Image) -> bool:
    """Whether EXIF says that width and height swap; broken EXIF says nothing."""
    if image.format == "PNG" and "exif" not in image.info:
        return False  # getexif would decode the whole image to look for it at the end of the file
    try:
        return image.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSING_ORIENTATIONS
    except Exception:
        return False
