"""Source samples: image and label under one geometry, against PIL and a search for the crop."""

import numpy as np
import pytest
import torch
from PIL import Image

from core.configs import cfg
from core.datasets.gta5 import label_path
from core.datasets.reader import ImageSet, label_table
from core.datasets.sampling import Request, Stream
from core.datasets.taxonomy import Taxonomy
from core.datasets.transforms import resize_label
from core.sourcetraining.samples import SourceSamples, source_order
from core.utils.errors import UserError

CODES = Taxonomy(tuple(f"code{number}" for number in range(250)))
TABLE = label_table(CODES, dict(enumerate(CODES.names)))
RESAMPLING = Image.Resampling


def smooth_picture(rng, height, width):
    coarse = rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), RESAMPLING.BICUBIC))


@pytest.fixture
def make_set(tmp_path, write_png):
    """make_set((image, label), …): an ImageSet of these H×W×3 and H×W arrays; labels hold indices below 250, or 255."""

    def make(*pairs):
        paths = []
        for number, (image, label) in enumerate(pairs):
            paths.append(write_png(tmp_path / f"images/{number}.png", image))
            write_png(tmp_path / f"labels/{number}.png", label)
        return ImageSet("codes", tuple(paths), tuple(path.name for path in paths), label_path, TABLE)

    return make


def make_config(size, scales=(1.0, 1.0), seed=1, **options):
    config = cfg.clone()
    config.SEED = seed
    config.INPUT.SOURCE_INPUT_SIZE_TRAIN, config.INPUT.INPUT_SCALES_TRAIN = size, scales
    for key, value in options.items():
        config.INPUT[key] = value
    return config


def arrays(sample):
    """(h×w×3 image, h×w label) as int arrays."""
    return sample["images"].permute(1, 2, 0).numpy().astype(int), sample["labels"].numpy().astype(int)


def pil_resize(array, size, resampling):
    """To `size` (h, w)."""
    return np.asarray(Image.fromarray(array).resize(size[::-1], resampling)).astype(int)


# --- whole images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "wanted"),
    [((53, 75), (24, 40)), ((53, 75), (83, 101)), ((24, 40), (24, 40)), ((105, 191), (72, 128)), ((31, 17), (8, 64))],
    ids=str,
)
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_whole_image_is_what_pil_makes_of_it(make_set, own, wanted, flip):
    rng = np.random.default_rng(0)
    image, label = smooth_picture(rng, *own), rng.integers(0, 250, own).astype(np.uint8)
    config = make_config(wanted[::-1], HORIZONTAL_FLIP_PROB_TRAIN=flip)
    found, found_label = arrays(SourceSamples(make_set((image, label)), config)[Request(0, 0)])
    expected = pil_resize(image, wanted, RESAMPLING.BICUBIC)
    expected_label = pil_resize(label, wanted, RESAMPLING.NEAREST)
    if flip:
        expected, expected_label = expected[:, ::-1], expected_label[:, ::-1]
    assert abs(found - expected).max() <= 2
    assert abs(found - expected).mean() < 0.5
    assert (found_label == expected_label).all()


@pytest.mark.parametrize(
    "sizes", [((1052, 1914), (720, 1280)), ((1046, 1914), (720, 1280)), ((760, 1280), (761, 1283))]
)
def test_labels_of_the_real_sizes_are_pils_nearest(sizes):
    own, wanted = sizes
    label = np.add.outer(np.arange(own[0]) * 7, np.arange(own[1])).astype(np.uint8)  # any two neighbours differ
    ours = resize_label(torch.from_numpy(label), wanted).numpy()
    assert (ours == pil_resize(label, wanted, RESAMPLING.NEAREST)).all()


def test_a_pixel_of_a_resized_label_is_the_one_under_its_centre():
    """In whole numbers: the centre (2x + 1)·n / 2m lies in pixel ⌊·⌋; on an edge between two, either is nearest."""
    edges = 0
    for own in (1, 2, 7, 60, 95, 128, 160):
        label = torch.arange(own, dtype=torch.uint8)[None]
        for wanted in range(1, 230):
            found = resize_label(label, (3, wanted)).numpy().astype(int)
            assert (found == found[0]).all()
            doubled = (2 * np.arange(wanted) + 1) * own
            right = doubled // (2 * wanted)
            on_edge = doubled % (2 * wanted) == 0
            edges += on_edge.sum()
            assert ((found[0] == right) | (on_edge & (found[0] == right - 1))).all(), (own, wanted)
    assert edges > 100


