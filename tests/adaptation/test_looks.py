"""Independent looks: estimates of precision and the signs of a model, against values worked out by hand."""

import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.adaptation.looks import LOOKS, Looks, entropy_of, kept, look_at, reliability
from core.configs import cfg
from core.datasets.catalog import ImageSet
from core.datasets.transforms import resize, to_tensor
from core.evaluation.predictor import Predictor
from core.models.deeplab import Segmentor
from tests.helpers import changed


def test_a_class_is_as_reliable_as_both_looks_say():
    mirrored = [[6, 2, 0], [0, 5, 5], [0, 0, 0]]
    smaller = [[4, 4, 0], [1, 8, 1], [0, 0, 0]]
    assert kept(np.array(mirrored)).tolist() == [0.75, 0.5, 0]
    assert reliability(np.array([mirrored, smaller])).tolist() == pytest.approx([0.75 * 0.5, 0.5 * 0.8, 0])


def test_entropy_by_hand():
    assert entropy_of(np.array([0.5, 0.5, 0])) == pytest.approx(math.log(2))
    assert entropy_of(np.array([1.0, 0])) == 0


def looks(joint, **more):
    joint = np.asarray(joint)
    known = {"sure": joint, "probabilities": np.array([0.5, 0.5]), "confidence": 0.8, "entropy": 0.3, "labels": ()}
    return Looks(joint, **(known | more))


def test_signs_by_hand():
    seen = looks([[[6, 2], [0, 2]], [[4, 4], [1, 1]]])
    assert seen.shares.tolist() == [0.8, 0.2]
    assert seen.information == pytest.approx(math.log(2) - 0.3)
    assert seen.steadiness == pytest.approx((0.8 + 0.5) / 2)


def test_two_networks_agree_pixel_by_pixel():
    def png(values):
        return cv2.imencode(".png", np.array(values, np.uint8))[1].tobytes()

    joint = np.zeros((2, 2, 2), int)
    first, second = looks(joint, labels=[png([[0, 1], [1, 1]])]), looks(joint, labels=[png([[0, 1], [0, 1]])])
    assert first.agreement(second).tolist() == [[1, 0], [1, 2]]


class Halves(nn.Module):
    """Two classes at stride 8: the first in the left half of a picture, whatever it shows, with probability 0.9."""

    def forward(self, images):
        height, width = (n // 8 for n in images.shape[-2:])
        logits = torch.zeros(len(images), 2, height, width)
        logits[:, 0, :, : width // 2] = logits[:, 1, :, width // 2 :] = math.log(9)
        return logits


@pytest.fixture(params=[(), (32, 32)], ids=["", "windows"])
def seen(tmp_path, write_png, request):
    """Looks are at the resized view, whatever evaluation and passes see."""
    paths = [write_png(tmp_path / f"{n}.png", np.full((32, 64, 3), 60 * n, np.uint8)) for n in range(3)]
    images = ImageSet("folder:x", tuple(paths), tuple(path.name for path in paths))
    config = changed(cfg, INPUT__INPUT_SIZE_TEST=(64, 32), DATALOADER__NUM_WORKERS=0, TEST__BATCH_SIZE=2)
    config = changed(config, TEST__WINDOW=request.param)
    model = Segmentor(Halves(), nn.Identity())
    return look_at(model, images, 2, Predictor(config, torch.device("cpu")), "looking")


def test_a_network_that_looks_at_places_is_seen_through_by_the_mirror(seen):
    mirrored, smaller = seen.joint
    assert LOOKS == ("mirrored", "smaller")
    assert mirrored.tolist() == [[0, 48], [48, 0]]  # 3 images of 4×8 pixels
    assert smaller.trace() == smaller.sum() == 96
    assert reliability(seen.joint).tolist() == [0, 0]


def test_numbers_are_means_over_the_pixels(seen):
    assert seen.confidence == pytest.approx(0.9)
    assert seen.entropy == pytest.approx(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)))
    assert seen.probabilities.tolist() == pytest.approx([0.5, 0.5])
    assert seen.sure.sum() == 2 * 96  # all are equally sure
    assert len(seen.labels) == 3


def test_the_surer_half_of_a_class_counts_alone():
    from core.adaptation.looks import _sure_counts

    plain = np.array([0, 0, 0, 0, 1, 1])
    mirrored, smaller = np.array([1, 1, 0, 0, 1, 0]), np.array([0, 0, 0, 1, 1, 1])
    config = SimpleNamespace(TCR=SimpleNamespace(TOPK_CANDIDATE=0.5))
    peak = np.array([0.5, 0.6, 0.8, 0.9, 0.7, 0.7], np.float16)
    counts = _sure_counts(np.stack([plain, mirrored, smaller]), peak, config, 3)
    assert counts[0].tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert counts[1].tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]


@pytest.mark.parametrize("corners", [True, False])
def test_the_smaller_look_is_resized_as_the_network_wants_it(tmp_path, write_png, corners):
    """A network that sees squares of 8 pixels; a picture of noise."""
    picture = np.random.default_rng(0).integers(0, 256, (40, 72, 3)).astype(np.uint8)
    path = write_png(tmp_path / "0.png", picture)
    config = changed(cfg, INPUT__INPUT_SIZE_TEST=(72, 40), DATALOADER__NUM_WORKERS=0, MODEL__ALIGN_CORNERS=corners)
    predictor, model = Predictor(config, torch.device("cpu")), nn.AvgPool2d(8, ceil_mode=True)
    found = look_at(model, ImageSet("folder:x", (path,), ("0.png",)), 3, predictor, "looking").joint[1]
    plain, small = (
        model(predictor.prepare(resize(to_tensor(picture)[None], size, "bicubic"))) for size in ((40, 72), (30, 54))
    )
    smaller = F.interpolate(small, plain.shape[-2:], mode="bilinear", align_corners=corners)
    pairs = zip(plain.argmax(1).flatten().tolist(), smaller.argmax(1).flatten().tolist(), strict=True)
    expected = np.zeros((3, 3), int)
    for pair in pairs:
        expected[pair] += 1
    assert found.tolist() == expected.tolist()
