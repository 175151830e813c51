"""Student views (method §2): the recorded geometry, padding, flips and cutout."""

import numpy as np
import pytest
import torch
from PIL import Image

from core.configs import cfg
from core.datasets import transforms
from core.datasets.catalog import ImageSet
from core.datasets.taxonomy import CITYSCAPES_19
from core.selftraining.samples import PasteRequest, TargetSamples
from core.selftraining.views import warp_to_view


@pytest.fixture
def plain(monkeypatch):
    """Without blur, greying and cutout, so that geometry alone is left."""
    monkeypatch.setattr(transforms, "BLUR_PROBABILITY", 0.0)
    monkeypatch.setattr(transforms, "GREY_PROBABILITY", 0.0)
    monkeypatch.setattr(transforms, "CUTOUT_PROBABILITY", 0.0)


def make_config(**options):
    """Full view 128×64, student view 96×48, no rescaling, no flip, no jitter; INPUT options may be given."""
    config = cfg.clone()
    for key, value in ({"INPUT_SIZE_TEST": (128, 64), "TARGET_INPUT_SIZE_TRAIN": (96, 48)} | options).items():
        config.INPUT[key] = value
    return config


def make_samples(folder, config, image):
    path = folder / "one.png"
    Image.fromarray(image).save(path)
    return TargetSamples(ImageSet("folder:one", (path,), ("one.png",)), CITYSCAPES_19, config)


def smooth_image(size=(96, 192), seed=0):
    y, x = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]), indexing="ij")
    phase = np.random.default_rng(seed).random(3) * 6
    return np.stack([127 + 60 * np.sin(3 * x + p) + 60 * np.cos(2 * y + p) for p in phase], -1).astype(np.uint8)


def pil_resize(array, size, how):
    return np.asarray(Image.fromarray(array).resize((size[1], size[0]), how))


GEOMETRIES = {
    "crop": {"INPUT_SCALES_TRAIN": (0.9, 1.75)},
    "padding": {"INPUT_SCALES_TRAIN": (0.4, 0.7)},
    "padding in one direction": {"INPUT_SCALES_TRAIN": (0.7, 0.9), "TARGET_INPUT_SIZE_TRAIN": (64, 72)},
    "exact": {"TARGET_INPUT_SIZE_TRAIN": (128, 64)},
}


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("options", GEOMETRIES.values(), ids=GEOMETRIES)
def test_view_is_what_its_geometry_says(tmp_path, options):
    image = smooth_image()
    config = make_config(HORIZONTAL_FLIP_PROB_TRAIN=0.5, **options)
    samples = make_samples(tmp_path, config, image)
    full = pil_resize(image, (64, 128), Image.Resampling.BILINEAR)
    crop = config.INPUT.TARGET_INPUT_SIZE_TRAIN[::-1]
    low, high = config.INPUT.INPUT_SCALES_TRAIN
    flips, origins = [], []
    for position in range(30):
        sample = samples[PasteRequest(0, position)]
        view = sample["views"]
        ours = sample["full"].permute(1, 2, 0).numpy().astype(int)
        assert abs(ours - full).max() <= 1
        assert view.crop_size == crop
        assert 64 * low - 1 < view.scaled_size[0] <= 64 * high
        assert abs(view.scaled_size[1] - 2 * view.scaled_size[0]) <= 2  # int() cuts both sides off
        scaled = pil_resize(ours.astype(np.uint8), view.scaled_size, Image.Resampling.BICUBIC)
        expected, inside = np.zeros((*crop, 3), int), np.zeros(crop, bool)
        for y in range(crop[0]):
            for x in range(crop[1]):
                row, column = y + view.top_left[0], x + view.top_left[1]
                if 0 <= row < view.scaled_size[0] and 0 <= column < view.scaled_size[1]:
                    shown = crop[1] - 1 - x if view.flip else x
                    expected[y, shown] = scaled[row, column]
                    inside[y, shown] = True
        student = sample["student"].permute(1, 2, 0).numpy().astype(int)
        assert (sample["valid"].numpy() == inside).all()
        difference = abs(student - expected)[inside]
        assert difference.max() <= 2  # torchvision's own bicubic is 2 levels off PIL's in a few pixels of a million
        assert (difference > 1).mean() < 0.002
        assert (student[~inside] == 0).all()
        for extent, side, origin in zip(view.scaled_size, crop, view.top_left, strict=True):
            assert min(0, extent - side) <= origin <= max(0, extent - side)
        warped = warp_to_view(torch.from_numpy(ours).permute(2, 0, 1)[None].float(), [view])[0].permute(1, 2, 0).numpy()
        assert abs(warped - student)[inside].max() < 8  # bilinear corners against bicubic; a wrong place is far off
        assert (sample["pasted"] == 255).all()
        flips.append(view.flip)
        origins.append(view.top_left)
    assert 4 < sum(flips) < 26
    if options != GEOMETRIES["exact"]:
        assert len(set(origins)) > 15


@pytest.mark.usefixtures("plain")
def test_crops_reach_every_border(tmp_path):
    config = make_config(TARGET_INPUT_SIZE_TRAIN=(126, 62))
    samples = make_samples(tmp_path, config, smooth_image())
    found = {samples[PasteRequest(0, position)]["views"].top_left for position in range(120)}
    assert found == {(y, x) for y in range(3) for x in range(3)}


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_flip_probability(tmp_path, probability):
    config = make_config(HORIZONTAL_FLIP_PROB_TRAIN=probability)
    samples = make_samples(tmp_path, config, smooth_image())
    assert {samples[PasteRequest(0, position)]["views"].flip for position in range(20)} == {probability == 1}


def test_dropped_pixels_are_whole_cells(tmp_path):
    """A 96×80 view has a grid of 3 × 2 cells of 32×40 pixels; a quarter of the views drop, each cell with 1/4."""
    config = make_config(TARGET_INPUT_SIZE_TRAIN=(80, 96))
    samples = make_samples(tmp_path, config, smooth_image())
    cells = []
    for position in range(300):
        dropped = samples[PasteRequest(0, position)]["dropped"].numpy()
        grid = dropped.reshape(3, 32, 2, 40).transpose(0, 2, 1, 3).reshape(6, -1)
        assert (grid.all(1) | ~grid.any(1)).all()
        cells.append(grid[:, 0])
    any_dropped = np.mean([cell.any() for cell in cells])
    assert abs(any_dropped - 0.25 * (1 - 0.75**6)) < 4.5 * np.sqrt(0.2 * 0.8 / 300)
    assert abs(np.mean([cell for cell in cells if cell.any()]) - 0.25 / (1 - 0.75**6)) < 0.12


def test_samples_are_made_on_one_thread_wherever_they_are_made(tmp_path, monkeypatch):
    """torch's float32 mean over a large image, which contrast is adjusted about, depends on the number of threads:
    so rarely on the rounded pixels that only the threads themselves can be tested."""
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(path)
    samples = TargetSamples(ImageSet("one", (path,), ("image.png",)), CITYSCAPES_19, cfg.clone())
    seen, resize = [], transforms.resize

    def spy(*args):
        seen.append(torch.get_num_threads())
        return resize(*args)

    monkeypatch.setattr(transforms, "resize", spy)
    torch.set_num_threads(2)
    samples[PasteRequest(0, 0)]
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2  # the network's threads are left as they were
