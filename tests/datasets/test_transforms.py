"""Resizing against Pillow, normalisation against numpy, and the distributions of what is drawn at random."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from core.configs import cfg
from core.datasets import transforms
from core.datasets.transforms import (
    GREY_PROBABILITY,
    ColourJitter,
    Normalise,
    cutout_mask,
    random_blur,
    resize,
    stack_images,
    to_tensor,
)

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def draws(function, count=400):
    return [function(np.random.default_rng(seed)) for seed in range(count)]


def jitter(**strengths):
    return dict.fromkeys(("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE"), 0.0) | strengths


EVERYTHING = jitter(BRIGHTNESS=0.5, CONTRAST=0.5, SATURATION=0.5, HUE=0.2)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(32, 64), (45, 90), (21, 37), (5, 4), (64, 64), (80, 160), (112, 224)], ids=str)
@pytest.mark.parametrize("content", ["noise", "scene"])
def test_resize_agrees_with_pillow_within_one_grey_level(draw_scene, interpolation, size, content):
    image = noise(64, 128) if content == "noise" else draw_scene(0)[0]
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], FILTERS[interpolation])).astype(int)
    for tensor in (to_tensor(image), to_tensor(image).contiguous()):  # channels last, and first
        resized = resize(tensor, size, interpolation)
        assert (resized.dtype, tuple(resized.shape)) == (torch.uint8, (3, *size))
        difference = np.abs(resized.permute(1, 2, 0).numpy() - expected)
        assert difference.max() <= 2
        assert (difference > 1).mean() < 1e-4  # both round twice, to 8 bits after each direction


def test_resize_is_bilinear_unless_told_otherwise_and_leaves_its_input():
    image = to_tensor(noise(40, 60))
    before = image.clone()
    assert torch.equal(resize(image, (20, 25)), resize(image, (20, 25), "bilinear"))
    assert not torch.equal(resize(image, (20, 25)), resize(image, (20, 25), "bicubic"))
    assert torch.equal(resize(image, (40, 60)), image)
    assert torch.equal(image, before)


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3, 5, 7)])
@pytest.mark.parametrize("bgr", [False, True])
def test_normalise_equals_numpy(shape, bgr):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    options = cfg.INPUT.clone()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    scaled = images / 255
    if bgr:  # Caffe's: BGR in 0 … 255 less its mean
        mean, std = np.array([104.00699, 116.66877, 122.67892]), np.ones(3)
        options.PIXEL_MEAN, options.PIXEL_STD, options.TO_BGR255 = tuple(mean), tuple(std), True
        scaled = images[..., ::-1, :, :].astype(float)
    expected = (scaled - mean[:, None, None]) / std[:, None, None]
    tensor = torch.from_numpy(images)
    found = Normalise(options)(tensor)
    assert found.dtype == torch.float32
    assert np.allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(tensor.numpy(), images)


@pytest.mark.parametrize("channels_last", [False, True])
def test_network_input_has_its_channels_last_in_memory(channels_last):
    image = noise(5, 7)
    images = stack_images([to_tensor(image), to_tensor(image[::-1].copy())])
    assert torch.equal(images, torch.stack([to_tensor(image), to_tensor(image[::-1].copy())]))
    assert images.is_contiguous(memory_format=torch.channels_last)
    images = images if channels_last else images.contiguous()
    assert Normalise(cfg.INPUT)(images).is_contiguous(memory_format=torch.channels_last)


# --- cutout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 128), (100, 150), (512, 1024), (32, 63)], ids=str)
def test_cutout_drops_whole_cells_of_a_stretched_grid(size):
    rows, columns = size[0] // 32, size[1] // 32
    row_of = np.floor(np.arange(size[0]) * rows / size[0]).astype(int)
    column_of = np.floor(np.arange(size[1]) * columns / size[1]).astype(int)
    for mask in draws(lambda rng: cutout_mask(size, rng), 40):
        assert (mask.dtype, mask.shape) == (bool, size)
        cells = np.zeros((rows, columns), bool)
        cells[row_of[:, None], column_of[None]] = mask
        assert np.array_equal(mask, cells[row_of][:, column_of])


def test_cutout_comes_with_a_quarter_of_the_views_and_takes_a_quarter_of_their_cells():
    masks = np.stack(draws(lambda rng: cutout_mask((128, 256), rng)[::32, ::32], 2000))
    struck = masks.any(axis=(1, 2))
    assert struck.mean() == pytest.approx(0.25, abs=0.04)  # 4 standard deviations
    assert masks[struck].mean() == pytest.approx(0.25, abs=0.02)
    assert masks[struck].any(axis=0).all()  # every cell is hit at times
    assert len(np.unique(masks[struck].reshape(struck.sum(), -1), axis=0)) > 0.9 * struck.sum()


@pytest.mark.parametrize("size", [(31, 500), (500, 31), (8, 8)], ids=str)
def test_views_smaller_than_a_cell_are_not_cut(size):
    assert not any(mask.any() for mask in draws(lambda rng: cutout_mask(size, rng), 50))


# --- colour ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "strength", "low", "high"),
    [
        ("brightness", 0.5, 0.5, 1.5),
        ("contrast", 0.5, 0.5, 1.5),
        ("saturation", 0.5, 0.5, 1.5),
        ("hue", 0.2, -0.2, 0.2),
        ("brightness", 1.4, 0.0, 2.4),  # which is not cut off at 0 from −0.4 … 2.4
    ],
)
def test_factors_are_uniform_about_what_changes_nothing(name, strength, low, high):
    drawn = draws(lambda rng: ColourJitter.draw(jitter(**{name.upper(): strength}), rng, 0.0))
    factors = [factor for jitter in drawn for _, factor in jitter.adjustments]
    assert {adjustment for jitter in drawn for adjustment, _ in jitter.adjustments} == {name}
    places = (np.array(factors) - low) / (high - low)
    assert len(places) == 400
    assert 0 <= places.min() < 0.02
    assert 0.98 < places.max() <= 1
    assert places.mean() == pytest.approx(0.5, abs=0.06)  # 4 standard deviations


def test_every_order_of_the_adjustments_is_drawn():
    orders = draws(lambda rng: tuple(name for name, _ in ColourJitter.draw(EVERYTHING, rng, 0.0).adjustments))
    assert len(set(orders)) == 24


def test_without_strength_nothing_changes_and_one_seed_gives_one_image():
    image = to_tensor(noise(20, 30))
    assert torch.equal(ColourJitter.draw(jitter(), np.random.default_rng(0), 0.0).apply(image), image)
    first, second, other = (
        ColourJitter.draw(EVERYTHING, np.random.default_rng(seed), 0.0).apply(image) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


ADJUSTMENTS = {
    "brightness": (TF.adjust_brightness, (0.0, 0.5, 1.5)),
    "contrast": (TF.adjust_contrast, (0.0, 0.6, 1.5)),
    "saturation": (TF.adjust_saturation, (0.0, 0.5, 1.5)),
    "hue": (TF.adjust_hue, (-0.5, -0.2, 0.0, 0.13, 0.5)),
    "grey": (lambda image, _: TF.rgb_to_grayscale(image, 3), (None,)),
}


@pytest.mark.parametrize("name", ADJUSTMENTS)
@pytest.mark.parametrize("content", ["noise", "scene", "odd"])
def test_adjustments_are_torchvisions(draw_scene, name, content):
    image = {"noise": noise(64, 128), "scene": draw_scene(0)[0], "odd": noise(17, 3)}[content]
    adjust, factors = ADJUSTMENTS[name]
    for factor in factors:
        expected = adjust(torch.from_numpy(image).permute(2, 0, 1), factor).int()
        drawn = ColourJitter(True) if name == "grey" else ColourJitter(False, ((name, factor),))
        found = drawn.apply(to_tensor(image))
        difference = (found.int() - expected).abs()
        assert found.dtype == torch.uint8
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.002


def test_adjustments_one_after_the_other_are_torchvisions():
    image = to_tensor(noise(64, 128))
    for seed in range(20):
        drawn = ColourJitter.draw(EVERYTHING, np.random.default_rng(seed), 0.0)
        expected = image
        for name, factor in drawn.adjustments:
            expected = ADJUSTMENTS[name][0](expected, factor)
        difference = (drawn.apply(image).int() - expected.int()).abs()
        assert difference.max() <= 4  # a level, enlarged by what follows
        assert (difference > 0).float().mean() < 0.02


@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0, 2.0])
def test_blur_is_torchvisions(monkeypatch, sigma):
    monkeypatch.setattr(transforms, "BLUR_PROBABILITY", 1.0)
    monkeypatch.setattr(transforms, "BLUR_SIGMA", (sigma, sigma))
    image = to_tensor(noise(40, 61))
    difference = (
        random_blur(image, np.random.default_rng(0)).int() - TF.gaussian_blur(image, [5, 5], [sigma] * 2)
    ).abs()
    assert difference.max() <= 1


@pytest.mark.parametrize("order", [("contrast", "hue"), ("hue", "contrast"), ("saturation", "brightness")])
def test_jitter_of_a_region_is_that_of_the_whole_image(order):
    image = to_tensor(noise(40, 60))
    before, region = image.clone(), (slice(5, 30), slice(11, 47))
    drawn = ColourJitter(False, tuple((name, 0.2 if name == "hue" else 1.4) for name in order))
    assert torch.equal(drawn.apply(image, region)[(..., *region)], drawn.apply(image)[(..., *region)])
    assert torch.equal(
        ColourJitter(True).apply(image, region)[(..., *region)], ColourJitter(True).apply(image)[(..., *region)]
    )
    assert torch.equal(image, before)


def test_a_tenth_of_the_views_is_grey_instead():
    image = to_tensor(noise(8, 8))
    grey = [
        bool((out == out[:1]).all())
        for out in draws(lambda rng: ColourJitter.draw(EVERYTHING, rng, GREY_PROBABILITY).apply(image), 2000)
    ]
    assert np.mean(grey) == pytest.approx(0.1, abs=0.027)  # 4 standard deviations


def test_half_of_the_views_are_blurred_each_to_its_own_degree():
    image = torch.zeros(3, 15, 15, dtype=torch.uint8)
    image[:, 7, 7] = 255
    peaks = []
    for blurred in draws(lambda rng: random_blur(image, rng), 600):
        outside = blurred.clone()
        outside[:, 5:10, 5:10] = 0
        assert not outside.any()  # kernel 5
        peaks.append(int(blurred[0, 7, 7]))
    peaks = np.array(peaks)
    # σ 0.1 leaves the pixel as it is; σ 2 leaves 0.2251² of it at a kernel of 5
    strength = 255 / np.exp(-(np.arange(-2, 3) ** 2) / (2 * 2.0**2)).sum() ** 2
    assert peaks.min() == pytest.approx(strength, abs=2)
    # below σ of about 0.3 the rounded peak still is 255, which is 0.5 + 0.5 · 0.2 / 1.9 of all views at most
    assert 0.45 < (peaks == 255).mean() < 0.68
    assert len(set(peaks.tolist())) > 50
