"""What a user points at becomes images and videos, each once, under names that no two share."""

import os

import pytest

from core.utils.errors import UserError
from tools.predict.inputs import find_inputs

FILES = ("b/2.PNG", "b/1.jpg", "b/c/3.webp", "b/c/clip.mp4", "b/notes.txt", "b/.hidden.png", "a/1.jpg", "x[1].bmp")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """The current folder, with files in it."""
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "images", "videos"),
    [
        (["b"], ["1.jpg", "2.PNG", "c/3.webp"], ["c/clip.mp4"]),
        (["b/1.jpg"], ["1.jpg"], []),
        (["b/c/clip.mp4"], [], ["clip.mp4"]),
        (["b/2.PNG", "b/1.jpg"], ["2.PNG", "1.jpg"], []),  # the order of the words
        (["b", "a"], ["b/1.jpg", "b/2.PNG", "b/c/3.webp", "a/1.jpg"], ["b/c/clip.mp4"]),  # two files are 1.jpg
        (["b", "b/1.jpg", "./b/../b/1.jpg"], ["1.jpg", "2.PNG", "c/3.webp"], ["c/clip.mp4"]),
        (["*/*.jpg"], ["a/1.jpg", "b/1.jpg"], []),
        (["b/*"], ["1.jpg", "2.PNG", "c/3.webp"], ["c/clip.mp4"]),
        (["**/*.webp"], ["3.webp"], []),
        (["x[1].bmp"], ["x[1].bmp"], []),  # it exists, so it is no pattern
    ],
    ids=" ".join,
)
def test_words_and_names(tree, words, images, videos):
    found, moving = find_inputs(words)
    assert list(found.names) == images
    assert list(moving.names) == videos
    assert all(os.path.samefile(path, tree / str(path)) for path in found.paths)


def test_absolute_paths_and_a_home(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree / "a"))
    monkeypatch.delenv("NOWHERE", raising=False)
    for home in ("~", "$HOME", "${HOME}/*"):
        images, _ = find_inputs([home, str(tree / "b/1.jpg")])
        assert images.names == ("a/1.jpg", "b/1.jpg")
        assert list(images.paths) == [tree / "a/1.jpg", tree / "b/1.jpg"]
    with pytest.raises(UserError, match=r"^input \$NOWHERE/\*: the variable \$NOWHERE is not set"):
        find_inputs(["$NOWHERE/*"])


def test_left_out_folders(tree):
    images, videos = find_inputs(["b"], leave_out=[tree / "b/c", tree / "nowhere"])
    assert (images.names, len(videos)) == (("1.jpg", "2.PNG"), 0)
    with pytest.raises(UserError, match="holds no image or video"):
        find_inputs(["b/c"], leave_out=[tree / "b/c"])


def test_a_link_to_a_folder_is_followed_once(tree):
    (tree / "b/again").symlink_to(tree / "b")
    assert find_inputs(["b"])[0].names == ("1.jpg", "2.PNG", "c/3.webp")


def test_label_files_among_a_folders_images_are_left_out_and_named(tmp_path, write_png, draw_scene, log_lines):
    image, labels = draw_scene(0)
    write_png(tmp_path / "in/a.png", image)
    write_png(tmp_path / "in/a_mask.png", labels)
    images, _ = find_inputs([str(tmp_path / "in")])
    assert images.names == ("a.png",)
    assert log_lines == [f"1 label files among the images of {tmp_path / 'in'} are left out: a_mask.png"]
    assert find_inputs([str(tmp_path / "in/a_mask.png")])[0].names == ("a_mask.png",)  # asked for by name
