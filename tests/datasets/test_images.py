"""Image files of every kind come in as upright RGB, label files as they stand, and broken ones as a named error."""

import io
import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from core.datasets.images import (
    CHANNELS,
    image_size,
    read_channel,
    read_colours,
    read_image,
    read_label,
    read_red_channel,
    turned,
    turned_size,
    write_label,
    write_palette_png,
)
from core.utils.errors import UserError
from tests.helpers import outcome


@pytest.fixture
def scene(draw_scene):
    """64×128×3 uint8, no two of its corners alike."""
    return draw_scene(0)[0]


def save(scene, path, **options):
    Image.fromarray(scene).save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "PNG", "bmp", "Bmp", "webp", "WEBP", "jpg", "JPG", "jpeg", "Jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_files_come_back_as_pillow_reads_them(tmp_path, scene, ending, mode):
    path, lossy = tmp_path / f"a.{ending}", ending.lower().startswith("jp")
    stored = Image.fromarray(scene).convert(mode)
    stored.save(path, **({"quality": 90} if lossy else {"lossless": True} if ending.lower() == "webp" else {}))
    image = read_image(path)
    assert (image.dtype, image.shape) == (np.uint8, (64, 128, 3))
    with Image.open(path) as expected:
        assert np.abs(image.astype(int) - np.asarray(expected.convert("RGB"))).max() <= (2 if lossy else 0)
    assert lossy or np.array_equal(image, np.asarray(stored.convert("RGB")))
    assert image_size(path) == (128, 64)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "1", "transparent P"])
@pytest.mark.parametrize("odd", [False, True], ids=["even size", "odd size"])
def test_other_modes_become_rgb(tmp_path, scene, mode, odd):
    image = Image.fromarray(scene[:63, :127] if odd else scene)
    options = {"transparency": 3} if mode == "transparent P" else {}
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(np.arange(image.height * image.width, dtype=np.uint8).reshape(image.size[::-1])))
    else:
        image = image.convert(mode.split()[-1])
    image.save(tmp_path / "a.png", **options)
    expected = np.asarray(image.convert("RGBA" if "A" in mode or "P" in mode else "RGB"))[..., :3]
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)
    assert image_size(tmp_path / "a.png") == image.size


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_files_give_their_upper_8_bits(tmp_path, channels):
    shape = (8, 16) if channels == 1 else (8, 16, channels)
    deep = np.random.default_rng(0).integers(0, 1 << 16, shape).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "a.png"), deep)
    upper = (deep >> 8).astype(np.uint8)
    expected = upper[..., None].repeat(3, 2) if channels == 1 else upper[..., 2::-1]  # OpenCV writes BGR(A)
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)
    assert image_size(tmp_path / "a.png") == (16, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_exif_orientations_are_undone(tmp_path, scene, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(scene, tmp_path / f"a.{ending}", exif=exif)
    with Image.open(path) as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored).convert("RGB")).astype(int)
    image = read_image(path)
    assert image.shape == ((64, 128, 3) if orientation <= 4 else (128, 64, 3))
    assert np.abs(image - upright).max() <= 2
    assert image_size(path) == image.shape[1::-1]


VARIANTS = {
    "png": ("PNG", "RGB", {}),
    "png with palette": ("PNG", "P", {}),
    "jpeg": ("JPEG", "RGB", {}),
    "progressive jpeg": ("JPEG", "RGB", {"progressive": True}),
    "two pictures": ("MPO", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]}),
    "bmp": ("BMP", "RGB", {}),
    "bmp with palette": ("BMP", "P", {}),
    "bmp of one bit": ("BMP", "1", {}),
    "webp": ("WEBP", "RGB", {}),
    "lossless webp": ("WEBP", "RGB", {"lossless": True}),
    "webp with exif": ("WEBP", "RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
}


def encode(variant, size=(37, 21)):
    kind, mode, options = VARIANTS[variant]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def check_end(tmp_path):
    """check_end(bytes of a file, whole): that it is read, or refused because its end is not there."""

    def check(data, whole):
        (tmp_path / "a.jpg").write_bytes(data)
        if whole:
            assert read_image(tmp_path / "a.jpg").shape == (21, 37, 3)
            return
        for read in (read_image, read_label):
            with pytest.raises(UserError, match=r"a\.jpg cannot be decoded \(\d+ bytes"):
                read(tmp_path / "a.jpg")

    return check


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cut_is_seen_wherever_it_is(check_end, variant):
    """Where the decoder would make up what is missing, too."""
    whole = encode(variant)
    end = len(whole) if variant != "two pictures" else whole.index(b"\xff\xd9") + 2
    for length in (*range(0, end, 17), *range(end - 12, end)):
        check_end(whole[:length], False)
    if "jpeg" in variant:
        check_end(whole[:-2] + bytes(2), False)  # a disk filled the tail with zeros
    check_end(whole, True)
    check_end(whole + b"trailer", True)


