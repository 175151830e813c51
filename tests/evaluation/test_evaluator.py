"""Evaluation (method §7) on tiny images with small known networks, and the report of its scores."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from core.configs import cfg
from core.datasets.catalog import ImageSet
from core.datasets.taxonomy import CAMVID_11, CITYSCAPES_16, CITYSCAPES_19, Taxonomy
from core.evaluation.evaluator import Evaluator, report_lines, table_row
from core.evaluation.metrics import Scores
from core.evaluation.predictor import Predictor
from core.utils.errors import UserError

C, IGNORE = 5, 255
FULL = (32, 64)  # (h, w)
SIZES = ((32, 64), (40, 61), (24, 48), (51, 33), (32, 64))
TABLE = np.full(256, IGNORE, np.uint8)
TABLE[[10, 11, 12, 13, 14]] = range(C)  # label values of the files


class Lopsided(nn.Module):
    """Stride-8 logits from mean colour and place: of a mirrored image they are not the mirrored logits."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(C, 3, generator=torch.Generator().manual_seed(0))
        self.seen = []

    def forward(self, image):
        pooled = F.avg_pool2d(image, 8, ceil_mode=True)
        height, width = pooled.shape[-2:]
        logits = (pooled.unsqueeze(1) * self.weight[None, :, :, None, None]).sum(2)
        logits = logits + torch.linspace(0, 1.5, C).view(C, 1, 1) * torch.linspace(-1, 1, width)
        logits = logits + torch.linspace(1.5, 0, C).view(C, 1, 1) * torch.linspace(-1, 1, height)[:, None]
        self.seen.append((image.clone(), logits.clone(), self.training))
        return logits


def label_beside(path):
    return path.with_name(f"{path.stem}_label.png")


def make_images(folder, labelled=True):
    """Smooth pictures, label files of random blocks with values that are no class among them."""
    rng = np.random.default_rng(0)
    paths = []
    for i, (height, width) in enumerate(SIZES):
        coarse = rng.integers(0, 256, (3, 5, 3)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        paths.append(folder / f"{i}.png")
        picture.save(paths[-1])
        blocks = rng.choice([10, 11, 12, 13, 14, 0, 99], (height // 8 + 1, width // 8 + 1)).astype(np.uint8)
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width]).save(folder / f"{i}_label.png")
    names = tuple(path.name for path in paths)
    if not labelled:
        return ImageSet("folder:pictures", tuple(paths), names)
    return ImageSet("pictures_val", tuple(paths), names, label_beside, TABLE)


def evaluate(images, model, batch_size=1, workers=0, corners=True, **averaging):
    """(scores, prediction of every image)."""
    config = cfg.clone()
    config.MODEL.ALIGN_CORNERS = corners
    config.INPUT.INPUT_SIZE_TEST = FULL[::-1]
    config.TEST.BATCH_SIZE, config.DATALOADER.NUM_WORKERS = batch_size, workers
    evaluator = Evaluator(images, C, Predictor(config, torch.device("cpu")), **averaging)
    predictions = {}
    scores = evaluator.run(model, lambda index, prediction: predictions.update({index: prediction}))
    return scores, [predictions[i] for i in range(len(images))]


def upsampled(logits, size, corners=True):
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=corners)[0]


def counted(predictions, folder):
    """Confusion by label and prediction, pixel by pixel."""
    confusion = np.zeros((C, C), int)
    for i, prediction in enumerate(predictions):
        label = np.asarray(Image.open(folder / f"{i}_label.png"))
        for value, predicted in zip(label.ravel().tolist(), prediction.ravel().tolist(), strict=True):
            if 10 <= value <= 14:
                confusion[value - 10, predicted] += 1
    return confusion


