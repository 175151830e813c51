"""Reading and writing image files, one way for all data sets."""

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from core.datasets import tiff
from core.datasets.skipping import BadImage
from core.utils.errors import UserError
from core.utils.files import open_regular, replacing

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", *tiff.ENDINGS)
MAX_PIXELS = 2**28  # of one image: a wider one is a mistake, or made to exhaust the memory
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
CHANNELS = {"red": 2, "green": 1, "blue": 0, "alpha": 3}  # of an RGB(A) file, in OpenCV's order
_TIFF_BITS, _TIFF_MODES = 258, ("L", "RGB", "RGBA")
_TRANSPOSING_ORIENTATIONS = (5, 6, 7, 8)
_EXIF_ORIENTATION = 0x0112
UPRIGHT = 1  # the orientation that leaves an image as it is stored
_JPEG_END = b"\xff\xd9"
_PNG = b"\x89PNG"
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
        if tiff.is_tiff(data):
            layout = tiff.read_layout(io.BytesIO(data))
            (width, height), whole = layout.size, layout.end <= len(data)
        else:
            with _opened(io.BytesIO(data)) as image:
                width, height = image.size
                whole = _has_its_end(data, image)
    except Exception:  # PIL raises SyntaxError, struct.error and more for broken files
        raise _undecodable(path, kind, data, "which begin as no sound PNG, JPEG, BMP, WebP or TIFF file does") from None
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
    """The upright RGB image, H×W×3 uint8, of any file; of 16 bits the upper 8. See :func:`read_pixels`."""
    pixels = read_pixels(path)
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


def read_pixels(path: str | Path, bands: Sequence[int] = ()) -> np.ndarray:
    """The upright RGB image, H×W×3 uint8, or uint16 where it has 16 bits, of any file: grey, RGBA, palette, TIFF, …

    Args:
        bands: those that are red, green, blue, or one for all three, counted from 1 in the file's order; none: as the
            file says.
    Raises:
        BadImage: the file is missing or no regular one, cannot be decoded, lacks its end, has over 2^28 pixels, other
            numbers than whole ones of up to 16 bits, or not these bands.
        UserError: a package is missing that reads a TIFF file of more bands.
    """
    data = _read_bytes(path, "image")
    if not bands and not tiff.is_tiff(data):
        return cv2.cvtColor(_decode(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, "image"), cv2.COLOR_BGR2RGB)
    stored, alpha = _stored_bands(path, data)
    count = stored.shape[2]
    if stored.dtype not in (np.uint8, np.uint16):
        raise BadImage(
            f"image {path} has numbers of the kind {stored.dtype}; whole ones of up to 16 bits are read", path
        )
    if not bands and count - alpha not in (1, 3):
        raise BadImage(
            f"image {path} has {count} bands; `bands: [1, 2, 3]` of a DATASETS.CUSTOM set names those that are red, "
            "green and blue",
            path,
        )
    chosen = bands or range(1, count - alpha + 1)
    if max(chosen) > count:
        raise BadImage(f"image {path} has {count} band{'s' * (count > 1)}, but `bands` names {max(chosen)}", path)
    chosen = [band - 1 for band in chosen]
    return np.ascontiguousarray(stored[..., chosen if len(chosen) == 3 else chosen * 3])