@pytest.mark.parametrize("variant", ["jpeg", "progressive jpeg", "two pictures"])
def test_the_end_of_a_thumbnail_is_not_that_of_the_image(check_end, variant):
    whole, thumbnail = encode(variant), encode("jpeg", (8, 8))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    check_end(whole[:2] + segment + whole[2:], True)
    check_end(whole[:2] + segment + whole[2 : whole.index(b"\xff\xd9")], False)


def test_a_png_with_a_damaged_middle_is_an_error(tmp_path, scene):
    path = save(scene, tmp_path / "a.png")
    damaged = bytearray(path.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 64] = bytes(64)
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"a\.png cannot be decoded"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, read_label, read_red_channel])
def test_missing_files_folders_and_other_files_are_errors_with_their_path(tmp_path, read):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("no image")
    for name in ("missing.png", "folder.png", "text.png"):
        with pytest.raises(UserError, match=name) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert image_size(tmp_path / "missing.png") is None
    assert image_size(tmp_path / "text.png") is None


def test_labels_keep_their_values(tmp_path):
    label = np.arange(256, dtype=np.uint8).reshape(8, 32)
    Image.fromarray(label).save(tmp_path / "theirs.png")
    write_label(tmp_path / "ours.png", label)
    assert np.array_equal(read_label(tmp_path / "theirs.png"), label)
    assert np.array_equal(read_label(tmp_path / "ours.png"), label)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "ours.png")), label)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparent", [False, True])
def test_labels_of_palette_files_are_the_indices(tmp_path, bits, transparent):
    label = np.random.default_rng(0).integers(0, 2**bits, (5, 13), dtype=np.uint8)
    image = Image.fromarray(label)
    image.putpalette(np.random.default_rng(1).integers(0, 256, 3 * 2**bits, dtype=np.uint8).tobytes())
    image.save(tmp_path / "label.png", bits=bits, **({"transparency": 0} if transparent else {}))
    assert (tmp_path / "label.png").read_bytes()[24:26] == bytes([bits, 3])  # bits and colour type, PNG's header
    found = read_label(tmp_path / "label.png")
    assert found.dtype == np.uint8
    assert np.array_equal(found, label)


def store(path, label, mode, **options):
    """Write H×W values as an image of another mode of PIL's, each value kept."""
    if mode == "I;16":
        Image.fromarray(label.astype(np.uint16)).save(path, **options)
    elif mode == "1":
        Image.fromarray(label.astype(bool)).save(path, **options)
    else:
        Image.fromarray(label).convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16", "1"])
def test_labels_in_every_way_that_keeps_one_number_a_pixel(tmp_path, ending, mode):
    if ending == "bmp" and mode in ("LA", "I;16"):
        pytest.skip("no such BMP")
    most = {"1": 2, "I;16": 65536}.get(mode, 256)
    label = np.random.default_rng(0).integers(0, most, (5, 13)).astype(np.uint16 if most > 256 else np.uint8)
    found = read_label(store(tmp_path / f"label.{ending}", label, mode))
    assert found.dtype == label.dtype
    assert np.array_equal(found, label)


