"""Trainers of a tiny network, for tests."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from core.configs import cfg
from core.datasets.reader import ImageSet
from core.datasets.taxonomy import CITYSCAPES_19
from core.models.deeplab import Segmentor
from core.selftraining.automatic import trainer_for
from tests.helpers import changed

C = 19
FULL, CROP = (32, 64), (32, 48)  # (h, w)


def make_config(**options):
    sizes = {"INPUT__INPUT_SIZE_TEST": FULL[::-1], "INPUT__TARGET_INPUT_SIZE_TRAIN": CROP[::-1]}
    solver = {"SOLVER__BASE_LR": 0.01, "SOLVER__MAX_ITER": 50, "SOLVER__BATCH_SIZE": 2, "DATALOADER__NUM_WORKERS": 0}
    return changed(cfg, **(sizes | solver | options))


def make_model(classes=C):
    """Stride 8, confident enough for some pixels to be labelled and others not."""
    torch.manual_seed(0)
    model = Segmentor(nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), nn.Tanh()), nn.Conv2d(6, classes, 1))
    with torch.no_grad():
        model.classifier.weight.mul_(6)
    return model


def make_trainer(folder, config=None, images=None, model=None, taxonomy=CITYSCAPES_19):
    config = config or make_config()
    images = images or ImageSet("folder:none", (), ())
    folder.mkdir(exist_ok=True)
    config.OUTPUT_DIR = str(folder)
    return trainer_for(config)(config, model or make_model(len(taxonomy)), images, taxonomy)


def picture(rng, size):
    coarse = rng.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def run_config(**options):
    short = {"SOLVER__STOP_ITER": 8, "SOLVER__CHECKPOINT_PERIOD": 2, "TCR__UPDATE_FREQUENCY": 3}
    short |= {"TCR__MIX_CLASSES": CITYSCAPES_19.names, "INPUT__INPUT_SCALES_TRAIN": (0.75, 1.25)}
    return make_config(**(short | options))
