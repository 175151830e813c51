"""INPUT.MASK and INPUT.MARGINS: blind pixels have no label, are not pasted from or onto, and not scored."""

import cv2
import numpy as np
import pytest
import torch

from core.adaptation.looks import look_at
from core.configs.loading import load_config
from core.datasets.blind import BlindSpots
from core.datasets.catalog import find_source_images, find_target_images, find_test_images
from core.datasets.taxonomy import CITYSCAPES_19, IGNORE
from core.evaluation.evaluator import Evaluator
from core.evaluation.predictor import Predictor
from core.selftraining.candidate_pass import CandidatePass
from core.selftraining.samples import PasteRequest, TargetSamples
from core.utils.errors import UserError

CLASSES, FULL = 19, (64, 32)  # (width, height) of the full view; the scenes are 128×64


class Colours(torch.nn.Module):
    """Stride-8 logits that a class of its own wins in every cell of the picture."""

    def forward(self, image):
        size = [-(-n // 8) for n in image.shape[-2:]]
        winners = torch.arange(size[0] * size[1]).view(*size) % CLASSES
        return torch.nn.functional.one_hot(winners, CLASSES).permute(2, 0, 1)[None].float().repeat(len(image), 1, 1, 1)


@pytest.fixture
def config(options, cityscapes_root, write_png):
    """config(**INPUT options): of the scenes; bonnet.png in tmp_path is 0 in the lower left quarter."""
    mask = np.full((64, 128), 200, np.uint8)
    mask[32:, :64] = 0
    write_png(cityscapes_root / "bonnet.png", mask)

    def make(**inputs):
        sets = {"TARGET_TRAIN": "cityscapes_train", "TEST": "cityscapes_val", "SOURCE_TRAIN": "cityscapes_val"}
        given = {"INPUT_SIZE_TEST": FULL, "TARGET_INPUT_SIZE_TRAIN": (48, 24)} | inputs
        changed = {f"INPUT.{key}": value for key, value in given.items()}
        return options(**sets).changed(changed | {"DATALOADER.NUM_WORKERS": 0})

    return make


BONNET = np.zeros((64, 128), bool)
BONNET[32:, :64] = True
SIDES = np.ones((64, 128), bool)
SIDES[5 : 64 - 20, 3 : 128 - 7] = False
BLIND = {"mask": ({"MASK": "bonnet.png"}, BONNET), "margins": ({"MARGINS": (3, 5, 7, 20)}, SIDES)}
BLIND["both"] = (BLIND["mask"][0] | BLIND["margins"][0], BONNET | SIDES)


@pytest.fixture(params=BLIND)
def blind(request, config, cityscapes_root):
    """(config, H×W bool) of one way to say what is blind."""
    options, expected = BLIND[request.param]
    if "MASK" in options:
        options = options | {"MASK": str(cityscapes_root / options["MASK"])}
    return config(**options), expected


def test_labels_of_the_test_set_are_none_there_and_those_of_the_source_untouched(blind, config):
    options, expected = blind
    plain, seen = find_test_images(config()).read_label(0), find_test_images(options).read_label(0)
    assert np.array_equal(seen, np.where(expected, IGNORE, plain))
    assert np.array_equal(find_source_images(options).read_label(0), plain)


def test_blind_pixels_are_not_scored(blind):
    options, expected = blind
    images = find_test_images(options)
    scores = Evaluator(images, CLASSES, Predictor(options, torch.device("cpu"))).run(Colours())
    labels = [images.read_label(index) for index in range(len(images))]
    assert scores.confusion.sum() == sum(((label != IGNORE) & ~expected).sum() for label in labels)


def test_a_student_view_has_no_valid_pixel_there(blind):
    options, expected = blind
    samples = TargetSamples(find_target_images(options), CITYSCAPES_19, options)
    for position in range(4):
        sample = samples[PasteRequest(0, position)]
        y, x = sample["views"].top_left
        smaller = expected[1::2, 1::2][y : y + 24, x : x + 48]  # the pixel of 2×2 that its centre falls to
        assert np.array_equal(~sample["valid"].numpy(), smaller)


def test_a_view_that_is_scaled_and_mirrored_has_it_in_the_same_place(config):
    """Against a label map of the mask that the view's own geometry moves."""
    options = config(MARGINS=(40, 0, 0, 16), INPUT_SCALES_TRAIN=(0.7, 1.6), HORIZONTAL_FLIP_PROB_TRAIN=0.5)
    samples = TargetSamples(find_target_images(options), CITYSCAPES_19, options)
    full = torch.zeros(32, 64)
    full[:, :20] = full[24:] = 1
    for position in range(12):
        sample = samples[PasteRequest(0, position)]
        view = sample["views"]
        scaled = torch.nn.functional.interpolate(full[None, None], view.scaled_size, mode="bilinear")[0]
        moved, inside = view.crop(scaled)[0], view.valid()
        clear = ((moved < 0.01) | (moved > 0.99)) & inside
        assert clear.float().mean() > 0.3
        assert torch.equal(sample["valid"][clear], moved[clear] < 0.5)
        assert not sample["valid"][~inside].any()


def test_passes_neither_label_nor_offer_it_and_nothing_is_pasted_onto_it(blind, tmp_path):
    options, expected = blind
    images = find_target_images(options)
    candidate_pass = CandidatePass(images, CLASSES, Predictor(options, torch.device("cpu")), tmp_path / "passes")
    first = candidate_pass.run(Colours(), 0)
    second = candidate_pass.run(Colours(), 1, first)
    stored = second.labels(0)
    assert stored.shape == (32, 64)
    assert (stored[expected[::2, ::2]] == IGNORE).all()
    assert (stored[~expected[::2, ::2]] != IGNORE).all()
    grid = first.candidate_labels(0)
    assert grid.shape == (256, 512)
    assert (grid[expected.repeat(4, 0).repeat(4, 1)] == IGNORE).all()
    assert (grid != IGNORE).any()
    samples = TargetSamples(images, CITYSCAPES_19, options)
    even = tuple(1.0 for _ in samples.paste_classes)
    pasted = 0
    for position in range(40):
        sample = samples[PasteRequest(position % 6, position, str(second.folder), even)]
        y, x = sample["views"].top_left
        where = expected[1::2, 1::2][y : y + 24, x : x + 48]
        assert (sample["pasted"].numpy()[where] == IGNORE).all()
        pasted += int((sample["pasted"] != IGNORE).sum())
    assert pasted > 0


def test_looks_count_it_nowhere(blind):
    options, expected = blind
    images = find_target_images(options)
    looks = look_at(Colours(), images, CLASSES, Predictor(options, torch.device("cpu")), "looking")
    cells = images.blind_at(images.paths[0], (4, 8))
    assert looks.joint[0].sum() == len(images) * (~cells).sum()
    assert looks.probabilities.sum() == pytest.approx(1)
    assert 0 < cells.sum() < 32
    assert abs(cells.mean() - expected.mean()) < 0.2


def test_a_mask_is_scaled_to_images_of_other_sizes(config, cityscapes_root):
    spots = BlindSpots((), str(cityscapes_root / "bonnet.png"))
    for size in ((128, 64), (256, 128), (64, 32), (126, 63)):
        blind = spots.of(size, (32, 64))
        assert np.array_equal(blind, BONNET[::2, ::2])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"MARGINS": (64, 0, 64, 0)}, r"^INPUT\.MARGINS \(64, 0, 64, 0\) leaves nothing of an image of 128×64$"),
        ({"MARGINS": (0, 999, 0, 0)}, r"leaves nothing of an image of 128×64$"),
        ({"MASK": "missing.png"}, r"^INPUT\.MASK: image .*missing\.png cannot be read: No such file"),
        (
            {"MASK": "drawn.jpg"},
            r"^INPUT\.MASK .*drawn\.jpg is stored with loss, so that 0 is not 0 everywhere: give it as",
        ),
        ({"MASK": "wide.png"}, r"^INPUT\.MASK .*wide\.png is 150×64, but there is an image of 128×64: a mask must"),
        ({"MASK": "white.png"}, r"^INPUT\.MASK .*white\.png masks nothing: none of its pixels is 0$"),
        ({"MASK": "black.png"}, r"^INPUT\.MASK .*black\.png masks everything: its colours are 0 everywhere"),
    ],
)
def test_what_does_not_fit_is_one_line(config, cityscapes_root, write_png, inputs, message):
    for name, seen, width in (("wide", 75, 150), ("white", 128, 128), ("black", 0, 128)):
        write_png(cityscapes_root / f"{name}.png", np.uint8(255 * (np.arange(width) < seen))[None].repeat(64, 0))
    inputs = {key: str(cityscapes_root / v) if key == "MASK" else v for key, v in inputs.items()}
    with pytest.raises(UserError, match=message):
        find_target_images(config(**inputs))