# --- crops -----------------------------------------------------------------------------------------------------------

OWN = (41, 67)  # (h, w)


def find_crop(label, expected, crop):
    """(top, left, flip) of the only window of `expected` that `label` is, 255 around it; the label may be mirrored."""
    height, width = expected.shape
    around = np.pad(expected, ((crop[0], crop[0]), (crop[1], crop[1])), constant_values=255)
    places = [
        (top, left, flip)
        for flip, wanted in ((False, label), (True, label[:, ::-1]))
        for top in range(min(0, height - crop[0]), max(0, height - crop[0]) + 1)
        for left in range(min(0, width - crop[1]), max(0, width - crop[1]) + 1)
        if (around[top + crop[0] :, left + crop[1] :][: crop[0], : crop[1]] == wanted).all()
    ]
    assert len(places) == 1
    return places[0]


@pytest.mark.parametrize("scale", [0.5, 0.77, 1.0001, 1.5])
@pytest.mark.parametrize("crop", [(24, 40), (33, 20), (50, 30)], ids=str)
def test_a_crop_is_one_window_of_the_rescaled_image_and_of_its_label(make_set, scale, crop):
    rng = np.random.default_rng(1)
    image, label = smooth_picture(rng, *OWN), rng.integers(0, 250, OWN).astype(np.uint8)
    config = make_config(crop[::-1], (scale, scale), HORIZONTAL_FLIP_PROB_TRAIN=0.5)
    samples = SourceSamples(make_set((image, label)), config)
    scaled_size = (int(OWN[0] * scale), int(OWN[1] * scale))
    scaled = np.pad(
        pil_resize(image, scaled_size, RESAMPLING.BICUBIC), ((crop[0], crop[0]), (crop[1], crop[1]), (0, 0))
    )
    scaled_label = pil_resize(label, scaled_size, RESAMPLING.NEAREST)
    places = []
    for position in range(12):
        found, found_label = arrays(samples[Request(0, position)])
        assert (found.shape, found_label.shape) == ((*crop, 3), crop)
        top, left, flip = find_crop(found_label, scaled_label, crop)
        expected = scaled[top + crop[0] :, left + crop[1] :][: crop[0], : crop[1]]
        assert abs((found[:, ::-1] if flip else found) - expected).max() <= 2
        inside = [min(n, c) for n, c in zip(scaled_size, crop, strict=True)]
        assert (found_label != 255).sum() == inside[0] * inside[1]  # all of what fits, and 255 where nothing is
        assert (found[found_label == 255] == 0).all()
        places.append((top, left, flip))
    assert len(set(places)) > 6
    assert {flip for _, _, flip in places} == {False, True}


def test_colours_stay_on_their_labels_under_any_scale_crop_and_flip(make_set):
    colours = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250], [240, 240, 30], [30, 30, 30]])
    label = np.random.default_rng(2).integers(0, 5, (5, 8)).astype(np.uint8).repeat(12, 0).repeat(12, 1)
    images = make_set((colours[label].astype(np.uint8), label))
    config = make_config((64, 48), (0.5, 1.6), HORIZONTAL_FLIP_PROB_TRAIN=0.5)
    seen = 0
    for position in range(40):
        image, found = arrays(SourceSamples(images, config)[Request(0, position)])
        nearest = ((image[:, :, None] - colours) ** 2).sum(-1).argmin(-1)
        inside = found != 255
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):  # a block's rim is blurred
            inside &= np.roll(found, step, axis) == found
        assert (nearest == found)[inside].all()
        seen += inside.sum()
    assert seen > 40 * 64 * 48 / 3


def test_scales_are_even_over_their_range_and_keep_the_aspect(make_set):
    """Into a crop that everything fits, so that what is not 255 has the rescaled size."""
    own = (40, 60)
    samples = SourceSamples(
        make_set((np.zeros((*own, 3), np.uint8), np.zeros(own, np.uint8))), make_config((100, 70), (0.5, 1.5))
    )
    sizes = []
    for position in range(300):
        valid = samples[Request(0, position)]["labels"].numpy() != 255
        sizes.append((valid.any(1).sum(), valid.any(0).sum()))
    heights, widths = np.array(sizes).T
    assert (heights.min(), heights.max()) == pytest.approx((20, 59), abs=1)
    assert heights.mean() / 40 == pytest.approx(0.9875, abs=4 * (1 / 12) ** 0.5 / 300**0.5)
    assert (abs(heights / 40 - widths / 60) < 1 / 40).all()


