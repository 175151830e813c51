"""Source training: steps against a computation written down from method §4, and what it does to the network."""

import copy
import types
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from core.configs import cfg
from core.datasets.gta5 import label_path
from core.datasets.reader import ImageSet, label_table
from core.datasets.sampling import Request, uniform_order
from core.datasets.taxonomy import Taxonomy
from core.models.deeplab import Segmentor
from core.models.dsu import DSU
from core.sourcetraining.samples import SourceBatch
from core.sourcetraining.statistics import LabelStatistics
from core.sourcetraining.trainer import SourceTrainer, balanced_block, cross_entropy_sum, label_weight
from tests.helpers import changed

TAXONOMY = Taxonomy(("road", "sky", "car", "rider", "pole"))
C, IGNORE = len(TAXONOMY), 255
SIZE = (32, 48)  # (h, w)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PIXELS = np.array([[600, 100, 0, 7, 40], [200, 60, 0, 3, 0]])  # per image and class; no car


def make_config(**options):
    solver = {"SOLVER__BASE_LR": 0.01, "SOLVER__MAX_ITER": 50, "SOLVER__BATCH_SIZE": 2, "SOLVER__STOP_ITER": 3}
    sizes = {"INPUT__SOURCE_INPUT_SIZE_TRAIN": SIZE[::-1], "MODEL__NUM_CLASSES": C, "DATALOADER__NUM_WORKERS": 0}
    return changed(cfg, **(solver | sizes | options))


def make_model(*between):
    """Stride 8; `between` lies behind the first convolution."""
    torch.manual_seed(0)
    return Segmentor(nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), *between, nn.Tanh()), nn.Conv2d(6, C, 1))


def make_trainer(config=None, model=None, images=None, output=None):
    images = images or ImageSet("things_train", (), ())
    statistics = presence_statistics(images) if len(images) else LabelStatistics(PIXELS, ())
    trainer = SourceTrainer(config or make_config(), model or make_model(), images, TAXONOMY, statistics=statistics)
    if output:
        trainer.output, trainer.conclude = output, lambda: output.disturb(trainer.model)
    return trainer


def make_batch(seed=0):
    """Noise; about a third of the pixels is unlabelled, and no pixel is a car."""
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (2, 3, *SIZE)).astype(np.uint8))
    labels = torch.from_numpy(rng.choice([0, 0, 1, 3, 4, IGNORE, IGNORE], (2, *SIZE)).astype(np.uint8))
    return SourceBatch(images, labels, ("a", "b"))


def upsampling(small, large, corners):
    """large×small weights of a linear interpolation whose ends are the first and last pixel's centres, or rims."""
    weights = torch.zeros(large, small, dtype=torch.float64)
    for row in range(large):
        place = row * (small - 1) / (large - 1)
        if not corners:
            place = min(max((row + 0.5) * small / large - 0.5, 0), small - 1)
        lower = min(int(place), small - 2)
        weights[row, lower], weights[row, lower + 1] = 1 - (place - lower), place - lower
    return weights


