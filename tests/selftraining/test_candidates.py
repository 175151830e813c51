"""Candidate passes (method §6): what they store, against a straightforward computation, and how safely they do it."""

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from core.configs import cfg
from core.datasets.catalog import ImageSet
from core.datasets.sampling import even_subsample
from core.datasets.transforms import nearest_labels
from core.evaluation.predictor import Predictor
from core.selftraining import candidate_pass
from core.selftraining.candidate_pass import CandidatePass, first_pass_grid, resized_counts
from core.selftraining.generations import Generation, table_row
from core.utils import distributed
from core.utils.errors import UserError
from tests.helpers import contents

C, IGNORE = 19, 255
FULL = (64, 128)  # (h, w) of the full view
SIZES = ((64, 128), (96, 150), (51, 87), (33, 20), (64, 128), (130, 131), (7, 9))


class LinearNet(nn.Module):
    """Stride-8 logits that are a linear map of the mean colour; records inputs, outputs and its mode."""

    def __init__(self, seed, change=0.0):
        super().__init__()
        draws = [torch.randn(C, 4, generator=torch.Generator().manual_seed(s)) for s in (seed, seed + 1)]
        self.weight = nn.Parameter(2 * (draws[0] + change * draws[1]))
        self.seen = []

    def forward(self, image):
        pooled = F.avg_pool2d(image, 8, ceil_mode=True)
        weight = self.weight.detach()
        logits = (pooled.unsqueeze(1) * weight[None, :, :3, None, None]).sum(2) + weight[:, 3, None, None]
        self.seen.append((image.clone(), logits.clone(), self.training))
        return logits


class Constant(nn.Module):
    """One class wins everywhere."""

    def __init__(self, winner):
        super().__init__()
        self.winner = winner

    def forward(self, image):
        logits = torch.zeros(len(image), C, 8, 16)
        logits[:, self.winner] = 1
        return logits


def make_images(folder, sizes=SIZES, seed=0):
    """Smooth random pictures with a little noise."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    names = [f"{i:02d}.png" for i in range(len(sizes))]
    for name, (height, width) in zip(names, sizes, strict=True):
        coarse = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        Image.fromarray((picture + rng.integers(-9, 10, picture.shape)).clip(0, 255).astype(np.uint8)).save(
            folder / name
        )
    return ImageSet("folder:pictures", tuple(folder / name for name in names), tuple(names))


def make_pass(images, folder, **options):
    config = cfg.clone()
    config.INPUT.INPUT_SIZE_TEST = FULL[::-1]
    config.DATALOADER.NUM_WORKERS = options.get("workers", 0)
    config.TEST.BATCH_SIZE = options.get("batch_size", 1)
    config.TCR.TOPK_CANDIDATE = options.get("topk", 0.5)
    config.TEST.WINDOW = options.get("window", ())
    config.MODEL.ALIGN_CORNERS = options.get("corners", True)
    return CandidatePass(images, C, Predictor(config, torch.device("cpu")), folder / "candidates")


def nearest_index(size, target):
    """For every pixel of `target` (h, w) the flat index of the pixel of `size` that F.interpolate takes."""
    index = torch.arange(size[0] * size[1], dtype=torch.float32).view(1, 1, *size)
    return F.interpolate(index, size=target, mode="nearest")[0, 0].long().numpy()


def resized(labels, size):
    return labels.ravel()[nearest_index(labels.shape, size)]


def at_own_size(logits, size, corners=True):
    """(labels, confidences) of 1×C×h×w logits at an image's own size."""
    own = F.interpolate(logits, size=size, mode="bilinear", align_corners=corners)[0]
    return own.numpy().argmax(0), own.softmax(0).amax(0).numpy()


def at_least_50(labels):
    return [c for c in range(C) if (labels == c).sum() >= 50]


def ranked(values, topk):
    values = np.sort(values)
    return values[min(round(len(values) * topk), len(values) - 1)] if len(values) else 0


def iou(new, old, c):
    union = ((new == c) | (old == c)).sum()
    return ((new == c) & (old == c)).sum() / union if union else 0.0


def logits_seen(net):
    return [logits[k : k + 1] for _, logits, _ in net.seen for k in range(len(logits))]


GRIDS = {(64, 128): (256, 512), (96, 150): (256, 400), (51, 87): (256, 437), (33, 20): (422, 256)}
GRIDS |= {(130, 131): (256, 258), (7, 9): (256, 329)}


