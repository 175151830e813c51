"""SOLVER.AMP: how far a teacher's logits may be from those in single precision."""

import numpy as np
import pytest
import torch

from core.configs import cfg
from core.datasets.catalog import find_test_images
from core.datasets.images import read_image
from core.datasets.transforms import to_tensor
from core.evaluation.predictor import Predictor
from core.models import build_model
from core.utils.checkpoints import load_checkpoint
from tests.helpers import PROJECT
from tests.models.test_models import make_config, randomise_norms

TOLERANCE = {"bf16": 0.02, "fp16": 0.0025}  # of the largest logit: bfloat16 has 8 binary digits, float16 11
CHECKPOINT = PROJECT / "pretrain/camvid_day_r18.pth"
FRAMES = PROJECT / "datasets/camvid"


def logits_in(amp, config, model, images):
    config = config.clone()
    config.SOLVER.AMP = amp
    predictor = Predictor(config, torch.device("cpu"))
    with torch.inference_mode():
        return predictor.logits(model, predictor.prepare(images))


def assert_close(amp, config, model, images):
    """The logits are within the tolerance, and not those of single precision; returns the share of equal winners."""
    expected, found = (logits_in(precision, config, model, images) for precision in ("off", amp))
    assert found.dtype == torch.float32
    largest = (found - expected).abs().max() / expected.abs().max()
    assert TOLERANCE[amp] / 50 < largest < TOLERANCE[amp]
    return (found.argmax(1) == expected.argmax(1)).float().mean().item()


@pytest.mark.parametrize("amp", TOLERANCE)
def test_logits_of_a_made_up_network(amp):
    config = make_config(classes=5)
    torch.manual_seed(0)
    model = randomise_norms(build_model(config)).eval()
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 40, 56), np.uint8))
    assert_close(amp, config, model, images)


@pytest.mark.skipif(not (CHECKPOINT.exists() and FRAMES.exists()), reason="CamVid and its model are not here")
@pytest.mark.parametrize("amp", TOLERANCE)
def test_logits_and_winners_of_the_camvid_model(amp):
    config = cfg.clone()
    config.merge_from_file(str(PROJECT / "configs/camvid_day2dusk_dtst.yaml"))
    config.DATASETS.ROOT = str(PROJECT / "datasets")
    model = build_model(config).eval()
    load_checkpoint(model, CHECKPOINT)
    images = torch.stack([to_tensor(read_image(path)) for path in find_test_images(config).paths[::30]])
    if amp == "fp16":  # which a CPU only emulates, a hundred times as slowly
        images = images[:1, :, 100:164, 200:296]
    assert assert_close(amp, config, model, images) > 0.99