class PlainTraining:
    """What training must do, in double precision."""

    def __init__(self, model, config, class_weights=(1,) * C):
        self.parameters = [p.detach().double().requires_grad_() for p in model.parameters()]
        self.momentum = [torch.zeros_like(p) for p in self.parameters]
        self.solver, self.iteration, self.class_weights = config.SOLVER, 0, class_weights
        self.corners = config.MODEL.ALIGN_CORNERS

    def loss(self, batch):
        weight, bias, class_weight, class_bias = self.parameters
        levels = (batch.images.numpy().transpose(0, 2, 3, 1) / 255 - MEAN) / STD
        patches = torch.from_numpy(levels).reshape(2, SIZE[0] // 8, 8, SIZE[1] // 8, 8, 3)
        features = torch.tanh(torch.einsum("bhiwjc,fcij->bfhw", patches, weight) + bias[:, None, None])
        logits = torch.einsum("bfhw,kf->bkhw", features, class_weight[:, :, 0, 0]) + class_bias[:, None, None]
        up = [upsampling(n // 8, n, self.corners) for n in SIZE]
        logits = up[0] @ logits @ up[1].T
        total, count = 0, 0
        for b, y, x in np.ndindex(*batch.labels.shape):
            label = int(batch.labels[b, y, x])
            if label != IGNORE:
                scores = logits[b, :, y, x]
                total = total + self.class_weights[label] * (scores.exp().sum().log() - scores[label])
                count += self.class_weights[label]
        return total / count

    def step(self, batch):
        loss = self.loss(batch)
        gradients = torch.autograd.grad(loss, self.parameters)
        lr = self.solver.BASE_LR * (1 - self.iteration / self.solver.MAX_ITER) ** 0.9
        with torch.no_grad():
            for k, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
                self.momentum[k] = 0.9 * self.momentum[k] + g + 5e-4 * p
                p -= lr * (1 if k < 2 else 10) * self.momentum[k]
        self.iteration += 1
        return loss.item()


# by hand: of 1010 pixels 800, 160, 0, 10, 40; 1/√share, over its mean over the pixels Σ √share
SHARES = np.array([800, 160, 0, 10, 40]) / 1010
HAND_WEIGHTS = tuple(0.0 if share == 0 else share**-0.5 / np.sqrt(SHARES).sum() for share in SHARES)


@pytest.mark.parametrize(("weighted", "corners"), [(False, True), (True, True), (False, False)])
def test_two_steps_equal_a_plain_computation(weighted, corners):
    config = make_config(SOLVER__CLASS_WEIGHTS=weighted, SOLVER__MAX_ITER=4, MODEL__ALIGN_CORNERS=corners)
    model = make_model()
    plain = PlainTraining(model, config, HAND_WEIGHTS) if weighted else PlainTraining(model, config)
    start = [p.detach().clone() for p in model.parameters()]
    trainer = make_trainer(config, model)
    for seed in range(2):
        batch = make_batch(seed)
        expected = plain.step(batch)
        assert float(trainer.train_step(batch)["loss"]) == pytest.approx(expected, rel=1e-5)
        for ours, theirs in zip(model.parameters(), plain.parameters, strict=True):
            assert torch.allclose(ours.double(), theirs, rtol=1e-4, atol=1e-6)
        assert trainer.iteration == seed + 1
    assert all((p - old).abs().max() > 5e-4 for p, old in zip(model.parameters(), start, strict=True))


def test_class_weights_make_a_weighted_mean():
    """Three labelled pixels with cross-entropies log 2, log 2 and log(1 + e³), weights 1, 1 and 3."""
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 0, 0, 2] = 3.0
    labels = torch.tensor([[[0, 0, 1, IGNORE]]])
    losses = np.log([2, 2, 1 + np.e**3])
    total, count = cross_entropy_sum(logits, labels), label_weight(labels)
    assert float(total / count) == pytest.approx(losses.mean())
    weights = torch.tensor([1.0, 3.0])
    total, count = cross_entropy_sum(logits, labels, weights), label_weight(labels, weights)
    assert float(count) == 5
    assert float(total / count) == pytest.approx((losses * [1, 1, 3]).sum() / 5)


def test_the_parts_of_a_batch_weigh_what_it_weighs_as_a_whole():
    """In single precision the sum over the whole, 2·10⁸ + 20, would be rounded, and that over each part otherwise."""
    labels, weights = torch.tensor([[0] + 10 * [1]]), torch.tensor([1e8, 1.0])
    whole = label_weight(labels.repeat(2, 1), weights)
    assert float(whole) == 2 * float(label_weight(labels, weights)) == 2e8 + 20


@pytest.mark.parametrize("weighted", [False, True])
def test_without_a_labelled_pixel_the_loss_is_0_and_weights_only_decay(weighted):
    config = make_config(SOLVER__CLASS_WEIGHTS=weighted)
    trainer, batch = make_trainer(config), make_batch()
    batch.labels.fill_(IGNORE)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    assert float(trainer.train_step(batch)["loss"]) == 0
    for k, (old, new) in enumerate(zip(before, trainer.model.parameters(), strict=True)):
        lr = 0.01 * (1 if k < 2 else 10)
        assert new.detach().numpy() == pytest.approx(old.numpy() * (1 - lr * 5e-4), rel=1e-6)
        assert not torch.equal(new, old)
    assert np.isfinite(float(trainer.train_step(make_batch())["loss"]))


def test_batch_norm_statistics_move_although_evaluation_ran_before():
    model = make_model(nn.BatchNorm2d(6))
    trainer, batch = make_trainer(model=model), make_batch()
    seen = []
    model.feature_extractor[0].register_forward_hook(lambda module, _, out: seen.append((module.training, out)))
    model.eval()
    trainer.train_step(batch)
    ((training, maps),) = seen
    assert training
    assert model.training
    values = maps.detach().numpy().transpose(1, 0, 2, 3).reshape(6, -1)
    norm = model.feature_extractor[1]
    assert norm.running_mean.numpy() == pytest.approx(0.1 * values.mean(1), rel=1e-4, abs=1e-6)
    assert norm.running_var.numpy() == pytest.approx(0.9 + 0.1 * values.var(1, ddof=1), rel=1e-4)


def test_bf16_stays_near_full_precision_and_keeps_its_parameters_whole():
    losses, ends = {}, {}
    for amp in ("off", "bf16"):
        trainer = make_trainer(make_config(SOLVER__AMP=amp))
        losses[amp] = [float(trainer.train_step(make_batch(seed))["loss"]) for seed in range(3)]
        ends[amp] = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert losses["bf16"] != losses["off"]
    assert losses["bf16"] == pytest.approx(losses["off"], rel=0.02)
    assert ends["bf16"].dtype == torch.float32
    start = torch.cat([p.detach().flatten() for p in make_model().parameters()])
    assert (ends["bf16"] - ends["off"]).norm() < 0.1 * (ends["off"] - start).norm()


def test_a_batch_is_left_as_it_was():
    batch = make_batch()
    before = copy.deepcopy(batch)
    make_trainer().train_step(batch)
    assert torch.equal(batch.images, before.images)
    assert torch.equal(batch.labels, before.labels)


# --- the loop --------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands for a run's output, and disturbs the model and the global generators as an evaluation may."""

    def __init__(self, disturb=lambda model: None):
        self.started, self.rows, self.disturb = False, [], disturb

    def start_clock(self, iteration):
        self.started = True

    def heard(self):
        return nullcontext()

    @property
    def monitor(self):
        return self

    def panel_due(self, iteration):
        return False

    def completed(self, iteration, learning_rate, scalars, per_class):
        assert self.started
        self.rows.append((iteration, learning_rate, float(scalars["loss"])))


@pytest.fixture
def images(tmp_path, write_png):
    """Five pairs of 48×32 with the classes in stripes; a car is in the last one only."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(5):
        paths.append(write_png(tmp_path / f"images/{number}.png", rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)))
        stripes = np.array([0, 1, 3, 4, 2 if number == 4 else 0, 9], np.uint8)
        write_png(tmp_path / f"labels/{number}.png", np.tile(stripes.repeat(8), (32, 1)))
    table = label_table(TAXONOMY, dict(enumerate(TAXONOMY.names)), (9,))
    return ImageSet("things_train", tuple(paths), tuple(path.name for path in paths), label_path, table)


def presence_statistics(images):
    pixels = np.full((len(images), C), 64)
    pixels[:-1, 2] = 0
    return LabelStatistics(pixels, ())


def test_a_run_completes_every_iteration_with_its_own_rate(images):
    output = Recorder()
    trainer = make_trainer(images=images, output=output)
    trainer.run()
    iterations, rates, losses = zip(*output.rows, strict=True)
    assert iterations == (1, 2, 3)
    assert rates == pytest.approx([0.01 * (1 - done / 50) ** 0.9 for done in range(3)])
    assert min(losses) > 0
    assert trainer.iteration == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_the_order(images, workers):
    config = make_config(DATALOADER__NUM_WORKERS=workers)
    trainer = make_trainer(config, images=images)
    batches = list(trainer.batches(range(1, 3), range(3)))
    order = uniform_order(5, 6, 1, 0)
    assert [batch.names for batch in batches] == [
        tuple(images.names[index] for index in order[start : start + 2]) for start in (2, 4)
    ]
    for position, (images_of, labels_of) in enumerate(
        (image, label) for batch in batches for image, label in zip(batch.images, batch.labels, strict=True)
    ):
        sample = trainer.samples[Request(int(order[2 + position]), 2 + position)]
        assert torch.equal(images_of, sample["images"])
        assert torch.equal(labels_of, sample["labels"])


@pytest.mark.parametrize(
    ("mode", "known", "expected"),
    [("auto", False, 0), ("auto", True, 3000), ("balanced", False, 3000), ("uniform", True, 0)],
)
def test_the_block_of_balanced_draws(mode, known, expected):
    config = make_config(DATASETS__SOURCE_SAMPLING=mode)
    assert balanced_block(config, types.SimpleNamespace(balanced=known)) == expected


def test_balanced_runs_see_the_rare_class_more_often(images):
    shares = {}
    for mode in ("uniform", "balanced"):
        trainer = make_trainer(make_config(DATASETS__SOURCE_SAMPLING=mode), images=images)
        drawn = [request.image for batch in trainer.requests(range(500), range(500)) for request in batch]
        assert len(drawn) == 1000
        shares[mode] = np.mean([image == 4 for image in drawn])
    assert shares["uniform"] == pytest.approx(0.2)
    assert shares["balanced"] > 0.35  # four common classes draw it one time in five, its own every time


def test_what_happens_between_two_steps_does_not_change_the_noise_of_dsu(images):
    """An evaluation draws from torch's global generator: a loader's iterator does."""

    def disturb(model):
        torch.rand(7)
        model.eval()

    ends = []
    for output in (Recorder(), Recorder(disturb)):
        model = make_model(DSU(1.0))
        make_trainer(model=model, images=images, output=output).run()
        ends.append(output.rows)
    assert ends[0] == ends[1]
    other = Recorder()
    make_trainer(images=images, output=other).run()
    assert other.rows[0] != ends[0][0]


def test_the_noise_of_dsu_is_another_in_every_iteration_and_of_another_seed():
    losses = []
    for seed in (1, 2):
        trainer = make_trainer(make_config(SOLVER__BASE_LR=1e-12), make_model(DSU(1.0)))
        trainer.config.SEED = seed
        losses += [float(trainer.train_step(make_batch())["loss"]) for _ in range(3)]
    assert len({round(loss, 5) for loss in losses}) == 6
