"""Files made to do harm, damaged, or that only look like images: the right array, or one line, at once.

Without waiting, and before memory is used.
"""

import io
import os
import resource
import socket
import struct
import subprocess
import sys
import zlib
from functools import partial

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core.configs import cfg
from core.datasets.catalog import find_source_images, find_target_images, find_test_images
from core.datasets.images import (
    MAX_PIXELS,
    image_size,
    read_channel,
    read_colours,
    read_image,
    read_label,
    read_red_channel,
    stored_size,
)
from core.datasets.loading import full_view_loader
from core.datasets.reader import walk_files
from core.datasets.skipping import BadImage
from core.utils.errors import UserError, shorten
from tests.helpers import outcome

READERS = [read_image, read_label, read_red_channel]
SIDE = 1 << 15  # SIDE² is four times MAX_PIXELS


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(colour_type=2):
    """A sound PNG that would take gigabytes: black rows, compressed a thousandfold (here: the first of them)."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, colour_type, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(768)) if colour_type == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + head + palette + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


def with_size(ending, width, height):
    """A small image whose header is made to claim another size."""
    data = bytearray(cv2.imencode(f".{ending}", np.full((16, 16, 3), 90, np.uint8))[1].tobytes())
    if ending == "webp":  # of an animation: a single picture must be as large as it says
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "WEBP", save_all=True, append_images=[Image.new("RGB", (16, 16), "red")])
        data = bytearray(file.getvalue())
        data[24:30] = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    if ending == "jpg":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", height, width)
    elif ending == "bmp":
        data[18:26] = struct.pack("<ii", width, -height)
    return bytes(data)


BOMBS = {
    "png": png_bomb(),
    "palette.png": png_bomb(3),
    "jpg": with_size("jpg", SIDE, SIDE),
    "bmp": with_size("bmp", SIDE, SIDE),
    "webp": with_size("webp", SIDE, SIDE),
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("ending", BOMBS)
def test_a_decompression_bomb_is_refused_before_it_goes_off(tmp_path, monkeypatch, ending, read):
    path = tmp_path / f"bomb.{ending}"
    path.write_bytes(BOMBS[ending])
    monkeypatch.setattr(cv2, "imdecode", None)  # which would be asked for the memory
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage, match=rf"bomb\.{ending} claims to be {SIDE}×{SIDE}: .* {MAX_PIXELS} pixels") as caught:
        read(path)
    assert caught.value.path == str(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def test_a_large_image_is_no_bomb(tmp_path):
    path = tmp_path / "wide.png"
    path.write_bytes(cv2.imencode(".png", np.zeros((8, 100_000), np.uint8))[1].tobytes())
    assert read_label(path).shape == (8, 100_000)


@pytest.mark.parametrize("read", READERS)
def test_a_file_of_a_terabyte_is_not_read(tmp_path, read):
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadImage, match=r"sparse\.png cannot be read: it has 1099511627776 bytes"):
        read(path)


def make_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path must be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


OTHERS = {
    "pipe": os.mkfifo,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling link": lambda path: path.symlink_to(path.parent / "gone.png"),
    "link in a circle": lambda path: path.symlink_to(path),
    "folder": os.mkdir,
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_what_is_no_file_is_an_error_at_once(tmp_path, make):
    path = tmp_path / "odd.png"
    make(path)
    for read in READERS:
        with pytest.raises(BadImage, match=r"odd\.png cannot be read: "):
            read(path)
    assert image_size(path) is None


@pytest.fixture
def options(tmp_path):
    """options(**DATASETS): a config whose target is folder:tmp_path/frames, with two images in it."""

    def make(skip=0, **datasets):
        config = cfg.clone()
        config.DATALOADER.SKIP_BAD_IMAGES = skip
        config.DATASETS.TARGET_TRAIN = f"folder:{tmp_path / 'frames'}"
        config.DATASETS.update(datasets)
        return config

    (tmp_path / "frames").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (20, 10), (9, 90, 200)).save(tmp_path / "frames" / name)
    return make


@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind != "folder"])
def test_a_data_set_with_something_else_in_it_is_refused_at_the_start(options, tmp_path, kind):
    OTHERS[kind](tmp_path / "frames/odd.png")
    with pytest.raises(UserError, match=r"TARGET_TRAIN folder:.*: 1 of 3 images are no files.*frames/odd\.png$"):
        find_target_images(options())
    with pytest.raises(UserError, match=r"DATASETS\.TEST folder:.*odd\.png$"):
        find_test_images(options(skip=1, TEST=f"folder:{tmp_path / 'frames'}"))
    images = find_target_images(options(skip=1))  # which is then one of those that are skipped
    assert images.names == ("a.png", "b.jpg", "odd.png")
    (*_, last) = full_view_loader(images, [(8, 4)], 1, 0)
    assert last["bad"] == [True]
    assert images.skipped.paths == [str(tmp_path / "frames/odd.png")]


def test_links_in_circles_are_entered_once(options, tmp_path):
    folder = tmp_path / "frames"
    (folder / "inner").mkdir()
    Image.new("RGB", (20, 10)).save(folder / "inner/c.webp")
    (folder / "inner/up").symlink_to(folder)
    (folder / "inner/self").symlink_to(folder / "inner/self")
    (folder / "twin").symlink_to(folder / "inner")
    assert find_target_images(options()).names == ("a.png", "b.jpg", "inner/c.webp")


def test_a_folder_that_cannot_be_read_is_an_error(options, tmp_path, monkeypatch):
    scan = os.scandir

    def refuse(path):  # tests may run as root, who may read everything
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    (tmp_path / "frames/private").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"folder .*frames/private cannot be read: Permission denied"):
        find_target_images(options())


def test_an_image_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    for read in READERS:
        with pytest.raises(BadImage, match=r"a\.png cannot be read: Permission denied"):
            read(tmp_path / "a.png")


@pytest.fixture
def dig(tmp_path):
    """dig(name, depth): folders, each in the one before, and a file in the last; gone before pytest would walk them."""
    here = os.getcwd()

    def make(name, depth):
        os.chdir(tmp_path)  # step by step: the whole path may become longer than a call takes
        for _ in range(depth):
            os.mkdir(name)
            os.chdir(name)
        with open("deep.png", "wb"):
            pass
        os.chdir(here)

    yield make
    os.chdir(here)
    subprocess.run(["rm", "-rf", str(tmp_path)], check=True)


def test_folders_deeper_than_recursion_goes_are_walked(tmp_path, dig):
    dig("d", sys.getrecursionlimit() + 100)
    assert [path.name for path in walk_files(tmp_path)] == ["deep.png"]


def test_folders_deeper_than_a_path_can_be_are_an_error(tmp_path, dig):
    dig("d" * 250, 20)
    with pytest.raises(UserError, match=r"folder .*dd cannot be read: File name too long"):
        list(walk_files(tmp_path))


@pytest.mark.parametrize(
    "folder", ["x" * 5000, "~nobody-of-that-name/x", "a\0b"], ids=["too long", "unknown home", "null character"]
)
def test_a_folder_that_cannot_be_is_an_error(options, folder):
    with pytest.raises(UserError, match=r"DATASETS\.TARGET_TRAIN .* is not a folder"):
        find_target_images(options(TARGET_TRAIN=f"folder:{folder}"))


def test_a_misspelt_folder_is_found_again(options, tmp_path):
    (tmp_path / "my_frames").mkdir()
    (tmp_path / "my_frmes.txt").touch()
    with pytest.raises(UserError, match=rf"my_frmes is not a folder; did you mean {tmp_path}/my_frames\?"):
        find_target_images(options(TARGET_TRAIN=f"folder:{tmp_path}/my_frmes"))


NAMES = [
    "with space.png",
    " leading and trailing .png",
    "-leading-dash.png",
    "--help.png",
    "ünï ☃ 東京 🚲.png",
    "line\nbreak.png",
    "escape\x1b[31mred.png",
    "tab\tbell\a.png",
    "quote'\"$(touch x).png",
    "%s %d {name}.png",
    "x" * 251 + ".png",
]


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_are_found_and_read_and_their_errors_are_one_line_without_codes(options, tmp_path, name):
    path = tmp_path / "frames" / name
    Image.new("RGB", (20, 10), (9, 90, 200)).save(path)
    images = find_target_images(options())
    assert name in images.names
    assert [batch["bad"] for batch in full_view_loader(images, [(8, 4)], 3, 0)] == [[False] * 3]
    path.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        list(full_view_loader(images, [(8, 4)], 1, 0))
    message = str(caught.value)
    assert message.isprintable()
    assert "cannot be decoded (0 bytes)" in message
    assert name.encode("unicode_escape").decode() in message or name in message
    assert shorten([name]).isprintable()


def test_a_name_that_is_no_utf_8_is_refused_at_the_start(options, tmp_path):
    """It could be neither logged nor kept in a candidate index."""
    with open(os.fsencode(tmp_path / "frames") + b"/caf\xe9.png", "wb"):
        pass
    with pytest.raises(UserError, match=r"TARGET_TRAIN.*caf\\udce9\.png.*UTF-8"):
        find_target_images(options())


def test_a_format_that_is_not_one_of_ours_is_refused_whatever_its_name(tmp_path):
    for kind in ("GIF", "PPM"):
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png", kind)
        with pytest.raises(BadImage, match=r"a\.png cannot be decoded \(\d+ bytes.*PNG, JPEG, BMP, WebP or TIFF"):
            read_image(tmp_path / "a.png")
        assert image_size(tmp_path / "a.png") is None


def test_a_label_that_is_a_pipe_is_refused_at_the_start(make_cityscapes, tmp_path):
    make_cityscapes(tmp_path)
    label = next((tmp_path / "cityscapes/gtFine").rglob("*.png"))
    label.unlink()
    os.mkfifo(label)
    config = cfg.clone()
    config.DATASETS.ROOT, config.DATASETS.TEST = str(tmp_path), "cityscapes_val"
    config.DATASETS.SOURCE_TRAIN = "cityscapes_val"
    for find in (find_test_images, find_source_images):
        with pytest.raises(UserError, match=rf"1 of 3 label files are missing, the first is .*{label.name}"):
            find(config)


# --- fuzzing ---------------------------------------------------------------------------------------------------------


def encode(kind, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
SMALL = [
    *(encode("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")),
    encode("PNG", exif=EXIF),
    *(encode("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
    encode("JPEG", progressive=True),
    encode("JPEG", exif=EXIF),
    *(encode("BMP", mode) for mode in ("RGB", "L", "P", "1")),
    encode("WEBP"),
    encode("WEBP", "RGBA", lossless=True),
    encode("WEBP", exif=EXIF),
]


@st.composite
def damaged(draw, files=SMALL):
    """A small image with bytes changed, removed or put in, early ones more often, or cut off."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 4))):
        if not data:
            break
        place = draw(st.one_of(st.integers(0, min(64, len(data) - 1)), st.integers(0, len(data) - 1)))
        what = draw(st.sampled_from(["change", "remove", "insert", "cut"]))
        if what == "change":
            data[place] = draw(st.integers(0, 255))
        elif what == "remove":
            del data[place : place + draw(st.integers(1, 8))]
        elif what == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        else:
            del data[place:]
    return bytes(data)


