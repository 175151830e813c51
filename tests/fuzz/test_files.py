"""Whatever the bytes of an image, a label or a list file: an array of the right kind comes out, or one line."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core.configs import cfg
from core.datasets.catalog import find_target_images
from core.datasets.images import image_size, read_image, read_label, read_red_channel
from tests.fuzz.cases import few_and_many, outcome


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
def damaged(draw):
    """A small image with bytes changed, removed or put in, early ones more often, or cut off."""
    data = bytearray(draw(st.sampled_from(SMALL)))
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


CONTENTS = st.one_of(damaged(), st.binary(max_size=64))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "fuzz.png"


@few_and_many(300, 10_000)
def test_readers(path, examples):
    @examples
    @given(data=CONTENTS)
    def check(data):
        path.write_bytes(data)
        size = image_size(path)
        for read, dtype, dimensions in (
            (read_image, "uint8", 3),
            (read_label, "uint8", 2),
            (read_red_channel, "uint16", 2),
        ):
            array, line = outcome(read, path)
            if array is None:
                assert line.isprintable()
                assert str(path) in line
                continue
            assert (array.dtype, array.ndim) == (np.dtype(dtype), dimensions)
            assert array.shape[2:] == ((3,) if read is read_image else ())
            assert array.shape[0] * array.shape[1] == size[0] * size[1]  # which the limit is held against
        assert size is None or (len(size) == 2 and all(type(n) is int and n > 0 for n in size))

    check()


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


@few_and_many(100, 10_000)
def test_list_files(list_file, examples):
    @examples
    @given(data=LISTS)
    def check(data):
        list_file.write_bytes(data)
        config = cfg.clone()
        config.DATASETS.TARGET_TRAIN = f"folder:{list_file.parent / 'frames'}"
        config.DATASETS.TARGET_LIST = str(list_file)
        images, line = outcome(find_target_images, config)
        if images is None:
            assert line.isprintable()
            assert "frames.txt" in line
            return
        assert images.names
        assert set(images.names) <= set(FRAMES)

    check()