@pytest.mark.parametrize(
    ("size", "grid"), [*GRIDS.items(), ((1024, 2048), (256, 512)), ((360, 480), (256, 341)), ((720, 1280), (256, 455))]
)
def test_grid_of_the_first_pass_has_a_short_side_of_256(size, grid):
    assert first_pass_grid(size) == grid


@pytest.mark.parametrize(("topk", "batch_size", "corners"), [(0.5, 1, True), (0.3, 3, True), (0.5, 3, False)])
def test_first_pass_equals_a_plain_computation(tmp_path, topk, batch_size, corners):
    images = make_images(tmp_path / "images")
    net = LinearNet(0)
    generation = make_pass(images, tmp_path, topk=topk, batch_size=batch_size, corners=corners).run(net, 0)

    stored, confidences, present = [], [], []
    for logits, size in zip(logits_seen(net), SIZES, strict=True):
        labels, confidence = at_own_size(logits, size, corners)
        chosen = nearest_index(size, GRIDS[size])
        stored.append(labels.ravel()[chosen])
        confidences.append(confidence.ravel()[chosen])
        present.append(at_least_50(labels))
    all_labels = np.concatenate([labels.ravel() for labels in stored])
    all_confidences = np.concatenate([confidence.ravel() for confidence in confidences])
    thresholds = np.array([ranked(all_confidences[all_labels == c], topk) for c in range(C)])
    assert 3 < (thresholds > 0).sum() < C  # classes that occur, and some that do not
    assert generation.thresholds == pytest.approx(thresholds, rel=1e-6)
    assert len(generation) == len(SIZES)
    assert generation.names == list(images.names)
    masked_share = []
    for i, size in enumerate(SIZES):
        assert (generation.labels(i) == stored[i]).all()
        expected = np.where(confidences[i] < thresholds[stored[i]], IGNORE, stored[i])
        sure = abs(confidences[i] - thresholds[stored[i]]) > 1e-6  # softmax before or after sampling: the last bit
        found = generation.candidate_labels(i)
        assert (found == expected)[sure].all()
        assert set(np.unique(found[~sure])) <= {*np.unique(stored[i][~sure]), IGNORE}
        masked_share.append((found == IGNORE).mean())
        assert np.flatnonzero(generation.presence[i]).tolist() == present[i]
        offered = at_least_50(resized(found, size))
        assert [c for c in range(C) if i in generation.candidates[c]] == offered
    assert 0.8 * topk < np.mean(masked_share) < 1.2 * topk


def test_the_pixel_of_the_rank_stays_a_candidate(tmp_path):
    """Only pixels below the threshold go: with topk 0 none at all, with topk 1 all but the surest of each class."""
    images = make_images(tmp_path / "images", SIZES[:3])
    none = make_pass(images, tmp_path / "a", topk=0.0).run(LinearNet(0), 0)
    most = make_pass(images, tmp_path / "b", topk=1.0).run(LinearNet(0), 0)
    assert all((none.candidate_labels(i) != IGNORE).all() for i in range(3))
    kept = np.concatenate([most.candidate_labels(i).ravel() for i in range(3)])
    occurring = {int(c) for i in range(3) for c in np.unique(most.labels(i))}
    assert set(np.unique(kept)) - {IGNORE} == occurring
    assert (kept != IGNORE).sum() < 0.02 * kept.size