LABELS = [encode("TIFF", mode) for mode in ("RGB", "L", "P", "1", "I;16")]
CONTENTS = st.one_of(damaged(), damaged(LABELS), st.binary(max_size=64))
READS = {  # and the types that they give
    read_image: ("uint8",),
    read_label: ("uint8", "uint16"),
    read_red_channel: ("uint16",),
    read_colours: ("uint32",),
    partial(read_channel, channel="alpha"): ("uint8", "uint16"),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "fuzz.png"


@given(data=CONTENTS)
def test_readers(path, data):
    path.write_bytes(data)
    size, label_header = image_size(path), stored_size(path)
    for read, dtypes in READS.items():
        array, line = outcome(read, path)
        if array is None:
            assert line.isprintable()
            assert str(path) in line
            continue
        assert (str(array.dtype) in dtypes, array.shape[2:]) == (True, (3,) if read is read_image else ())
        width, height = size if read is read_image else label_header[0]
        assert array.shape[0] * array.shape[1] == width * height  # which the limit is held against
    assert size is None or (len(size) == 2 and all(type(n) is int and n > 0 for n in size))


def test_whole_files_are_read(path):
    for data in SMALL:
        path.write_bytes(data)
        assert read_image(path).size == 12 * 20 * 3
        assert image_size(path) is not None


# --- list files

FRAMES = ("a.png", "b c.jpg", "sub/a.png", "sub/ü.png")
LINES = st.one_of(st.sampled_from([*FRAMES, "a", "sub/a", "./a.png", "#", "", "ü", "..", "/"]), st.text(max_size=8))
LISTS = st.one_of(
    st.lists(LINES, max_size=4).map("\n".join).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=24),
)


@pytest.fixture(scope="module")
def list_file(tmp_path_factory):
    """frames.txt beside the folder `frames`."""
    folder = tmp_path_factory.mktemp("lists")
    for name in FRAMES:
        (folder / "frames" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "frames" / name).write_bytes(SMALL[0])
    return folder / "frames.txt"


@given(data=LISTS)
def test_list_files(list_file, data):
    list_file.write_bytes(data)
    config = cfg.clone()
    config.DATASETS.TARGET_TRAIN = f"folder:{list_file.parent / 'frames'}"
    config.DATASETS.TARGET_LIST = str(list_file)
    images, line = outcome(find_target_images, config)
    if images is None:
        assert line.isprintable()
        assert "frames.txt" in line
    else:
        assert images.names
        assert set(images.names) <= set(FRAMES)