@pytest.mark.parametrize(("size", "scales"), [((30, 20), (1.0, 1.0)), ((30, 20), (0.5, 1.5)), ((90, 70), (1.2, 1.4))])
def test_ignored_pixels_stay_ignored_and_no_label_is_invented(make_set, size, scales):
    rng = np.random.default_rng(3)
    label = rng.choice([0, 9, 255], OWN).astype(np.uint8)
    image = np.where(label[..., None] == 255, 255, label[..., None] * 10).repeat(3, 2).astype(np.uint8)
    samples = SourceSamples(make_set((image, label)), make_config(size, scales))
    for position in range(4):
        found = samples[Request(0, position)]["labels"]
        assert set(found.unique().tolist()) == {0, 9, 255}


# --- colours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("probability", "at_least", "at_most"), [(0.0, 0, 0), (1.0, 200, 200), (0.3, 41, 79)])
def test_images_turn_grey_as_often_as_asked_for(make_set, probability, at_least, at_most):
    """Of 200: 60 ± 6.5 with probability 0.3, within three standard deviations."""
    image = np.tile(np.uint8([200, 100, 10]), (8, 8, 1))
    samples = SourceSamples(
        make_set((image, np.zeros((8, 8), np.uint8))), make_config((8, 8), GRAYSCALE_PROB=probability)
    )
    colours = [samples[Request(0, position)]["images"][:, 3, 3].tolist() for position in range(200)]
    grey = [colour for colour in colours if colour != [200, 100, 10]]
    assert at_least <= len(grey) <= at_most
    brightness = 0.299 * 200 + 0.587 * 100 + 0.114 * 10
    assert all(colour == pytest.approx([brightness] * 3, abs=1) for colour in grey)
    assert all(len(set(colour)) == 1 for colour in grey)


def test_jitter_changes_the_image_and_nothing_else(make_set):
    rng = np.random.default_rng(4)
    images = make_set((smooth_picture(rng, *OWN), rng.integers(0, 250, OWN).astype(np.uint8)))
    plain = SourceSamples(images, make_config((30, 20), (0.6, 1.4)))
    jittered = SourceSamples(images, make_config((30, 20), (0.6, 1.4), BRIGHTNESS=0.5, HUE=0.2))
    for position in range(5):
        assert torch.equal(plain[Request(0, position)]["labels"], jittered[Request(0, position)]["labels"])
        assert (
            plain[Request(0, position)]["images"].int() - jittered[Request(0, position)]["images"]
        ).abs().float().mean() > 2


# --- what a sample depends on ----------------------------------------------------------------------------------------


def test_a_sample_is_a_function_of_seed_and_position(make_set):
    rng = np.random.default_rng(5)
    images = make_set(*((smooth_picture(rng, *OWN), rng.integers(0, 250, OWN).astype(np.uint8)) for _ in range(2)))
    options = {"HORIZONTAL_FLIP_PROB_TRAIN": 0.5, "GRAYSCALE_PROB": 0.3, "CONTRAST": 0.5}

    def make(seed, requests):
        samples = SourceSamples(images, make_config((30, 20), (0.6, 1.4), seed, **options))
        return {request: samples[request] for request in requests}

    requests = [Request(index, position) for position in range(6) for index in range(2)]
    torch.manual_seed(0), np.random.seed(0)  # noqa: NPY002
    first = make(1, requests)
    torch.manual_seed(9), np.random.seed(9)  # noqa: NPY002
    again, other = make(1, requests[::-1]), make(2, requests)

    def same(a, b):
        return torch.equal(a["images"], b["images"]) and torch.equal(a["labels"], b["labels"])

    assert all(same(first[request], again[request]) for request in requests)
    assert not any(same(first[request], other[request]) for request in requests)
    assert not any(same(first[Request(0, position)], first[Request(0, position + 1)]) for position in range(5))


def test_a_pair_of_different_size_is_named(make_set):
    images = make_set((np.zeros((8, 9, 3), np.uint8), np.zeros((8, 8), np.uint8)))
    with pytest.raises(UserError, match=r"images/0\.png and its label differ in size"):
        SourceSamples(images, make_config((8, 8)))[Request(0, 0)]