@pytest.mark.parametrize("topk", [0.5, 0.2])
def test_later_passes_equal_a_plain_computation(tmp_path, topk):
    images = make_images(tmp_path / "images")
    candidates = make_pass(images, tmp_path, topk=topk)
    previous = candidates.run(LinearNet(0), 0)
    for number, change in ((1, 0.2), (2, 0.4)):
        net = LinearNet(0, change)
        generation = candidates.run(net, 3000 * number - 1, previous)
        table = np.zeros((len(SIZES), C))
        own_labels = []
        for i, (logits, size) in enumerate(zip(logits_seen(net), SIZES, strict=True)):
            own_labels.append(at_own_size(logits, size)[0])
            old = resized(previous.labels(i), size)
            table[i] = [iou(own_labels[i], old, c) for c in range(C)]
        thresholds = [ranked(table[:, c][table[:, c] > 0], topk) for c in range(C)]
        assert generation.thresholds == pytest.approx(thresholds, abs=1e-12)
        means = [table[:, c][table[:, c] > 0].mean() if table[:, c].any() else 0 for c in range(C)]
        assert generation.consistency == pytest.approx(means, abs=1e-12)
        assert generation.pixels == [sum(int((labels == c).sum()) for labels in own_labels) for c in range(C)]
        assert (generation.number, generation.iteration) == (number, 3000 * number - 1)
        assert generation.folder.name == f"g{number:04d}"
        dropped = 0
        for i, size in enumerate(SIZES):
            half = (size[0] // 2, size[1] // 2)
            stored = resized(own_labels[i], half)
            assert generation.labels(i).shape == half
            assert (generation.labels(i) == stored).all()
            low = [c for c in range(C) if table[i, c] < thresholds[c]]
            expected = np.where(np.isin(stored, low), IGNORE, stored)
            assert (generation.candidate_labels(i) == expected).all()
            assert np.flatnonzero(generation.presence[i]).tolist() == at_least_50(own_labels[i])
            offered = at_least_50(resized(expected, size))
            assert [c for c in range(C) if i in generation.candidates[c]] == offered
            dropped += len(set(at_least_50(resized(stored, size))) - set(offered))
        assert dropped > 0
        previous = generation


@pytest.mark.parametrize("batch_size", [1, 3])
def test_with_windows_a_pass_sees_images_at_their_own_size(tmp_path, batch_size):
    """The network sees single cells, and so no seams."""
    images, net, later = make_images(tmp_path / "images"), LinearNet(0), LinearNet(0, 0.2)
    candidates = make_pass(images, tmp_path, window=(64, 48), batch_size=batch_size)
    first = candidates.run(net, 0)
    second = candidates.run(later, 3, first)
    shapes = {tuple(image.shape) for image, _, _ in net.seen}
    assert max(shape[0] for shape in shapes) <= batch_size
    assert max(shape[2] for shape in shapes) == 48
    assert max(shape[3] for shape in shapes) == 64
    assert {(7, 9), (33, 20)} <= {shape[2:] for shape in shapes}  # as large as these images are
    for i, size in enumerate(SIZES):
        picture = np.asarray(Image.open(images.paths[i]))
        prepared = (torch.from_numpy(picture.copy()) / 255 - torch.tensor(cfg.INPUT.PIXEL_MEAN)) / torch.tensor(
            cfg.INPUT.PIXEL_STD
        )
        for generation, network in ((first, net), (second, later)):
            labels, _ = at_own_size(network(prepared.permute(2, 0, 1)[None]), size)
            grid = GRIDS[size] if generation is first else (max(size[0] // 2, 1), max(size[1] // 2, 1))
            assert generation.labels(i).shape == grid
            assert (generation.labels(i) == resized(labels, grid)).mean() > 0.999


def test_a_generation_is_one_row_of_the_runs_table(tmp_path):
    candidates = make_pass(make_images(tmp_path / "images"), tmp_path)
    first = candidates.run(LinearNet(0), 0)
    second = candidates.run(LinearNet(0, 0.3), 2999, first)
    names = [f"class {c}" for c in range(C)]
    rows = [table_row(generation, names) for generation in (first, second)]
    assert list(rows[0]) == list(rows[1])
    assert [(row["iteration"], row["generation"], row["images"]) for row in rows] == [(0, 0, 7), (2999, 1, 7)]
    assert {rows[0][f"consistency_{name}"] for name in names} == {""}
    for row, generation in zip(rows, (first, second), strict=True):
        shares = [float(row[f"share_{name}"]) for name in names]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert shares == pytest.approx(np.divide(generation.pixels, sum(h * w for h, w in SIZES)), abs=1e-6)
        assert [row[f"offering_{name}"] for name in names] == [len(images) for images in generation.candidates]
    assert [float(rows[1][f"consistency_{name}"]) for name in names] == pytest.approx(second.consistency, abs=1e-6)


def test_an_unchanged_teacher_is_nearly_consistent_with_itself(tmp_path):
    images = make_images(tmp_path / "images", SIZES[:2])
    candidates = make_pass(images, tmp_path)
    second = candidates.run(LinearNet(0), 2999, candidates.run(LinearNet(0), 0))
    third = candidates.run(LinearNet(0), 5999, second)
    values = np.array([t for t in third.thresholds if t > 0])
    assert len(values) > 3
    assert np.median(values) > 0.9


def test_fifty_pixels_make_a_class_present(tmp_path):
    """7×7 pixels are too few, 5×10 are enough, however many the grid of the first pass has."""
    candidates = make_pass(make_images(tmp_path / "images", [(7, 7), (5, 10)]), tmp_path)
    first = candidates.run(Constant(2), 0)
    second = candidates.run(Constant(2), 2999, first)
    for generation in (first, second):
        assert generation.presence[:, 2].tolist() == [False, True]
        assert generation.presence.sum() == 1
        assert [images.tolist() for images in generation.candidates] == [[1] if c == 2 else [] for c in range(C)]


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"workers": 2}, {"workers": 1, "batch_size": 2}])
def test_batches_and_workers_leave_no_trace(tmp_path, options):
    images = make_images(tmp_path / "images")
    for folder, given in ((tmp_path / "a", {}), (tmp_path / "b", options)):
        candidates = make_pass(images, folder, **given)
        candidates.run(LinearNet(0, 0.3), 2999, candidates.run(LinearNet(0), 0))
    for generation in ("g0000", "g0001"):
        plain, other = (contents(tmp_path / side / "candidates" / generation) for side in "ab")
        assert plain == other