@cache
def _levels(span: tuple[int, int]) -> np.ndarray:
    low, high = span
    return np.rint((np.arange(2**16) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)


def to_bytes(pixels: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    """uint16 → uint8, linearly from span[0] → 0 to span[1] → 255, and these beyond."""
    return _levels(span)[pixels]


@dataclass(frozen=True)
class ImageForm:
    """How the image files of a set are read.

    Attributes:
        bands: see :func:`read_pixels`.
        span: the values of 16-bit images that become 0 and 255; empty: they have 8 bits.
    """

    bands: tuple[int, ...] = ()
    span: tuple[int, int] | tuple[()] = ()

    def read(self, path: str | Path) -> np.ndarray:
        """An image of the set, upright, H×W×3 uint8 RGB.

        Raises:
            BadImage: as :func:`read_pixels`, or it has another depth than the set.
        """
        pixels = read_pixels(path, self.bands)
        if (pixels.dtype == np.uint16) != bool(self.span):
            bits, others = (16, 8) if pixels.dtype == np.uint16 else (8, 16)
            raise BadImage(f"image {path} has {bits} bits, but the images of its set have {others}", path)
        return to_bytes(pixels, self.span) if self.span else pixels


PLAIN = ImageForm()


def _stored_bands(path: str | Path, data: bytes) -> tuple[np.ndarray, bool]:
    """The bands of an image file in its order, H×W×N, upright; and whether the last one is alpha."""
    if not tiff.is_tiff(data):
        stored = _in_file_order(_decode(path, data, cv2.IMREAD_UNCHANGED, "image"))
        with _opened(io.BytesIO(data)) as image:
            return turned(stored, _orientation(image)), stored.shape[2] in (2, 4)
    layout = tiff.read_layout(io.BytesIO(data))
    if layout.cmyk:
        raise BadImage(f"image {path} has the colours of printers (CMYK): convert it to RGB", path)
    if not (layout.bits <= 16 and layout.numbers):
        raise BadImage(f"image {path} has {layout.bits}-bit numbers; whole ones of up to 16 bits are read", path)
    if layout.by_opencv and not (layout.alpha and layout.bits == 8):  # where OpenCV would multiply colours by alpha
        with suppress(BadImage):  # compressed as it does not know
            return _in_file_order(_decode(path, data, cv2.IMREAD_UNCHANGED, "image")), layout.alpha
    try:
        if layout.by_opencv and layout.alpha and layout.bits == 8:
            with _opened(io.BytesIO(data)) as image:
                stored = np.array(image)
        else:
            stored = tiff.read_bands(data, f"image {path}, a TIFF file of {layout.bands} bands,")
    except UserError:
        raise
    except Exception:  # whatever a broken file makes PIL or tifffile raise
        raise _undecodable(path, "image", data) from None
    return turned(stored, layout.orientation), layout.alpha


def _in_file_order(image: np.ndarray) -> np.ndarray:
    """What OpenCV decodes, as H×W×N with red first."""
    return image[..., None] if image.ndim == 2 else image[..., [2, 1, 0, 3][: image.shape[2]]]


def read_label(path: str | Path) -> np.ndarray:
    """The values of a label file as they stand in it, H×W uint8, or uint16 where it has 16 bits.

    Of a palette file the indices; of RGB with three equal channels one of them; bits are 0 and 1.

    Raises:
        BadImage: as :func:`read_image`, or channels that differ, or numbers of other than 1 to 16 bits.
    """
    data = _read_bytes(path, "label")
    label = _stored_label(path, data, indices=True)
    if label.ndim == 2 and label.dtype == np.uint8 and tiff.is_tiff(data):
        layout = tiff.read_layout(io.BytesIO(data))
        if layout.white_is_zero:  # which readers turn to black
            label = np.uint8(2**layout.bits - 1) - label
    if label.ndim == 3 and _is_grey(label):
        label = label[..., 0].copy()
    if label.ndim == 2 and label.dtype.kind in "iu" and label.min() >= 0 and label.max() < 2**16:
        label = label.astype(np.uint16) if label.itemsize != 1 else label.astype(np.uint8)  # of any width, in TIFF
    if label.ndim != 2 or label.dtype not in (np.uint8, np.uint16):
        raise BadImage(
            f"label {path} is {_kind_of(label)}; it must hold the class numbers in one channel, in three equal ones or "
            "as a palette file's indices, of 8 or 16 bits (a DATASETS.CUSTOM set may say by_colour, palette or "
            "label_channel)",
            path,
        )
    if data.startswith(_PNG) and data[_PNG_DEPTH] in (2, 4) and data[_PNG_COLOURS] != _PNG_PALETTE:
        label //= np.uint8(255 // (2 ** data[_PNG_DEPTH] - 1))  # OpenCV has stretched them to 8 bits
    return label


def read_channel(path: str | Path, channel: str) -> np.ndarray:
    """One channel of an RGB(A) label file (a key of CHANNELS), H×W uint8, or uint16 where it has 16 bits.

    Raises:
        BadImage: as :func:`read_image`, or the file does not have the channel.
    """
    label, index = _stored_label(path, _read_bytes(path, "label")), CHANNELS[channel]
    if label.ndim != 3 or index >= label.shape[2] or label.dtype not in (np.uint8, np.uint16):
        raise BadImage(f"label {path} is {_kind_of(label)}; it has no {channel} channel of 8 or 16 bits", path)
    return label[..., index]


def read_red_channel(path: str | Path) -> np.ndarray:
    """A 16-bit RGB label file whose red channel holds the values: H×W uint16.

    Raises:
        BadImage: as :func:`read_image`, or not 16-bit RGB.
    """
    label = _stored_label(path, _read_bytes(path, "label"))
    if label.ndim != 3 or label.dtype != np.uint16:
        raise BadImage(f"label {path} is {_kind_of(label)}; it must be 16-bit RGB, values in the red channel", path)
    return label[..., CHANNELS["red"]]


def read_colours(path: str | Path) -> np.ndarray:
    """The colours of a label file as they stand in it, H×W uint32, each 0xRRGGBB; alpha plays no part.

    Raises:
        BadImage: as :func:`read_image`, or not of 8 bits.
    """
    label = _stored_label(path, _read_bytes(path, "label"))
    if label.dtype != np.uint8:
        raise BadImage(f"label {path} is {_kind_of(label)}; colours must have 8 bits a channel", path)
    to_four = {2: cv2.COLOR_GRAY2BGRA, 3: cv2.COLOR_BGR2BGRA}
    four = label if label[0, 0].size == 4 else cv2.cvtColor(label, to_four[label.ndim])
    return np.ascontiguousarray(four).view("<u4")[..., 0] & 0xFFFFFF


def _stored_label(path: str | Path, data: bytes, indices: bool = False) -> np.ndarray:
    """What a label file stores, turned by EXIF where it is TIFF: H×W, or H×W×C in OpenCV's order BGR(A).

    Args:
        data: of the file.
        indices: a palette's indices instead of its colours, and bits as 0 and 1 instead of 0 and 255.
    """
    try:
        with _opened(io.BytesIO(data)) as image:
            if indices and image.mode in ("P", "1"):
                return np.array(image).astype(np.uint8)
            if image.format == "TIFF" and set(image.tag_v2[_TIFF_BITS]) == {8} and image.mode in _TIFF_MODES:
                found = np.array(image)  # OpenCV would multiply colours by alpha
                return found if found.ndim == 2 else found[..., [2, 1, 0, 3][: found.shape[2]]]
    except Exception:  # PIL raises SyntaxError, struct.error and more for broken files
        raise _undecodable(path, "label", data) from None
    return _decode(path, data, cv2.IMREAD_UNCHANGED, "label")


def _is_grey(label: np.ndarray) -> bool:
    """Whether the colours of BGR(A) are equal, and nothing is transparent."""
    blue = label[..., 0]
    equal = all(np.array_equal(blue, label[..., index]) for index in range(1, min(label.shape[2], 3)))
    return equal and (label.shape[2] < 4 or bool((label[..., 3] == np.iinfo(label.dtype).max).all()))


def _kind_of(label: np.ndarray) -> str:
    return f"{8 * label.itemsize}-bit with {label[0, 0].size} channel{'s' * (label.ndim > 2)}"


def write_label(path: str | Path, label: np.ndarray) -> None:
    """Write H×W uint8 as a PNG, losslessly and fast: rows as differences from those above, of which runs are kept."""
    encoded = cv2.imencode(".png", label, _LABEL_PNG)[1]
    Path(path).write_bytes(encoded.tobytes())


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write H×W (grey; uint16, too) or H×W×3 (RGB) uint8, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(png_bytes(image))


def png_bytes(image: np.ndarray) -> bytes:
    """The PNG file of H×W (grey; uint16, too) or H×W×3 (RGB) uint8."""
    if image.dtype not in (np.uint8, np.uint16):  # which OpenCV would cut off
        raise ValueError(f"no PNG holds {image.dtype}")
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image)[1].tobytes()


def write_palette_png(path: str | Path, label: np.ndarray, palette: np.ndarray) -> None:
    """Write H×W uint8 indices as a palette PNG, atomically (`palette`: 256×3 uint8 RGB)."""
    image = Image.fromarray(label)
    image.putpalette(palette.tobytes())
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def image_size(path: str | Path) -> tuple[int, int] | None:
    """(width, height) of the upright image, from the file's header; None where the header is not understood."""
    header = stored_size(path)
    return None if header is None else turned_size(*header)


def stored_size(path: str | Path) -> tuple[tuple[int, int], int] | None:
    """(width, height) as stored, and EXIF's orientation (1 to 8), from the header; None: it is not understood."""
    if not os.path.isfile(path):  # opening a pipe would wait
        return None
    try:
        with open(path, "rb") as file:
            if tiff.is_tiff(file.peek(4)):
                layout = tiff.read_layout(file)
                return layout.size, layout.orientation
            with _opened(file) as image:
                return image.size, _orientation(image)
    except Exception:  # PIL raises SyntaxError, struct.error and more for broken files
        return None


def stored_depth(path: str | Path) -> int | None:
    """Bits of an image's numbers as it would be read, 8 or 16, from the file's header; None: it is not understood."""
    if not str(path).lower().endswith((".png", *tiff.ENDINGS)):
        return 8
    try:
        with open_regular(path) as file:
            header = file.peek(_PNG_DEPTH + 1)
            bits = tiff.read_layout(file).bits if tiff.is_tiff(header) else header[_PNG_DEPTH]
    except Exception:  # PIL raises struct.error and more for broken files
        return None
    return 16 if 8 < bits <= 16 else 8


def _orientation(image: Image.Image) -> int:
    """What EXIF says of it; broken EXIF says nothing."""
    if image.format == "PNG" and "exif" not in image.info:
        return UPRIGHT  # getexif would decode the whole image to look for it at the end of the file
    try:
        found = image.getexif().get(_EXIF_ORIENTATION, UPRIGHT)
        return found if found in range(1, 9) else UPRIGHT
    except Exception:
        return UPRIGHT


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) of what :func:`turned` gives."""
    return size[::-1] if orientation in _TRANSPOSING_ORIENTATIONS else size


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """A stored H×W(×N) array, upright: turned and mirrored as EXIF's orientation (1 to 8) says."""
    if orientation in _TRANSPOSING_ORIENTATIONS:
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array[::-1] if orientation in (3, 4, 7, 8) else array
