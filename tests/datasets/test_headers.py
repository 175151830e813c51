"""What a header says without decoding: size and completeness, on whole, cut and lying files of every format."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from core.datasets import headers
from core.datasets.headers import parse_header

VARIANTS = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "bmp": ("BMP", {}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "webp with exif": ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
}


def encode(variant, size=(37, 21), mode="RGB"):
    kind, options = VARIANTS[variant]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(37, 21), (1, 300)])
def test_size_and_end_of_whole_files(variant, size):
    assert parse_header(encode(variant, size)) == (*size, True)


@pytest.mark.parametrize("mode", ["P", "L", "1"])
def test_bmp_of_fewer_bits(mode):
    assert parse_header(encode("bmp", mode=mode)) == (37, 21, True)
    assert not parse_header(encode("bmp", mode=mode)[:-1]).complete


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cut_is_seen_wherever_it_is(variant):
    whole = encode(variant)
    for length in range(len(whole)):
        header = parse_header(whole[:length])
        assert header is None or not header.complete or header.width * header.height == 0, length


def test_a_jpeg_whose_tail_a_disk_filled_with_zeros_lacks_its_end():
    whole = encode("jpeg")
    assert not parse_header(whole[:-2] + bytes(2)).complete


def test_the_end_of_a_thumbnail_is_not_that_of_the_image():
    whole, thumbnail = encode("jpeg"), encode("jpeg", (8, 8))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    assert parse_header(whole[:2] + segment + whole[2:]) == (37, 21, True)
    assert parse_header(whole[:2] + segment + whole[2:-2]) == (37, 21, False)


def test_what_follows_the_end_is_nothing_to_worry_about():
    for variant in VARIANTS:
        assert parse_header(encode(variant) + b"trailer").complete


def test_other_files_have_no_header():
    assert [parse_header(data) for data in (b"", b"GIF89a" + bytes(50), b"no image", b"RIFF0000WAVE")] == [None] * 4


def test_files_of_nothing_but_headers_end_the_search(monkeypatch):
    monkeypatch.setattr(headers, "MAX_PARTS", 100)
    chunk = struct.pack(">I", 0) + b"tEXt" + bytes(4)
    end = struct.pack(">I", 0) + b"IEND" + bytes(4)
    assert parse_header(b"\x89PNG\r\n\x1a\n" + chunk * 99 + end).complete
    assert not parse_header(b"\x89PNG\r\n\x1a\n" + chunk * 100 + end).complete
    assert not parse_header(b"\xff\xd8" + b"\xff\xe0\x00\x02" * 101).complete
