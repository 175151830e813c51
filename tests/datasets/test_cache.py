"""Decoded images on disk: the same arrays as without, anew when a source changes, never more than allowed."""

import os

import numpy as np
import pytest

from core.datasets.cache import GIGABYTE, ImageCache
from core.datasets.images import read_image
from core.datasets.skipping import BadImage
from core.utils.errors import UserError


class Made:
    """Reads an image, and counts how often."""

    def __init__(self):
        self.count = 0

    def __call__(self, path):
        self.count += 1
        return read_image(path)


@pytest.fixture
def picture(tmp_path, write_png, draw_scene):
    return write_png(tmp_path / "picture.png", draw_scene(0)[0])


def files(cache):
    return sorted(path for path in cache.folder.iterdir() if path.suffix == ".npy")


def test_an_image_is_decoded_once_per_purpose(tmp_path, picture):
    made, expected = Made(), read_image(picture)
    for _ in range(2):  # two processes, say
        cache = ImageCache(tmp_path / "cache", GIGABYTE)
        for purpose in ("a", "b", "a"):
            array = cache.get(picture, purpose, made)
            assert (array.dtype, array.flags.writeable) == (np.uint8, True)
            assert np.array_equal(array, expected)
            array[:] = 0  # reaches nobody
    assert made.count == 2
    assert len(files(cache)) == 2


def test_a_source_that_changes_is_decoded_anew(tmp_path, picture, write_png, draw_scene):
    cache, made = ImageCache(tmp_path / "cache", GIGABYTE), Made()
    cache.get(picture, "a", made)
    before = os.stat(picture)
    write_png(picture, draw_scene(1)[0])
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert np.array_equal(cache.get(picture, "a", made), draw_scene(1)[0])
    assert made.count == 2


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00", b"other"])
def test_a_damaged_file_is_made_again(tmp_path, picture, damage):
    cache, made = ImageCache(tmp_path / "cache", GIGABYTE), Made()
    cache.get(picture, "a", made)
    files(cache)[0].write_bytes(damage)
    for _ in range(2):
        assert np.array_equal(cache.get(picture, "a", made), read_image(picture))
    assert made.count == 2


def test_the_folder_never_holds_more_than_its_limit(tmp_path, picture):
    size = read_image(picture).nbytes
    cache, made = ImageCache(tmp_path / "cache", 3 * size), Made()
    for _ in range(2):
        for purpose in range(5):
            assert np.array_equal(cache.get(picture, purpose, made), read_image(picture))
    assert len(files(cache)) == 2  # with their headers, a third would be too much
    assert made.count == 2 + 3 + 3
    assert sum(path.stat().st_size for path in files(cache)) <= 3 * size


def test_a_missing_source_is_the_readers_error(tmp_path):
    with pytest.raises(BadImage, match=r"none\.png cannot be read"):
        ImageCache(tmp_path / "cache", GIGABYTE).get(tmp_path / "none.png", "a", read_image)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_done(tmp_path, picture, monkeypatch):
    cache = ImageCache(tmp_path / "cache", GIGABYTE)

    def no_room(file, array, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", no_room)
    with pytest.raises(UserError, match=r"cache cannot be written \(No space left on device\)"):
        cache.get(picture, "a", read_image)
    assert [path.name for path in cache.folder.iterdir()] == [".lock"]


def test_a_file_in_the_place_of_the_folder_names_its_option(picture):
    with pytest.raises(UserError, match=r"DATALOADER\.CACHE .*picture\.png"):
        ImageCache(picture, GIGABYTE)