@pytest.mark.parametrize("corners", [True, False])
def test_scores_equal_a_count_over_all_pixels(tmp_path, corners):
    images, model = make_images(tmp_path), Lopsided()
    scores, predictions = evaluate(images, model, corners=corners)
    for prediction, size, (_, logits, _) in zip(predictions, SIZES, model.seen, strict=True):
        assert prediction.dtype == np.uint8
        assert prediction.shape == size
        assert (prediction == upsampled(logits, size, corners).numpy().argmax(0)).all()
    confusion = counted(predictions, tmp_path)
    hits, labels, guesses = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    assert (hits > 0).all()
    assert scores.iou == pytest.approx(100 * hits / (labels + guesses - hits))
    assert scores.accuracy == pytest.approx(100 * hits / labels)
    assert scores.mean_iou == pytest.approx(np.mean(100 * hits / (labels + guesses - hits)))
    assert scores.mean_accuracy == pytest.approx(np.mean(100 * hits / labels))
    assert scores.all_accuracy == pytest.approx(100 * hits.sum() / labels.sum())
    assert scores.occurs.all()


def test_network_sees_the_image_resized_bicubically_and_normalised(tmp_path):
    images, model = make_images(tmp_path), Lopsided()
    evaluate(images, model)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for (given, _, _), path in zip(model.seen, images.paths, strict=True):
        picture = Image.open(path).resize(FULL[::-1], Image.Resampling.BICUBIC)
        levels = (given[0].permute(1, 2, 0).numpy() * std + mean) * 255
        difference = abs(levels - np.asarray(picture))
        assert difference.max() < 2.01  # torchvision's own bicubic is 2 levels off PIL's in a few pixels of a million
        assert (difference > 1.01).mean() < 0.005


def test_flip_averaging_mirrors_left_and_right_and_back(tmp_path):
    images, model = make_images(tmp_path), Lopsided()
    _, predictions = evaluate(images, model, flip=True)
    assert len(model.seen) == 2 * len(SIZES)
    wrong = {"plain": 0, "upside down": 0, "not back": 0}
    for i, size in enumerate(SIZES):
        image = model.seen[2 * i][0]
        assert torch.equal(model.seen[2 * i + 1][0], image.flip(3))
        probs = upsampled(model(image), size).softmax(0)
        mirrored = upsampled(model(image.flip(3)), size).softmax(0)
        turned = upsampled(model(image.flip(2)), size).softmax(0)
        expected = (probs + mirrored.flip(2)).argmax(0).numpy()
        assert (predictions[i] == expected).all()
        wrong["plain"] += (probs.argmax(0).numpy() != expected).sum()
        wrong["upside down"] += ((probs + turned.flip(1)).argmax(0).numpy() != expected).sum()
        wrong["not back"] += ((probs + mirrored).argmax(0).numpy() != expected).sum()
    assert all(count > 200 for count in wrong.values())  # any other way would have shown


@pytest.mark.parametrize(("flip", "corners"), [(False, True), (True, True), (False, False)])
def test_multi_scale_averaging_of_probabilities(tmp_path, flip, corners):
    images, model = make_images(tmp_path), Lopsided()
    _, predictions = evaluate(images, model, multi_scale=True, flip=flip, corners=corners)
    seen = list(model.seen)
    per_image = 6 if flip else 3
    assert len(seen) == per_image * len(SIZES)
    wrong = 0
    for i, size in enumerate(SIZES):
        total, logit_sum, shapes = 0, 0, []
        for image, logits, _ in seen[per_image * i : per_image * (i + 1)]:
            shapes.append(tuple(image.shape[-2:]))
            own = upsampled(logits, size, corners)
            if flip and len(shapes) % 2 == 0:
                own = own.flip(2)
            total, logit_sum = total + own.softmax(0), logit_sum + own
        # 0.7, 1 and 1.3 times 32 and 64
        assert shapes == [s for s in [(22, 45), (32, 64), (42, 83)] for _ in range(2 if flip else 1)]
        assert (predictions[i] == total.argmax(0).numpy()).mean() > 0.9995  # the order of a sum may settle a tie
        wrong += (logit_sum.argmax(0).numpy() != total.argmax(0).numpy()).sum()
    assert wrong > 20  # averaging logits would have shown