def test_one_image_of_another_shape_among_many_is_found_at_the_start(config, cityscapes_root, write_png):
    folder = cityscapes_root / "many"
    first = write_png(folder / "000.png", np.zeros((64, 128, 3), np.uint8))
    for number in range(1, 400):
        (folder / f"{number:03d}.png").symlink_to(first)
    (folder / "101.png").unlink()
    write_png(folder / "101.png", np.zeros((32, 128, 3), np.uint8))
    options = config(MASK=str(cityscapes_root / "bonnet.png")).changed({"DATASETS.TARGET_TRAIN": f"folder:{folder}"})
    with pytest.raises(UserError, match="but there is an image of 128×32: a mask must have the images' size"):
        find_target_images(options)


def test_the_range_of_16_bits_is_that_of_what_is_seen(config, cityscapes_root):
    folder = cityscapes_root / "thermal"
    folder.mkdir()
    values = np.random.default_rng(0).integers(7000, 7500, (64, 128)).astype(np.uint16)
    values[0, :2] = 7000, 7499
    values[48:] = 0
    values[50, 50] = 65535  # a time stamp
    assert cv2.imwrite(str(folder / "0.png"), values)
    target = {"DATASETS.TARGET_TRAIN": f"folder:{folder}"}
    assert find_target_images(config().changed(target)).form.span == (0, 65535)
    images = find_target_images(config(MARGINS=(0, 0, 0, 16)).changed(target))
    assert images.form.span == (7000, 7499)
    assert images.note.startswith("25.0 % of the picture is masked; 16 bits, of which 7000 to 7499 become")


def test_the_log_says_how_much_it_is(blind):
    options, expected = blind
    assert find_target_images(options).note == f"{100 * expected.mean():.1f} % of the picture is masked"


@pytest.mark.parametrize("margins", ["[1, 2, 3]", "[1, 2, 3, -4]", "[1, 2, 3, 4.5]"])
def test_wrong_margins_are_one_line(tmp_path, margins):
    (tmp_path / "a.yaml").write_text(f"INPUT: {{MARGINS: {margins}}}\n")
    with pytest.raises(UserError, match=r"^INPUT\.MARGINS must be \(left, top, right, bottom\) in pixels, or empty"):
        load_config(tmp_path / "a.yaml")