@pytest.mark.parametrize("bits", [8, 16])
def test_labels_as_opencv_writes_tiff(tmp_path, bits):
    label = np.random.default_rng(0).integers(0, 2**bits, (50, 70)).astype(f"uint{bits}")
    assert cv2.imwrite(str(tmp_path / "label.tif"), label)
    assert np.array_equal(read_label(tmp_path / "label.tif"), label)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_labels_of_few_bits_hold_small_numbers(tmp_path, bits):
    """Written by hand, as PIL writes such files of one bit only."""
    label = np.random.default_rng(0).integers(0, 2**bits, (5, 16), dtype=np.uint8)
    packed = np.packbits(np.unpackbits(label[..., None], axis=2)[..., -bits:].reshape(5, -1), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 16, 5, bits, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    (tmp_path / "label.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert np.array_equal(read_label(tmp_path / "label.png"), label)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("mode", ["L", "I;16", "1", "RGB"])
def test_a_tiff_that_was_cut_off_is_an_error(tmp_path, compression, mode):
    label = np.random.default_rng(0).integers(0, 2, (40, 50), dtype=np.uint8)
    path = store(tmp_path / "label.tif", label, mode, compression=compression)
    data = path.read_bytes()
    assert np.array_equal(read_label(path), label)
    for length in (*range(0, len(data), 41), *range(len(data) - 12, len(data))):
        path.write_bytes(data[:length])
        found, line = outcome(read_label, path)  # the last bytes say that there is no second picture
        if line is None and length > len(data) - 12:
            assert np.array_equal(found, label)
        else:
            assert re.search(r"label\.tif cannot be decoded", line)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_channel_holds_the_labels(tmp_path, ending):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 13, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"label.{ending}")
    for index, channel in enumerate(("red", "green", "blue", "alpha")):
        assert np.array_equal(read_channel(tmp_path / f"label.{ending}", channel), pixels[..., index])
    assert cv2.imwrite(str(tmp_path / "deep.png"), pixels[..., 2::-1].astype(np.uint16) * 256)
    assert np.array_equal(read_channel(tmp_path / "deep.png", "red"), pixels[..., 0].astype(np.uint16) * 256)
    with pytest.raises(UserError, match=r"deep\.png is 16-bit with 3 channels; it has no alpha channel"):
        read_channel(tmp_path / "deep.png", "alpha")
    assert cv2.imwrite(str(tmp_path / "deep.tif"), pixels[..., [2, 1, 0, 3]].astype(np.uint16) * 256)
    for index, channel in enumerate(("red", "green", "blue", "alpha")):
        assert np.array_equal(read_channel(tmp_path / "deep.tif", channel), pixels[..., index].astype(np.uint16) * 256)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    for channel in CHANNELS:
        with pytest.raises(UserError, match=rf"grey\.png is 8-bit with 1 channel; it has no {channel} channel"):
            read_channel(tmp_path / "grey.png", channel)


@pytest.mark.parametrize(
    ("mode", "ending"), [("RGB", "png"), ("RGBA", "png"), ("P", "png"), ("RGB", "tif"), ("L", "png")]
)
def test_the_colours_of_a_label(tmp_path, mode, ending):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 13, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / f"label.{ending}")
    colours = read_colours(tmp_path / f"label.{ending}")
    assert np.array_equal(colours, np.asarray(image.convert("RGB")).astype(np.uint32) @ [65536, 256, 1])
    Image.fromarray(pixels[..., 0].astype(np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png is 16-bit with 1 channel; colours must have 8 bits"):
        read_colours(tmp_path / "deep.png")


@pytest.mark.parametrize(
    ("make", "found", "readers"),
    [
        (np.full((4, 4, 3), (1, 2, 3), np.uint8), "8-bit with 3 channels", (read_label, read_red_channel)),
        (np.full((4, 4, 4), (7, 7, 7, 9), np.uint8), "8-bit with 4 channels", (read_label,)),
        (np.full((4, 4, 3), (0, 0, 1), np.uint16), "16-bit with 3 channels", (read_label,)),
        (np.zeros((4, 4), np.uint16), "16-bit with 1 channel", (read_red_channel,)),
        (np.zeros((4, 4), np.uint8), "8-bit with 1 channel", (read_red_channel,)),
        (np.zeros((4, 4), np.float32), "32-bit with 1 channel", (read_label,)),
    ],
)
def test_labels_of_another_kind_are_refused(tmp_path, make, found, readers):
    path = tmp_path / ("label.tif" if make.dtype == np.float32 else "label.png")
    assert cv2.imwrite(str(path), make)
    for read in readers:
        wanted = "class numbers in one channel.* by_colour" if read is read_label else "16-bit RGB"
        with pytest.raises(UserError, match=rf"label\.(png|tif) is {found};.*{wanted}"):
            read(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_array_is_turned_as_the_image_is(tmp_path, orientation):
    stored = np.random.default_rng(0).integers(0, 256, (5, 13), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png")[..., 0]
    assert np.array_equal(turned(stored, orientation), upright)
    assert turned_size((13, 5), orientation) == upright.shape[::-1]


def test_values_in_a_red_channel_of_16_bits(tmp_path):
    values = np.random.default_rng(0).integers(0, 1 << 16, (4, 6), dtype=np.uint16)
    other = np.full_like(values, 7)
    assert cv2.imwrite(str(tmp_path / "label.png"), np.dstack([other, other, values]))  # OpenCV writes BGR
    assert np.array_equal(read_red_channel(tmp_path / "label.png"), values)


def test_palette_images_hold_indices_and_show_colours(tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 256, (50, 70), dtype=np.uint8)
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    path = tmp_path / "prediction.png"
    for content in (np.zeros_like(label), label):  # a file that is there is replaced
        write_palette_png(path, content, palette)
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "P")
        assert np.array_equal(np.asarray(image), label)
        assert np.array_equal(np.asarray(image.convert("RGB")), palette[label])
    assert np.array_equal(read_image(path), palette[label])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ["webp", "png", "jpg"])
def test_broken_exif_hides_neither_image_nor_size(tmp_path, ending):
    path = tmp_path / f"frame.{ending}"
    Image.fromarray(np.full((30, 50, 3), 90, np.uint8)).save(path, exif=b"XX")
    assert read_image(path).shape == (30, 50, 3)
    assert image_size(path) == (50, 30)


@pytest.mark.parametrize("name", ["x" * 251 + ".png", "ü" * 125 + ".png", "a\nb -c.png"])
def test_a_prediction_may_have_the_longest_and_oddest_of_names(tmp_path, name):
    label = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_palette_png(tmp_path / name, label, np.zeros((256, 3), np.uint8))
    assert np.array_equal(read_label(tmp_path / name), label)