@pytest.mark.parametrize("averaging", [{}, {"flip": True, "multi_scale": True}])
@pytest.mark.parametrize(("batch_size", "workers"), [(2, 0), (5, 1)])
def test_batches_of_mixed_label_sizes_agree_with_single_images(tmp_path, averaging, batch_size, workers):
    images = make_images(tmp_path)
    scores, predictions = evaluate(images, Lopsided(), **averaging)
    others, other_predictions = evaluate(images, Lopsided(), batch_size, workers, **averaging)
    assert all((a == b).all() for a, b in zip(predictions, other_predictions, strict=True))
    assert (scores.iou == others.iou).all()


@pytest.mark.parametrize("training", [True, False])
def test_networks_run_in_eval_mode_and_get_their_mode_back(tmp_path, training):
    model = Lopsided().train(training)
    evaluate(make_images(tmp_path), model)
    assert not any(mode for _, _, mode in model.seen)
    assert model.training == training


def test_without_labels_predictions_are_all_that_comes_out(tmp_path):
    scores, predictions = evaluate(make_images(tmp_path, labelled=False), Lopsided())
    assert scores is None
    assert [prediction.shape for prediction in predictions] == list(SIZES)


def test_a_label_of_another_size_is_an_error_that_names_both(tmp_path):
    images = make_images(tmp_path)
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(tmp_path / "2_label.png")
    with pytest.raises(UserError, match=r"12×10.*48×24"):
        evaluate(images, Lopsided(), workers=1)


def test_pixels_without_a_class_do_not_count(tmp_path):
    images = make_images(tmp_path)
    for i, (height, width) in enumerate(SIZES):
        Image.fromarray(np.full((height, width), 99, np.uint8)).save(tmp_path / f"{i}_label.png")
    scores, _ = evaluate(images, Lopsided())
    assert scores.iou.tolist() == [0] * C
    assert scores.all_accuracy == 0
    assert not scores.occurs.any()
    assert scores.mean_iou_occurring == 0


# --- the report


def hand_scores(num_classes, absent=()):
    """Class c is labelled 100 times and found 50 + c times; what is missed goes to the next class that occurs."""
    present = [c for c in range(num_classes) if c not in absent]
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for k, c in enumerate(present):
        confusion[c, c] = 50 + c
        confusion[c, present[(k + 1) % len(present)]] = 50 - c
    iou = np.zeros(num_classes)
    for k, c in enumerate(present):
        received = 50 - present[k - 1]
        iou[c] = 100 * (50 + c) / (100 + received)
    return Scores.of(confusion), iou


def test_report_of_16_classes_has_the_mean_over_13():
    scores, iou = hand_scores(16)
    lines = report_lines(scores, CITYSCAPES_16, "town_val")
    assert len(lines) == 16 + 2
    thirteen = [iou[k] for k, name in enumerate(CITYSCAPES_16.names) if name not in ("wall", "fence", "pole")]
    assert len(thirteen) == 13
    assert f"mIoU {np.mean(iou):.2f}" in lines[16]
    assert "16 classes" in lines[16]
    assert f"mAcc {np.mean(50 + np.arange(16)):.2f}" in lines[16]
    assert f"allAcc {np.mean(50 + np.arange(16)):.2f}" in lines[16]
    assert f"mIoU {np.mean(thirteen):.2f}" in lines[17]
    assert "13" in lines[17]
    for k, name in enumerate(CITYSCAPES_16.names):
        assert lines[k].split()[0] == name
        assert f"{iou[k]:.2f}" in lines[k]
        assert f"{50 + k:.2f}" in lines[k]


def test_report_of_19_classes_has_one_mean():
    scores, iou = hand_scores(19)
    lines = report_lines(scores, CITYSCAPES_19, "town_val")
    assert len(lines) == 20
    assert f"mIoU {np.mean(iou):.2f}" in lines[-1]
    assert not any("occur" in line for line in lines)


