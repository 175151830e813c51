"""Images of more than 8 bits, and TIFF files: what is read, what range becomes 0 to 255, and what is refused."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from core.configs.loading import load_config
from core.datasets.catalog import find_images, find_target_images, find_test_images
from core.datasets.images import image_size, read_image, read_label, read_pixels, stored_depth, to_bytes
from core.datasets.sampling import Request
from core.datasets.taxonomy import Taxonomy
from core.selftraining.samples import TargetSamples
from core.sourcetraining.samples import SourceSamples
from core.utils.errors import UserError
from tests.datasets.tiffs import random_bands, tiff_bytes

MAKE_CASES = Path(__file__).resolve().parents[2].parent / "shared/cases/make.py"


# --- one file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colours", [True, False], ids=["rgb", "grey"])
@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 13])
def test_bands_of_a_tiff_count_from_1_in_the_files_order(tmp_path, bands, dtype, planar, colours):
    pytest.importorskip("tifffile")
    stored = random_bands(bands, dtype)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_bytes(stored, planar, colours and bands > 2))
    chosen = (1,) if bands < 3 else (bands, 1, 2)
    wanted = stored[..., [band - 1 for band in chosen]].repeat(4 - len(chosen) if bands < 3 else 1, 2)
    assert np.array_equal(read_pixels(path, chosen), wanted)
    assert image_size(path) == (32, 24)
    assert stored_depth(path) == 8 * stored.itemsize
    if bands in (1, 3):
        assert np.array_equal(read_pixels(path), stored.repeat(3, 2) if bands == 1 else stored)
    else:
        with pytest.raises(UserError, match=rf"^image .*a\.tif has {bands} bands; `bands: \[1, 2, 3\]` of a DATASETS"):
            read_pixels(path)
    with pytest.raises(UserError, match=rf"a\.tif has {bands} bands?, but `bands` names 14"):
        read_pixels(path, (14,))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_of_a_tiff_is_left_out_and_multiplied_with_nothing(tmp_path, dtype):
    stored = random_bands(4, dtype)
    (tmp_path / "a.tif").write_bytes(tiff_bytes(stored, colours=True, alpha=True))
    assert np.array_equal(read_pixels(tmp_path / "a.tif"), stored[..., :3])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bands", [1, 3, 5])
def test_a_tiff_is_turned_as_it_says(tmp_path, bands, orientation):
    pytest.importorskip("tifffile")
    stored, path = random_bands(bands, np.uint8), tmp_path / "a.tif"
    path.write_bytes(tiff_bytes(stored, colours=bands > 1, orientation=orientation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    first = Image.fromarray(stored[..., 0])
    first.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(read_pixels(path, (1,))[..., 0], upright)
    assert np.array_equal(read_pixels(tmp_path / "a.png", (1,))[..., 0], upright)
    assert image_size(path) == upright.shape[::-1]


def test_bands_of_other_files(tmp_path):
    colours = random_bands(3)
    assert cv2.imwrite(str(tmp_path / "a.png"), colours[..., ::-1])
    assert np.array_equal(read_pixels(tmp_path / "a.png", (3, 1, 1)), colours[..., [2, 0, 0]])
    assert np.array_equal(read_pixels(tmp_path / "a.png"), colours)
    assert np.array_equal(read_image(tmp_path / "a.png"), colours >> 8)


def test_printers_colours_are_refused(tmp_path):
    Image.new("CMYK", (8, 4), (1, 2, 3, 4)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif has the colours of printers \(CMYK\): convert it to RGB"):
        read_pixels(tmp_path / "a.tif")


def test_labels_of_32_bits_are_read_where_their_numbers_are_small(tmp_path):
    values = np.arange(24 * 32, dtype=np.int32).reshape(24, 32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.array_equal(read_label(tmp_path / "a.tif"), values)
    Image.fromarray(values - 1).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif is 32-bit with 1 channel"):
        read_label(tmp_path / "a.tif")


@pytest.mark.parametrize("array", [random_bands(1, np.float32), random_bands(3, np.uint32)])
def test_other_numbers_are_refused(tmp_path, array):
    (tmp_path / "a.tif").write_bytes(tiff_bytes(array, colours=array.shape[2] == 3))
    with pytest.raises(UserError, match=r"a\.tif has 32-bit numbers; whole ones of up to 16 bits are read"):
        read_pixels(tmp_path / "a.tif")


def test_a_tiff_that_is_cut_off_is_refused_at_any_length(tmp_path):
    whole = tiff_bytes(random_bands(4))
    for length in (3, 8, 100, len(whole) - 60, len(whole) - 1):
        (tmp_path / "a.tif").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.tif cannot be decoded|a\.tif has 4 bands"):
            read_pixels(tmp_path / "a.tif")


def test_a_reader_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (tmp_path / "a.tif").write_bytes(tiff_bytes(random_bands(5)))
    with pytest.raises(UserError, match=r"a TIFF file of 5 bands, needs another reader: pip install tifffile"):
        read_pixels(tmp_path / "a.tif", (1, 2, 3))
    (tmp_path / "b.tif").write_bytes(tiff_bytes(random_bands(3), colours=True))
    assert read_pixels(tmp_path / "b.tif").dtype == np.uint16


def test_a_range_becomes_0_to_255_linearly():
    values = np.array([0, 99, 100, 149, 150, 151, 200, 201, 65535], np.uint16)
    expected = [min(max(int(np.floor((int(v) - 100) * 2.55 + 0.5)), 0), 255) for v in values]
    assert np.abs(to_bytes(values, (100, 200)).astype(int) - expected).max() <= 0
    assert to_bytes(np.array([7, 8, 9], np.uint16), (7, 9)).tolist() == [0, 128, 255]


# --- a set -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def frames(tmp_path, options):
    """frames(arrays by file name, **INPUT options): a config whose target is a folder of these."""

    def make(arrays, **inputs):
        for name, array in arrays.items():
            path = tmp_path / "frames" / name
            path.parent.mkdir(exist_ok=True)
            assert cv2.imwrite(str(path), array)
        config = options(TARGET_TRAIN=f"folder:{tmp_path / 'frames'}", SOURCE_TRAIN="cityscapes_train")
        return config.changed({f"INPUT.{key}": value for key, value in inputs.items()})

    return make


def thermal(seed, low=7400, high=7900):
    """24×32 uint16 whose smallest and largest value these are."""
    values = np.random.default_rng(seed).integers(low, high + 1, (24, 32)).astype(np.uint16)
    values[0, :2] = low, high
    return values


def test_auto_takes_the_range_of_the_set_and_says_so(frames):
    images = find_target_images(frames({"0.png": thermal(0, 7400, 7800), "1.png": thermal(1, 7500, 7900)}))
    assert images.form.span == (7400, 7900)
    assert images.note == "16 bits, of which 7400 to 7900 become 0 to 255 (INPUT.DEPTH auto, by all 2 images)"
    seen = images.form.read(images.paths[0])
    assert np.array_equal(seen[..., 0], to_bytes(thermal(0, 7400, 7800), (7400, 7900)))
    assert np.array_equal(seen[..., 0], seen[..., 2])
    assert len(np.unique(seen)) > 200


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_depth_that_is_given_counts_from_0(frames, bits):
    images = find_target_images(frames({"0.png": thermal(0)}, DEPTH=str(bits)))
    assert images.form.span == (0, 2**bits - 1)
    expected = {14: "(14 bits, INPUT.DEPTH; of 256 levels the first images have 9: INPUT.DEPTH auto keeps more)"}
    expected[16] = expected[14].replace("14", "16").replace("have 9", "have 3")
    beyond = f"({bits} bits, INPUT.DEPTH; 100 % of the pixels of the first images lie beyond: is it another camera's?)"
    assert images.note.endswith(expected.get(bits, beyond))


def test_percentile_leaves_1_percent_of_the_pixels_at_either_end(frames):
    values = np.arange(10000, 20000).astype(np.uint16).reshape(100, 100)
    values[0, 0], values[0, 1] = 0, 65535
    assert find_target_images(frames({"0.png": values}, DEPTH="percentile")).form.span == (10100, 19900)
    images = find_target_images(frames({"0.png": values}))
    assert images.form.span == (0, 65535)
    assert "98 % of the pixels lie in 10100 to 19900: INPUT.DEPTH percentile would keep more contrast" in images.note


def test_images_that_are_all_one_value_have_a_range(frames):
    assert find_target_images(frames({"0.png": np.full((8, 8), 500, np.uint16)})).form.span == (500, 501)


def test_a_range_that_is_given_goes_before_all(frames):
    images = find_target_images(frames({"0.png": thermal(0)}, DEPTH_RANGE=(7000, 8000), DEPTH="12"))
    assert images.form.span == (7000, 8000)


def test_a_range_that_misses_most_of_the_pixels_is_said(frames):
    told = "(given by INPUT.DEPTH_RANGE; 100 % of the pixels of the first images lie beyond: is it another camera's?)"
    assert find_target_images(frames({"0.png": thermal(0)}, DEPTH_RANGE=(0, 100))).note.endswith(told)


def test_images_that_a_list_leaves_out_play_no_part(frames, tmp_path):
    config = frames(
        {"0.png": thermal(0, 7400, 7800), "1.png": thermal(1, 100, 9000), "9.png": random_bands(3, np.uint8)}
    )
    (tmp_path / "list.txt").write_text("0.png\n")
    images = find_target_images(config.changed({"DATASETS.TARGET_LIST": str(tmp_path / "list.txt")}))
    assert (images.names, images.form.span) == (("0.png",), (7400, 7800))


def test_a_depth_of_the_command_line_goes_before_a_range_that_a_run_has_found(tmp_path):
    (tmp_path / "config.yaml").write_text("INPUT: {DEPTH: auto, DEPTH_RANGE: [7000, 12100]}\n")
    found = load_config(tmp_path / "config.yaml").INPUT
    assert (found.DEPTH, found.DEPTH_RANGE) == ("auto", (7000, 12100))
    found = load_config(tmp_path / "config.yaml", ["INPUT.DEPTH", "14"]).INPUT
    assert (found.DEPTH, found.DEPTH_RANGE) == ("14", ())
    found = load_config(tmp_path / "config.yaml", ["INPUT.DEPTH", "14", "INPUT.DEPTH_RANGE", "(1, 2)"]).INPUT
    assert found.DEPTH_RANGE == (1, 2)


def test_labels_of_tiff_images_that_turn_themselves_lie_as_these_do(options, tmp_path):
    for orientation in range(1, 9):
        folder = tmp_path / str(orientation)
        values = np.arange(24 * 32, dtype=np.uint8).reshape(24, 32) % 3
        exif = Image.Exif()
        exif[0x0112] = orientation
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
            Image.fromarray(values * (80 if name == "images" else 1)).save(folder / name / "0.tif", exif=exif)
        splits = {"all": {"images": "images", "labels": "masks", "label_pattern": "*.tif"}}
        config = options(3, TEST="town_all", ROOT=str(folder))
        config.DATASETS.CUSTOM.merge({"town": {"classes": ["a", "b", "c"], "splits": splits}}, "some.yaml")
        images = find_test_images(config)
        seen = images.form.read(images.paths[0])[..., 0] // 80
        assert np.array_equal(images.read_label(0), seen)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
def test_labels_whose_white_is_0_are_what_is_stored(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    values = (np.arange(24 * 32).reshape(24, 32) % (2 if dtype is bool else 7)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    assert np.array_equal(read_label(tmp_path / "a.tif"), values)


@pytest.mark.parametrize("compression", ["zstd", "lzma", "deflate", "lzw"])
@pytest.mark.parametrize("predictor", [True, False])
def test_any_compression_is_read(tmp_path, compression, predictor):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    values = random_bands(3)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, compression=compression, predictor=predictor, photometric="rgb")
    assert np.array_equal(read_pixels(path), values)


@pytest.mark.parametrize("depth", ["auto", "16", "percentile"])
def test_images_of_8_bits_are_as_they_are(frames, depth):
    stored = random_bands(3, np.uint8)
    images = find_target_images(frames({"0.png": stored[..., ::-1]}, DEPTH=depth))
    assert (images.form.span, images.note) == ((), "")
    images = find_target_images(frames({"0.png": stored[..., ::-1]}, DEPTH=depth, DEPTH_RANGE=(3, 5)))
    assert (images.form.span, images.note) == ((), "8 bits: INPUT.DEPTH_RANGE (3, 5), of 16-bit images, plays no part")
    assert np.array_equal(images.form.read(images.paths[0]), stored)


def test_mixed_depths_name_one_file_of_each(frames):
    config = frames({"0.png": thermal(0), "1.png": thermal(1), "9.png": random_bands(3, np.uint8)})
    with pytest.raises(UserError, match=r"9\.png has 8 bits, .*0\.png 16: take one kind out, or convert it"):
        find_target_images(config)


@pytest.mark.parametrize(
    ("first", "then"), [(thermal(0), random_bands(3, np.uint8)), (random_bands(3, np.uint8), thermal(0))]
)
def test_a_file_that_changes_its_depth_is_bad(frames, first, then):
    images = find_target_images(frames({"0.png": first}))
    assert cv2.imwrite(str(images.paths[0]), then)
    with pytest.raises(
        UserError, match=r"0\.png has (8 bits, but the images of its set have 16|16 bits, but .* have 8)"
    ):
        images.form.read(images.paths[0])


def test_a_set_without_a_readable_file_says_why(frames):
    config = frames({"0.png": thermal(0)})
    path = find_images(config, "TARGET_TRAIN").paths[0]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"none of the images looked at can be read; the first: .*0\.png"):
        find_images(config, "TARGET_TRAIN")


@pytest.fixture
def field(options, tmp_path):
    """A config of labelled TIFF files of four bands as target, test and source: blue, green, red, near infrared."""

    def make(**fields):
        rng = np.random.default_rng(0)
        for split in ("a", "b"):
            for number in range(2):
                for folder in ("images", "masks"):
                    (tmp_path / split / folder).mkdir(parents=True, exist_ok=True)
                bands = random_bands(4, seed=number) + (1000 if split == "b" else 0)
                (tmp_path / split / f"images/{number}.tif").write_bytes(tiff_bytes(bands, colours=True))
                Image.fromarray(rng.integers(0, 2, (24, 32)).astype(np.uint8)).save(
                    tmp_path / split / f"masks/{number}.tif"
                )
        splits = {s: {"images": f"{s}/images", "labels": f"{s}/masks", "label_pattern": "*.tif"} for s in ("a", "b")}
        config = options(2, TARGET_TRAIN="field_a", TEST="field_b", SOURCE_TRAIN="field_b")
        config.DATASETS.CUSTOM.merge(
            {"field": {"classes": ["soil", "crop"], "splits": splits} | fields}, "some.yaml: C"
        )
        return config

    return make


def test_bands_of_a_set_are_red_green_blue_and_test_has_the_targets_range(field, tmp_path):
    config = field(bands=[3, 2, 1])
    target, test = find_target_images(config), find_test_images(config)
    first = random_bands(4, seed=0)
    assert (
        target.form.span
        == test.form.span
        == (min(random_bands(4, seed=n)[..., :3].min() for n in (0, 1)), target.form.span[1])
    )
    assert np.array_equal(read_pixels(target.paths[0], target.form.bands), first[..., [2, 1, 0]])
    own = find_images(config, "SOURCE_TRAIN")
    assert own.form.span[0] == target.form.span[0] + 1000
    (small,) = TargetSamples(target, Taxonomy(("soil", "crop")), config).full_views(target.names[:1])
    assert small.float().mean() == pytest.approx(target.form.read(target.paths[0]).mean(), abs=4)
    sample = SourceSamples(test, config).make(Request(0, 0))
    assert sample["images"].float().mean() == pytest.approx(test.form.read(test.paths[0]).mean(), abs=4)


@pytest.mark.parametrize("bands", [[0, 1, 2], [1, 2], "red", 0, [1.0, 2, 3], [[1], 2, 3]])
def test_wrong_bands_are_one_line(field, bands):
    with pytest.raises(UserError, match=r"some\.yaml: C\.field\.bands must be a list of three bands, or one, counted"):
        find_target_images(field(bands=bands))


def test_the_cache_keeps_ranges_apart(frames, tmp_path):
    config = frames({"0.png": thermal(0)}).changed({"DATALOADER.CACHE": str(tmp_path / "cache")})
    seen = []
    for span in ((7000, 8000), (0, 8000), (7000, 8000)):
        images = find_target_images(config.changed({"INPUT.DEPTH_RANGE": span}))
        seen.append(TargetSamples(images, Taxonomy(("a", "b")), config).full_views(images.names).float().mean().item())
    assert seen[0] == seen[2] < seen[1] - 50


@pytest.mark.parametrize("words", [["DEPTH", "9"], ["DEPTH_RANGE", "[5, 5]"], ["DEPTH_RANGE", "[1]"]])
def test_wrong_options_are_one_line(tmp_path, words):
    (tmp_path / "a.yaml").write_text("SEED: 1\n")
    with pytest.raises(UserError, match=rf"^INPUT\.{words[0]} must be "):
        load_config(tmp_path / "a.yaml", [f"INPUT.{words[0]}", words[1]])


@pytest.mark.skipif(not MAKE_CASES.is_file(), reason="shared/cases is not here")
def test_files_as_people_have_them(tmp_path, options):
    names = ("fourteen_bit", "mixed_depth", "sixteen_bit_tiff")
    subprocess.run([sys.executable, MAKE_CASES, tmp_path, *names], check=True, capture_output=True)
    config = options(TARGET_TRAIN=f"folder:{tmp_path}/fourteen_bit/images", SOURCE_TRAIN="cityscapes_train")
    images = find_target_images(config)
    stored = len(np.unique(np.concatenate([read_pixels(path)[..., 0].ravel() for path in images.paths])))
    levels = len(np.unique(np.concatenate([images.form.read(path).ravel() for path in images.paths])))
    assert stored >= 80
    assert levels >= 64
    with pytest.raises(UserError, match=r"9\.png has 8 bits, .*0\.png 16"):
        find_target_images(config.changed({"DATASETS.TARGET_TRAIN": f"folder:{tmp_path}/mixed_depth/images"}))
    fields = {"classes": ["sky", "road", "car", "pole"], "bands": [3, 2, 1]}
    fields["splits"] = {"all": {"images": "images", "labels": "masks"}}
    config = options(4, TARGET_TRAIN="field_all", TEST="field_all", ROOT=str(tmp_path / "sixteen_bit_tiff"))
    config.DATASETS.CUSTOM.merge({"field": fields}, "some.yaml")
    images = find_test_images(config)
    sky = images.form.read(images.paths[0])[0, 0].astype(int)  # drawn as (70, 130, 180), times 40
    assert sky[0] < sky[1] < sky[2]
    assert images.read_label(0)[0, 0] == 0