def test_a_batch_is_a_stack_of_its_samples(make_set):
    rng = np.random.default_rng(6)
    images = make_set(*((smooth_picture(rng, *OWN), rng.integers(0, 250, OWN).astype(np.uint8)) for _ in range(3)))
    samples = SourceSamples(images, make_config((30, 20)))
    batch = SourceSamples.collate([samples[Request(index, 0)] for index in (2, 0)])
    assert (batch.images.shape, batch.images.dtype) == ((2, 3, 20, 30), torch.uint8)
    assert (batch.labels.shape, batch.labels.dtype) == ((2, 20, 30), torch.uint8)
    assert batch.names == ("2.png", "0.png")
    assert torch.equal(batch.images[1], samples[Request(0, 0)]["images"])
    assert torch.equal(batch.labels[0], samples[Request(2, 0)]["labels"])


# --- which images ----------------------------------------------------------------------------------------------------


def test_uniform_order_goes_through_all_images_again_and_again():
    order = source_order(np.zeros((7, 3), bool), 20, 0, seed=1)
    assert len(order) >= 20
    rounds = [order[start : start + 7].tolist() for start in (0, 7)]
    assert all(sorted(one) == list(range(7)) for one in rounds)
    assert rounds[0] != rounds[1]
    assert order.tolist() == source_order(np.zeros((7, 3), bool), 20, 0, seed=1).tolist()
    assert order.tolist() != source_order(np.zeros((7, 3), bool), 20, 0, seed=2).tolist()


def test_balanced_order_prefers_rare_classes_more_in_longer_blocks():
    """40 images with a common class, two of them with a rare one as well; p: how often one of these two is drawn.

    A block of one draw starts from nothing, both classes are as likely: p = 0.5 + 0.5 · 2/40 = 0.525. In a long one
    the shares of occurrences are p/(1 + p) and 1/(1 + p), the rare class is drawn with
    r = a/(a + b), a = 1/log(1.01 + p/(1 + p)), b = 1/log(1.01 + 1/(1 + p)), and p = r + (1 − r)/20.
    """
    presence = np.zeros((40, 2), bool)
    presence[:, 0] = presence[[5, 30], 1] = True
    p = 0.5
    for _ in range(100):
        a, b = 1 / np.log(1.01 + p / (1 + p)), 1 / np.log(1.01 + 1 / (1 + p))
        p = a / (a + b) * 0.95 + 0.05
    assert p > 0.6
    for block, expected in ((1, 0.525), (1000, p)):
        order = source_order(presence, 3000, block, seed=1)
        assert len(order) == 3000
        assert np.isin(order, (5, 30)).mean() == pytest.approx(expected, abs=0.03)  # three standard deviations
        assert set(order) == set(range(40))
        assert order.tolist() == source_order(presence, 3000, block, seed=1).tolist()
        assert order.tolist() != source_order(presence, 3000, block, seed=2).tolist()


def test_balanced_order_is_whole_blocks_shuffled_and_leaves_empty_images_out():
    presence = np.zeros((6, 2), bool)
    presence[:3, 0] = presence[3:5, 1] = True
    order = source_order(presence, 101, 100, seed=1)
    assert len(order) == 200
    assert set(order) == {0, 1, 2, 3, 4}
    counts = [np.isin(part, (3, 4)).sum() for part in (order[:100], order[100:])]
    assert sum(counts) == pytest.approx(100, abs=30)


def test_balanced_order_is_shuffled_as_a_whole():
    """Drawn one after the other, four images of one class would come in rounds of four."""
    order = source_order(np.ones((4, 1), bool), 400, 100, seed=1)
    assert np.bincount(order).tolist() == [100] * 4
    assert any(len(set(order[start : start + 4])) < 4 for start in range(0, 400, 4))


def test_the_stream_hands_out_an_iterations_positions():
    order = np.array([4, 0, 3, 1, 2, 2, 0, 1])
    stream = Stream(range(1, 4), 2, order, 0)
    assert len(stream) == 3
    expected = [[(3, 2), (1, 3)], [(2, 4), (2, 5)], [(0, 6), (1, 7)]]
    assert [[(request.image, request.position) for request in requests] for requests in stream] == expected