@pytest.mark.parametrize(("taxonomy", "absent"), [(CAMVID_11, (6,)), (CITYSCAPES_19, (16, 14)), (CITYSCAPES_16, (3,))])
def test_absent_classes_are_said_and_a_second_mean_leaves_them_out(taxonomy, absent):
    scores, iou = hand_scores(len(taxonomy), absent)
    lines = report_lines(scores, taxonomy, "town_val")
    here = [c for c in range(len(taxonomy)) if c not in absent]
    overall, occurring = f"mIoU {iou.sum() / len(taxonomy):.2f}", f"mIoU {iou[here].mean():.2f}"
    assert overall != occurring
    (line,) = [line for line in lines if overall in line]
    assert f"{len(taxonomy)} classes" in line
    (line,) = [line for line in lines if occurring in line]
    assert line == f"{occurring} over the {len(here)} classes that occur in the labels (mIoU_labelled)"
    names = ", ".join(taxonomy.names[c] for c in sorted(absent))
    assert lines[-1] == f"no pixel of {names} in the labels of town_val: mIoU counts what is missing as 0"
    for c in range(len(taxonomy)):
        assert ("occurs nowhere" in lines[c]) == (c in absent)


def test_a_class_that_is_only_predicted_counts_as_occurring():
    scores = Scores.of(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))
    assert scores.occurs.tolist() == [True, True, False]
    assert scores.mean_iou == pytest.approx(75 / 3)
    assert scores.mean_iou_occurring == pytest.approx(75 / 2)
    assert scores.labelled.tolist() == [True, False, False]
    assert scores.mean_iou_labelled == pytest.approx(75)
    lines = report_lines(scores, Taxonomy(("road", "sky", "car")), "town_val")
    assert [line.partition("  (")[2] for line in lines[:3]] == ["", "in predictions only)", "occurs nowhere)"]
    assert lines[3].startswith("mIoU 25.00")
    assert lines[4] == "mIoU 75.00 over the 1 class that occurs in the labels (mIoU_labelled)"
    assert lines[5] == "mIoU 37.50 over the 2 that occur in labels or predictions"


def test_the_mean_over_labelled_classes_has_one_denominator_whatever_is_predicted():
    """The second model makes a mistake less, but one of its own is a class that no label holds."""
    first = Scores.of(np.array([[8, 2, 0], [2, 8, 0], [0, 0, 0]]))
    second = Scores.of(np.array([[8, 2, 0], [0, 9, 1], [0, 0, 0]]))
    assert first.labelled.tolist() == second.labelled.tolist()
    assert second.mean_iou_labelled == pytest.approx(100 * (8 / 10 + 9 / 12) / 2)
    assert first.mean_iou_labelled == pytest.approx(100 * 8 / 12)
    assert first.mean_iou_labelled - second.mean_iou_labelled < 0 < first.mean_iou_occurring - second.mean_iou_occurring


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((5, 0, 0), "warning: road is the only class in the labels of town_val"),
        ((0, 0, 0), "warning: no label of town_val holds a pixel of any class"),
        ((5, 5, 0), ""),
    ],
)
def test_labels_that_hold_next_to_nothing_are_a_warning(labels, message):
    scores = Scores.of(np.diag(labels))
    lines = report_lines(scores, Taxonomy(("road", "sky", "car")), "town_val")
    warnings = [line for line in lines if line.startswith("warning")]
    assert len(warnings) == bool(message)
    assert all(line.startswith(message) for line in warnings)
    assert scores.mean_iou_labelled == (100 if any(labels) else 0)


@pytest.mark.parametrize("taxonomy", [CITYSCAPES_16, CITYSCAPES_19, CAMVID_11])
def test_a_row_of_the_table_has_the_means_and_then_every_class(taxonomy):
    scores, iou = hand_scores(len(taxonomy), absent=(2,))
    row = table_row(scores, taxonomy)
    means = ["mIoU", "mIoU_occurring", *(["mIoU_13"] if len(taxonomy) == 16 else []), "mAcc", "allAcc"]
    classes = [f"{score}_{name}" for score in ("IoU", "accuracy") for name in taxonomy.names]
    assert list(row) == [*means, *classes, "mIoU_labelled"]
    assert float(row["mIoU_labelled"]) == pytest.approx(np.delete(iou, 2).mean(), abs=1e-4)
    assert float(row["mIoU"]) == pytest.approx(iou.mean(), abs=1e-4)
    assert [float(row[f"IoU_{name}"]) for name in taxonomy.names] == pytest.approx(iou, abs=1e-4)
