"""Training goes on without some bad images (DATALOADER.SKIP_BAD_IMAGES), and its samples stay what they would be."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from core.configs import cfg
from core.datasets.catalog import find_source_images, find_target_images
from core.datasets.images import write_label
from core.datasets.sampling import Request
from core.datasets.skipping import SkippedImages
from core.datasets.taxonomy import CITYSCAPES_19
from core.evaluation.predictor import Predictor
from core.models import build_model
from core.selftraining.candidate_pass import CandidatePass
from core.selftraining.samples import PasteRequest, TargetSamples
from core.sourcetraining.samples import SourceSamples
from core.sourcetraining.statistics import label_statistics, usable_pairs
from core.utils.errors import UserError
from train_src import main as train_source
from train_TCR_DTU import main as adapt

BIKE, COUNT = 18, 6


@pytest.fixture
def config(tmp_path, make_cityscapes):
    """Six target frames in tmp_path, and as source the same number with labels; up to two may be bad."""
    make_cityscapes(tmp_path, train=COUNT, val=COUNT)
    config = cfg.clone()
    config.DATASETS.ROOT = str(tmp_path)
    config.DATASETS.TARGET_TRAIN, config.DATASETS.SOURCE_TRAIN = "cityscapes_train", "cityscapes_val"
    config.DATALOADER.SKIP_BAD_IMAGES, config.DATALOADER.NUM_WORKERS = 2, 0
    config.INPUT.INPUT_SIZE_TEST = config.INPUT.SOURCE_INPUT_SIZE_TRAIN = (64, 32)
    config.INPUT.TARGET_INPUT_SIZE_TRAIN = (48, 24)
    config.INPUT.INPUT_SCALES_TRAIN, config.INPUT.HORIZONTAL_FLIP_PROB_TRAIN = (0.8, 1.2), 0.5
    config.INPUT.BRIGHTNESS, config.INPUT.CONTRAST = 0.5, 0.5
    return config


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


def damage(path, how):
    whole = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        shape = {"colour": (64, 128, 3), "value": (64, 128), "size": (60, 128)}[how]
        value = {"colour": (7, 8, 9), "value": 100, "size": 7}[how]
        assert cv2.imwrite(str(path), np.full(shape, value, np.uint8))


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_bad_target_image_is_replaced_by_the_next_at_the_same_position(config, how):
    images = find_target_images(config)
    samples = TargetSamples(images, CITYSCAPES_19, config)
    expected = [samples[PasteRequest(image=0, position=7)], samples[PasteRequest(image=3, position=8)]]
    damage(images.paths[-1], how)
    damage(images.paths[2], how)
    assert same(samples[PasteRequest(image=COUNT - 1, position=7)], expected[0])  # after the last comes the first
    assert same(samples[PasteRequest(image=2, position=8)], expected[1])
    assert expected[1]["names"] == images.names[3]


@pytest.mark.parametrize("how", ["gone", "cut", "colour", "value", "size"])
def test_a_bad_source_pair_is_replaced_by_the_next(config, how):
    images = find_source_images(config)
    samples = SourceSamples(images, config)
    expected = samples[Request(2, 9)]
    damage(images.label_path(images.paths[1]), how)
    assert same(samples[Request(1, 9)], expected)
    config.DATALOADER.SKIP_BAD_IMAGES = 0
    if how != "gone":  # which is found at the start
        with pytest.raises(UserError, match=r"val/"):
            SourceSamples(find_source_images(config), config)[Request(1, 9)]


def test_from_a_bad_image_nothing_is_pasted(config, tmp_path):
    """Its candidate labels are there, from a pass in which it was whole."""
    images = find_target_images(config)
    (tmp_path / "g0001/labels").mkdir(parents=True)
    labels = np.full((64, 128), 255, np.uint8)
    labels[20:32, 30:50] = BIKE
    entry = {"size": [64, 128], "present": [BIKE], "masked": []}
    entries = [entry | {"name": name, "candidates": [BIKE] * (name == images.names[1])} for name in images.names]
    for number in range(COUNT):
        write_label(tmp_path / f"g0001/labels/{number:06d}.png", labels)
    index = {"format": 1, "generation": 1, "iteration": 0, "num_classes": 19, "pixelwise": False}
    index |= {"thresholds": [0] * 19, "images": entries}
    (tmp_path / "g0001/index.json").write_text(json.dumps(index), encoding="utf-8")
    samples = TargetSamples(images, CITYSCAPES_19, config)
    request = PasteRequest(0, 5, str(tmp_path / "g0001"), (1.0,) * len(samples.paste_classes))
    assert (samples[request]["pasted"] == BIKE).any()
    damage(images.paths[1], "cut")
    assert (samples[request]["pasted"] == 255).all()
    assert [path for path, _ in images.skipped.take()] == [str(images.paths[1])]
    config.DATALOADER.SKIP_BAD_IMAGES = 0
    with pytest.raises(UserError, match="cannot be decoded"):
        TargetSamples(find_target_images(config), CITYSCAPES_19, config)[request]


@pytest.mark.parametrize("window", [(), (64, 32)])
def test_candidate_passes_go_on_without_a_bad_image(config, tmp_path, window):
    config.TEST.WINDOW = window
    config.MODEL.NAME, config.MODEL.FREEZE_BN = "deeplab_resnet18", True
    images = find_target_images(config)
    damage(images.paths[3], "cut")
    teacher = build_model(config)
    candidates = CandidatePass(images, 19, Predictor(config, torch.device("cpu")), tmp_path / "candidates")
    first = candidates.run(teacher, 0)
    second = candidates.run(teacher, 3, first)
    for generation in (first, second):
        assert len(generation) == COUNT
        assert (generation.labels(3) == 255).all()
        assert (generation.candidate_labels(3) == 255).all()
        assert generation.presence.any(axis=1).tolist() == [index != 3 for index in range(COUNT)]
        assert not any(3 in offering for offering in generation.candidates)
    assert images.skipped.paths == [str(images.paths[3])]
    damage(images.paths[4], "gone")
    damage(images.paths[5], "gone")
    with pytest.raises(UserError, match=r"000005.*2 bad images skipped before it"):
        candidates.run(teacher, 6, second)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_labels_are_counted_as_holding_nothing_and_counted_anew_the_next_time(config, tmp_path, workers):
    images = find_source_images(config)
    whole = label_statistics(images, 19, tmp_path, 0)
    damage(images.label_path(images.paths[1]), "cut")
    damage(images.label_path(images.paths[4]), "gone")
    for _ in range(2):
        images = replace(images, skipped=SkippedImages(2))
        found = label_statistics(images, 19, tmp_path, workers)
        assert images.skipped.paths == [str(images.label_path(images.paths[index])) for index in (1, 4)]
        assert not found.pixels[[1, 4]].any()
        assert (np.delete(found.pixels, [1, 4], 0) == np.delete(whole.pixels, [1, 4], 0)).all()
    for limit in (0, 1):
        with pytest.raises(UserError, match=r"cannot be (decoded|read)"):
            label_statistics(replace(images, skipped=SkippedImages(limit)), 19, tmp_path, 0)


def test_pairs_of_different_size_are_left_out_up_to_the_limit(config, tmp_path):
    images = find_source_images(config)
    damage(images.label_path(images.paths[2]), "size")
    usable, statistics, _ = usable_pairs(images, CITYSCAPES_19, tmp_path, 0)
    assert usable.names == tuple(name for index, name in enumerate(images.names) if index != 2)
    assert len(statistics.pixels) == COUNT - 1
    assert images.skipped.paths == [str(images.paths[2])]
    with pytest.raises(UserError, match="differ in size"):
        usable_pairs(replace(images, skipped=SkippedImages()), CITYSCAPES_19, tmp_path, 0)


def test_both_programs_run_with_bad_images(config, tmp_path, write_config, capsys):
    """From the command line: a target image cut off and a source label gone."""
    paths = sorted((tmp_path / "cityscapes/leftImg8bit/train").rglob("*.png"))
    damage(paths[2], "cut")
    labels = sorted((tmp_path / "cityscapes/gtFine/val").rglob("*.png"))
    damage(labels[3], "gone")
    file = write_config(tmp_path, **{"DATASETS.TEST": "", "DATASETS.SOURCE_TRAIN": "cityscapes_val"})
    options = ["SOLVER.STOP_ITER", "1", "INPUT.SOURCE_INPUT_SIZE_TRAIN", "(64, 32)"]
    for program, name, path in ((adapt, "adapted", paths[2]), (train_source, "source", labels[3])):
        words = ["-cfg", str(file), *options, "OUTPUT_DIR", str(tmp_path / name)]
        assert program([*words, "DATALOADER.SKIP_BAD_IMAGES", "1"]) == 0
        assert str(path) in (tmp_path / name / "log.txt").read_text(encoding="utf-8")
        assert capsys.readouterr().out.count("skipped a bad image, 1 of at most 1: ") == 1