def test_folder_holds_png_and_json_only(tmp_path):
    images = make_images(tmp_path / "images")
    candidates = make_pass(images, tmp_path)
    second = candidates.run(LinearNet(0, 0.3), 2999, candidates.run(LinearNet(0), 0))
    assert sorted(p.name for p in (tmp_path / "candidates").iterdir()) == ["g0000", "g0001"]
    numbered = [f"{i:06d}.png" for i in range(len(SIZES))]
    first = {"index.json"} | {f"{kind}/{name}" for kind in ("labels", "masked") for name in numbered}
    assert set(contents(tmp_path / "candidates/g0000")) == first
    assert set(contents(second.folder)) == {"index.json"} | {f"labels/{name}" for name in numbered}
    for path in (tmp_path / "candidates").rglob("*.png"):
        with Image.open(path) as picture:
            assert picture.mode == "L"
    again = Generation(second.folder)
    assert (again.presence == second.presence).all()
    assert again.thresholds == second.thresholds
    json.loads((second.folder / "index.json").read_text(encoding="utf-8"))


def test_stored_labels_are_never_of_full_size(tmp_path):
    candidates = make_pass(make_images(tmp_path / "images", [(600, 1200), (540, 720)]), tmp_path)
    first = candidates.run(LinearNet(0), 0)
    second = candidates.run(LinearNet(0), 2999, first)
    found = {}
    for path in (tmp_path / "candidates").rglob("*.png"):
        with Image.open(path) as picture:
            found[path.relative_to(tmp_path / "candidates").as_posix()] = picture.size
    assert found == {
        "g0000/labels/000000.png": (512, 256),
        "g0000/masked/000000.png": (512, 256),
        "g0000/labels/000001.png": (341, 256),
        "g0000/masked/000001.png": (341, 256),
        "g0001/labels/000000.png": (600, 300),
        "g0001/labels/000001.png": (360, 270),
    }
    assert second.labels(0).shape == (300, 600)


def test_every_image_is_decoded_once_per_pass(tmp_path, monkeypatch):
    decode, colour_decodes = cv2.imdecode, []

    def spy(encoded, flags):
        image = decode(encoded, flags)
        if image.ndim == 3:
            colour_decodes.append(image.shape[:2])
        return image

    monkeypatch.setattr(cv2, "imdecode", spy)
    candidates = make_pass(make_images(tmp_path / "images"), tmp_path, batch_size=2)
    first = candidates.run(LinearNet(0), 0)
    assert colour_decodes == list(SIZES)
    colour_decodes.clear()
    candidates.run(LinearNet(0), 2999, first)
    assert colour_decodes == list(SIZES)


