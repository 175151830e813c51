"""Runs of both trainers with networks so small that they may be broken off at every one of their iterations."""

import numpy as np
import pytest
import torch
from torch import nn

from core.configs import cfg
from core.datasets.gta5 import label_path
from core.datasets.reader import ImageSet, label_table
from core.datasets.skipping import SkippedImages
from core.datasets.taxonomy import CITYSCAPES_19, Taxonomy
from core.models.deeplab import Segmentor
from core.runs.states import StateFolder
from core.selftraining.trainer import Trainer
from core.sourcetraining.statistics import LabelStatistics
from core.sourcetraining.trainer import SourceTrainer
from tests.helpers import Killed, changed

STOP = 40
TABLES = ("metrics.csv", "dtu_history.csv", "candidates.csv")


def make_config(**options):
    config = cfg.clone()
    config.INPUT.INPUT_SIZE_TEST, config.INPUT.TARGET_INPUT_SIZE_TRAIN = (64, 32), (48, 32)
    config.INPUT.SOURCE_INPUT_SIZE_TRAIN, config.INPUT.INPUT_SCALES_TRAIN = (48, 32), (0.75, 1.25)
    config.INPUT.HORIZONTAL_FLIP_PROB_TRAIN = 0.5
    config.DATALOADER.NUM_WORKERS, config.VIS.PERIOD, config.VIS.TENSORBOARD = 0, 0, False
    config.SOLVER.BASE_LR, config.SOLVER.MAX_ITER, config.SOLVER.BATCH_SIZE = 0.01, 50, 2
    config.SOLVER.STOP_ITER, config.SOLVER.CHECKPOINT_PERIOD = STOP, 8
    config.TCR.UPDATE_FREQUENCY, config.TCR.PASTE_LAG, config.TCR.MIX_CLASSES = 15, 3, CITYSCAPES_19.names
    config.DTU.Query_START, config.DTU.Query_STEP, config.DTU.META_MAX_UPDATE = 4, 2, 9
    return changed(config, **options)


def make_model(classes=19):
    """Stride 8, with noise and running statistics of its own."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout2d(0.2))
    model = Segmentor(features, nn.Conv2d(6, classes, 1))
    with torch.no_grad():
        model.classifier.weight.mul_(6)
    return model


def adaptation(folder, pictures, config, evaluator=None):
    skipped = SkippedImages(config.DATALOADER.SKIP_BAD_IMAGES)
    images = ImageSet("folder:pictures", pictures, tuple(path.name for path in pictures), skipped=skipped)
    return Trainer(in_folder(config, folder), make_model(), images, CITYSCAPES_19, evaluator)


def source(folder, pictures, config):
    taxonomy = Taxonomy(("road", "sky", "car"))
    table = label_table(taxonomy, dict(enumerate(taxonomy.names)), ())
    images = ImageSet("things_train", pictures, tuple(path.name for path in pictures), label_path, table)
    statistics = LabelStatistics(np.full((5, 3), 64), ())
    return SourceTrainer(in_folder(config, folder), make_model(3), images, taxonomy, statistics=statistics)


def in_folder(config, folder):
    folder.mkdir(exist_ok=True)
    config = config.clone()
    config.OUTPUT_DIR = str(folder)
    return config


KINDS = {"adaptation": adaptation, "source": source}


def run_until(trainer, iteration, part="step"):
    """Run and be killed: before an iteration's step is done, or in the candidate pass that follows it."""
    step, update = trainer.train_step, getattr(trainer, "update_candidates", None)

    def killed_step(batch):
        if part == "step" and trainer.iteration == iteration:
            raise Killed
        return step(batch)

    def killed_pass():
        if part == "pass" and trainer.iteration == iteration:
            raise Killed
        update()

    trainer.train_step, trainer.update_candidates = killed_step, killed_pass
    with pytest.raises(Killed):
        trainer.run()


def go_on(make, folder, pictures, config):
    """A new trainer that goes on from the newest state, and has run to the end."""
    trainer = make(folder, pictures, config)
    trainer.load_state_dict(StateFolder(folder).newest()[1])
    begun = trainer.iteration
    trainer.run()
    return trainer, begun


def weights_of(trainer):
    models = [trainer.student, trainer.teacher] if isinstance(trainer, Trainer) else [trainer.model]
    moments = [value for state in trainer.solver.state_dict()["state"].values() for value in state.values()]
    return [*(t for model in models for t in model.state_dict().values()), *moments]


def assert_same_run(first, second):
    assert first.iteration == second.iteration
    assert all(torch.equal(a, b) for a, b in zip(weights_of(first), weights_of(second), strict=True))
    tables = [name for name in TABLES if (first.output.folder / name).exists()]
    assert tables
    for name in tables:
        assert (first.output.folder / name).read_bytes() == (second.output.folder / name).read_bytes(), name
    if isinstance(first, Trainer):
        assert torch.equal(first.running_conf, second.running_conf)