def test_a_failing_image_leaves_the_earlier_generation_and_no_new_one(tmp_path):
    images = make_images(tmp_path / "images")
    candidates = make_pass(images, tmp_path)
    first = candidates.run(LinearNet(0), 0)
    before = contents(first.folder)
    good = images.paths[3].read_bytes()
    images.paths[3].write_bytes(good[:40])
    with pytest.raises(UserError, match=r"03\.png"):
        candidates.run(LinearNet(0, 0.3), 2999, first)
    assert contents(first.folder) == before
    assert not (tmp_path / "candidates/g0001").exists()
    images.paths[3].write_bytes(good)
    second = candidates.run(LinearNet(0, 0.3), 2999, first)
    assert sorted(p.name for p in (tmp_path / "candidates").iterdir()) == ["g0000", "g0001"]
    other = make_pass(images, tmp_path / "undisturbed")
    other_first = other.run(LinearNet(0), 0)
    assert contents(second.folder) == contents(other.run(LinearNet(0, 0.3), 2999, other_first).folder)


def test_a_failing_first_pass_leaves_no_generation(tmp_path):
    images = make_images(tmp_path / "images")
    images.paths[-1].write_bytes(b"no image")
    with pytest.raises(UserError, match=r"06\.png"):
        make_pass(images, tmp_path).run(LinearNet(0), 0)
    assert not (tmp_path / "candidates/g0000").exists()


def test_a_generation_is_not_there_before_it_is_complete(tmp_path):
    """Whenever the network runs, the folder of the generation in the making does not bear its name."""
    names = []

    class Watching(LinearNet):
        def forward(self, image):
            names.append({p.name for p in (tmp_path / "candidates").glob("g????")})
            return super().forward(image)

    candidates = make_pass(make_images(tmp_path / "images"), tmp_path)
    candidates.run(Watching(0), 2999, candidates.run(Watching(0), 0))
    assert names == [set()] * len(SIZES) + [{"g0000"}] * len(SIZES)


def test_a_class_that_was_never_seen_before_is_not_masked(tmp_path):
    """Consistency 0 everywhere: no positive value, threshold 0, and nothing is below 0."""
    images = make_images(tmp_path / "images", SIZES[:2])
    candidates = make_pass(images, tmp_path)
    second = candidates.run(Constant(5), 2999, candidates.run(Constant(2), 0))
    assert second.thresholds == [0] * C
    assert (second.candidate_labels(0) == 5).all()
    assert second.candidates[5].tolist() == [0, 1]


@pytest.mark.parametrize(("count", "limit"), [(10, 3), (2975, 500), (7, 6), (100, 1)])
def test_even_subsample_takes_one_of_every_stretch(count, limit):
    chosen = even_subsample(count, limit, np.random.default_rng(0))
    assert len(chosen) == limit
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0
    assert chosen[-1] < count
    stretch = count / limit
    assert all(int(k * stretch) - 1 <= image <= (k + 1) * stretch for k, image in enumerate(chosen))
    assert (chosen == even_subsample(count, limit, np.random.default_rng(0))).all()
    others = {tuple(even_subsample(count, limit, np.random.default_rng(seed))) for seed in range(20)}
    assert len(others) > 1


@pytest.mark.parametrize("limit", [0, 12, 13, 1000])
def test_even_subsample_takes_all_where_the_bound_is_none(limit):
    assert even_subsample(12, limit, np.random.default_rng(0)).tolist() == list(range(12))


# --- label maps


@pytest.mark.parametrize("size", [(30, 46), (15, 23), (31, 47), (60, 92), (7, 9), (45, 10), (90, 92)], ids=str)
def test_resized_labels_and_their_counts_are_those_of_a_nearest_resize(size):
    labels = np.random.default_rng(0).integers(0, 7, (30, 46), np.uint8)
    labels[3:5] = IGNORE
    expected = F.interpolate(torch.from_numpy(labels)[None, None].float(), size=size, mode="nearest")[0, 0].numpy()
    found = nearest_labels(labels, size)
    assert found.flags.c_contiguous
    assert np.array_equal(found, expected)
    assert resized_counts(labels, size, 7).tolist() == [int((expected == c).sum()) for c in range(7)]


@pytest.mark.parametrize("previous", [False, True])
def test_a_folder_that_another_machine_does_not_see_is_one_line(tmp_path, monkeypatch, previous):
    """What its process would write into was made elsewhere."""
    images = make_images(tmp_path / "pictures", SIZES[:2])
    first = make_pass(images, tmp_path).run(LinearNet(1), 0) if previous else None
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(candidate_pass, "SEEN_WITHIN", 0.3)
    with pytest.raises(UserError, match=r"^.*\.partial.* is not seen by every machine of the job: give an OUTPUT_DIR"):
        make_pass(images, tmp_path).run(LinearNet(1), 5, first)
