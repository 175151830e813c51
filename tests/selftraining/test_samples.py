"""Training samples (method §6): what is pasted into them, and that only (SEED, position) and their request count."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from core.configs import cfg
from core.datasets.catalog import ImageSet
from core.datasets.loading import Loader
from core.datasets.sampling import uniform_order
from core.datasets.taxonomy import CITYSCAPES_19
from core.evaluation.predictor import Predictor
from core.selftraining.candidate_pass import CandidatePass
from core.selftraining.resampling import balanced_order
from core.selftraining.samples import PasteRequest, PasteSchedule, RequestStream, TargetSamples
from tests.helpers import changed

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
ROAD, CLASSES, IGNORE = 0, 19, 255
PASTE_NAMES = ("fence", "pole", "light", "sign", "rider", "train", "motorcycle", "bicycle")
PASTE = tuple(CITYSCAPES_19.names.index(name) for name in PASTE_NAMES)
FENCE, POLE, LIGHT, SIGN, RIDER, TRAIN, MOTORCYCLE, BICYCLE = PASTE


def colour(label):
    return (10 + 12 * label, 250 - 12 * label, label * 53 % 256)


def make_config(**options):
    """Full view 128×64, student view 96×48, no rescaling, no flip, no jitter; `SECTION__KEY` arguments change it."""
    sizes = {"INPUT__INPUT_SIZE_TEST": (128, 64), "INPUT__TARGET_INPUT_SIZE_TRAIN": (96, 48)}
    return changed(cfg, **(sizes | options))


def image_set(folder, arrays):
    folder.mkdir(exist_ok=True)
    names = [f"town/{i:03d}.png" for i in range(len(arrays))]
    for name, array in zip(names, arrays, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(array).save(folder / name)
    return ImageSet("folder:town", tuple(folder / name for name in names), tuple(names))


def painted(labels):
    return np.array([colour(c) for c in range(256)], np.int64)[labels].astype(np.uint8)


def scene(*blocks, size=(64, 128)):
    """Labels of a road with (y, x, height, width, class) blocks."""
    labels = np.full(size, ROAD, np.uint8)
    for y, x, height, width, label in blocks:
        labels[y : y + height, x : x + width] = label
    return labels


def write_generation(folder, names, label_maps, offered, masked=None):
    """A later pass's folder: `offered` and `masked` are a list of classes per image."""
    (folder / "labels").mkdir(parents=True)
    for index, labels in enumerate(label_maps):
        Image.fromarray(labels).save(folder / "labels" / f"{index:06d}.png")
    masked = masked or [[] for _ in names]
    images = [
        {"name": name, "size": list(labels.shape), "present": sorted(set(classes) | {ROAD}), "candidates": classes}
        for name, labels, classes in zip(names, label_maps, offered, strict=True)
    ]
    images = [{**image, "masked": classes} for image, classes in zip(images, masked, strict=True)]
    index = {"format": 1, "generation": 1, "iteration": 2999, "num_classes": CLASSES, "pixelwise": False}
    text = json.dumps({**index, "thresholds": [0.0] * CLASSES, "images": images})
    (folder / "index.json").write_text(text, encoding="utf-8")
    return str(folder)


def single_class_world(folder, classes=PASTE):
    """One image per class with one 12×10 block of it, and a generation that offers exactly that."""
    maps = [scene((20, 30, 12, 10, label)) for label in classes]
    images = image_set(folder / "images", [painted(labels) for labels in maps])
    return images, write_generation(folder / "g0001", images.names, maps, [[label] for label in classes])


def only(label):
    """Paste probabilities that draw one class."""
    return tuple(float(c == label) for c in PASTE)


def labels_of(pasted):
    return set(torch.unique(torch.as_tensor(pasted)).tolist()) - {IGNORE}


# --- requests to batches, through worker processes


class ColourNet(nn.Module):
    """Stride-8 logits: minus the squared distance of the mean colour to every class's colour."""

    def __init__(self):
        super().__init__()
        mean, std = torch.tensor(cfg.INPUT.PIXEL_MEAN), torch.tensor(cfg.INPUT.PIXEL_STD)
        palette = torch.tensor([colour(c) for c in range(CLASSES)]) / 255
        self.register_buffer("palette", ((palette - mean) / std).view(1, CLASSES, 3, 1, 1))

    def forward(self, image):
        return -4 * (F.avg_pool2d(image, 8).unsqueeze(1) - self.palette).square().sum(2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Images, and the generation that a real pass of ColourNet over them makes."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    maps = []
    for i in range(6):
        classes = rng.permutation(PASTE)[:3]
        blocks = [(16 * (1 + i % 2), 8 + 40 * k, 24, 16, int(label)) for k, label in enumerate(classes)]
        maps.append(scene(*blocks, size=(64, 128) if i % 3 else (80, 160)))
    images = image_set(folder / "images", [painted(labels) for labels in maps])
    config = make_config(DATALOADER__NUM_WORKERS=0)
    candidates = CandidatePass(images, CLASSES, Predictor(config, torch.device("cpu")), folder / "candidates")
    return images, candidates.run(ColourNet(), 0)


def collect(images, generation, config, workers, schedule, confidence, iterations, batch_size=2):
    """All batches of a stretch, the running confidence of every iteration recorded as the trainer does it."""
    samples = TargetSamples(images, CITYSCAPES_19, config)
    order = uniform_order(len(images), len(iterations) * batch_size, 1, 0)
    stream = RequestStream(generation, schedule, iterations, batch_size, order)
    batches = []
    for iteration, batch in zip(
        iterations, Loader(samples, samples.collate, workers, batch_sampler=stream), strict=True
    ):
        batches.append(batch)
        values = torch.tensor(confidence(iteration))
        schedule.record(iteration, lambda values=values: values)
    return batches


def test_samples_are_the_same_for_any_number_of_workers(world):
    images, generation = world
    assert sum(len(generation.candidates[c]) for c in PASTE) >= 8
    config = make_config(
        INPUT__INPUT_SCALES_TRAIN=(0.5, 1.5),
        INPUT__HORIZONTAL_FLIP_PROB_TRAIN=0.5,
        INPUT__BRIGHTNESS=0.5,
        INPUT__CONTRAST=0.5,
        INPUT__SATURATION=0.5,
        INPUT__HUE=0.2,
    )

    def confidence(iteration):
        return np.random.default_rng(iteration).random(CLASSES)

    runs = []
    for workers in (0, 1, 3):
        torch.set_num_threads(1 if workers else 2)  # of this process; a worker has one
        schedule = PasteSchedule(PASTE, CLASSES, "confidence", 7)
        runs.append(
            collect(images, str(generation.folder), config, workers, schedule, confidence, range(12), batch_size=2)
        )
    for others in runs[1:]:
        for batch, other in zip(runs[0], others, strict=True):
            for key in ("full", "student", "dropped", "pasted", "valid"):
                assert torch.equal(getattr(batch, key), getattr(other, key)), key
            assert batch.views == other.views
            assert batch.names == other.names
    first = runs[0]
    assert sum(int((batch.pasted != IGNORE).any(dim=(1, 2)).sum()) for batch in first) > 12
    assert len({batch.student.numpy().tobytes() for batch in first}) == 12
    assert first[0].full.shape == (2, 3, 64, 128)
    assert first[0].student.shape == (2, 3, 48, 96)
    assert {batch.full.dtype for batch in first} == {torch.uint8}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_running_confidence_reaches_the_samples_exactly_the_lag_later(tmp_path, workers):
    """Only the fence lacks confidence after iterations 0 … 3, only the train from iteration 4 on."""
    images, generation = single_class_world(tmp_path)
    lag = 7

    def confidence(iteration):
        return [0.3 if c == (FENCE if iteration < 4 else TRAIN) else 1.0 for c in range(CLASSES)]

    schedule = PasteSchedule(PASTE, CLASSES, "confidence", lag)
    batches = collect(images, generation, make_config(), workers, schedule, confidence, range(16), batch_size=3)
    found = [[labels_of(one) for one in batch.pasted] for batch in batches]
    assert all(labels == {FENCE} for batch in found[lag : lag + 4] for labels in batch)
    assert all(labels == {TRAIN} for batch in found[lag + 4 :] for labels in batch)
    assert len(set().union(*(labels for batch in found[:lag] for labels in batch))) > 4  # the start values: all alike


def test_lag_carries_on_into_the_next_stretch(tmp_path):
    images, generation = single_class_world(tmp_path)
    schedule = PasteSchedule(PASTE, CLASSES, "confidence", 5)

    def confidence(iteration):
        return [0.3 if c == PASTE[iteration % len(PASTE)] else 1.0 for c in range(CLASSES)]

    collect(images, generation, make_config(), 1, schedule, confidence, range(8), batch_size=1)
    batches = collect(images, generation, make_config(), 2, schedule, confidence, range(8, 20), batch_size=1)
    found = [labels_of(batch.pasted) for batch in batches]
    assert found == [{PASTE[(iteration - 5) % len(PASTE)]} for iteration in range(8, 20)]


def test_uniform_mixing_never_sees_the_running_confidence(tmp_path):
    images, generation = single_class_world(tmp_path)

    def confidence(iteration):
        return [0.3 if c == FENCE else 1.0 for c in range(CLASSES)]

    schedule = PasteSchedule(PASTE, CLASSES, "uniform", 7)
    batches = collect(images, generation, make_config(), 1, schedule, confidence, range(48), batch_size=4)
    counts = dict.fromkeys(PASTE, 0)
    for batch in batches[7:]:
        for one in batch.pasted:
            (label,) = labels_of(one)
            counts[label] += 1
    expected = 41 * 4 / len(PASTE)  # 20.5 of each, standard deviation 4.2
    assert all(abs(count - expected) < 19 for count in counts.values()), counts


def test_schedule_gives_the_start_values_before_the_lag():
    schedule = PasteSchedule((3, 5), 6, "confidence", 2)
    for iteration, second in enumerate([0.9, 0.6, 0.2]):
        expected = {0: 0.5, 1: 0.5, 2: 0.5 / 0.6}[iteration]
        assert schedule.probabilities(iteration)[0] == pytest.approx(expected)
        values = torch.tensor([0, 0, 0, 0.5, 0, second])
        schedule.record(iteration, lambda values=values: values)
    assert schedule.probabilities(3)[0] == pytest.approx(0.5 / 0.9)


def test_requests_of_a_stretch():
    schedule = PasteSchedule(PASTE, CLASSES, "uniform", 16)
    stream = RequestStream("g", schedule, range(10, 13), 2, np.array([4, 3, 2, 1, 0, 5, 5]))
    requests = list(stream)
    assert len(stream) == 3
    assert [[r.image for r in batch] for batch in requests] == [[4, 3], [2, 1], [0, 5]]
    assert [[r.position for r in batch] for batch in requests] == [[20, 21], [22, 23], [24, 25]]
    assert {r.generation for batch in requests for r in batch} == {"g"}
    without = list(RequestStream(None, schedule, range(1), 1, np.array([0])))
    assert without == [[PasteRequest(image=0, position=0)]]


def test_a_sample_depends_on_seed_and_position_only(tmp_path):
    images, generation = single_class_world(tmp_path)
    config = make_config(INPUT__INPUT_SCALES_TRAIN=(1.0, 2.0))

    def make(position, image=0, seed=1):
        config.SEED = seed
        sample = TargetSamples(images, CITYSCAPES_19, config)[PasteRequest(image, position, generation, only(FENCE))]
        return sample["student"].numpy().tobytes(), sample["views"]

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    first = make(7)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert make(7) == first
    assert make(8)[1] != first[1]
    assert make(7, seed=2)[1] != first[1]
    assert make(7, image=1)[1] == first[1]


# --- pasting


@pytest.mark.parametrize("own_size", [(64, 128), (96, 192)])
def test_full_view_shows_nothing_of_what_is_pasted(tmp_path, own_size):
    """Not even where the student view needs no change of the full view, as with the default INPUT options."""
    maps = [scene((20, 30, 12, 10, FENCE), size=own_size)]
    images = image_set(tmp_path / "images", [painted(labels) for labels in maps])
    generation = write_generation(tmp_path / "g0001", images.names, maps, [[FENCE]])
    for crop in ((128, 64), (128, 40)):
        samples = TargetSamples(images, CITYSCAPES_19, make_config(INPUT__TARGET_INPUT_SIZE_TRAIN=crop))
        clean = samples[PasteRequest(0, 0)]["full"].clone()
        for position in range(10):  # not all of them blurred
            sample = samples[PasteRequest(0, position, generation, only(FENCE))]
            assert labels_of(sample["pasted"]) == {FENCE}
            assert torch.equal(sample["full"], clean)


def test_pasted_labels_and_pixels_agree_and_are_not_dropped(tmp_path):
    images, generation = single_class_world(tmp_path)
    config = make_config(INPUT__INPUT_SCALES_TRAIN=(0.5, 1.0), INPUT__BRIGHTNESS=0.5, INPUT__HUE=0.2)
    samples = TargetSamples(images, CITYSCAPES_19, config)
    hidden = 0
    for position in range(150):
        drawn = PASTE[position % len(PASTE)]
        request = PasteRequest(position % len(images), position, generation, only(drawn))
        sample, bare = samples[request], samples[PasteRequest(request.image, position)]
        pasted, shown = sample["pasted"].numpy(), sample["pasted"].numpy() != IGNORE
        assert labels_of(pasted) == {drawn}
        rows, columns = np.nonzero(shown)
        assert 12 <= np.ptp(rows) + 1 <= 30  # cut at the image's own size, enlarged by 1 … 2.5
        assert 10 <= np.ptp(columns) + 1 <= 25
        student = sample["student"].permute(1, 2, 0).numpy()
        assert (student[shown] == colour(drawn)).all()  # neither jittered nor blurred
        assert (student[~shown] == bare["student"].permute(1, 2, 0).numpy()[~shown]).all()
        assert torch.equal(sample["dropped"], bare["dropped"] & ~torch.from_numpy(shown))
        assert torch.equal(sample["valid"], bare["valid"])
        hidden += int((bare["dropped"].numpy() & shown).sum())
    assert hidden > 0  # some pastes did fall onto dropped cells


def test_classes_are_drawn_with_the_probabilities_of_the_request(tmp_path):
    images, generation = single_class_world(tmp_path)
    samples = TargetSamples(images, CITYSCAPES_19, make_config())
    wanted = np.array([0.4, 0.3, 0.1, 0.05, 0.05, 0.1, 0.0, 0.0])
    counts = np.zeros(len(PASTE))
    for position in range(300):
        (label,) = labels_of(samples[PasteRequest(0, position, generation, tuple(wanted))]["pasted"])
        counts[PASTE.index(label)] += 1
    assert (abs(counts - 300 * wanted) <= 4.5 * np.sqrt(300 * wanted * (1 - wanted))).all(), counts


def test_a_class_without_candidates_leaves_its_share_to_the_others(tmp_path):
    images, generation = single_class_world(tmp_path, classes=(FENCE, TRAIN))
    samples = TargetSamples(images, CITYSCAPES_19, make_config())
    wanted = (0.1, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)  # fence and train alike
    found = [labels_of(samples[PasteRequest(0, p, generation, wanted)]["pasted"]) for p in range(100)]
    assert 25 < found.count({FENCE}) < 75
    assert found.count({FENCE}) + found.count({TRAIN}) == 100
    nothing_left = samples[PasteRequest(0, 0, generation, only(BICYCLE))]  # all its probability on a class without any
    assert labels_of(nothing_left["pasted"]) <= {FENCE, TRAIN}


@pytest.mark.parametrize("mode", ["confidence", "uniform"])
def test_no_candidates_at_all_means_no_paste(tmp_path, mode):
    maps = [scene((20, 30, 12, 10, FENCE))]
    images = image_set(tmp_path / "images", [painted(labels) for labels in maps])
    generation = write_generation(tmp_path / "g0001", images.names, maps, [[]])
    schedule = PasteSchedule(PASTE, CLASSES, mode, 2)
    batches = collect(images, generation, make_config(), 0, schedule, lambda i: [0.5] * CLASSES, range(4))
    assert all((batch.pasted == IGNORE).all() for batch in batches)


@pytest.mark.parametrize(
    ("drawn", "brought", "left"),
    [
        (RIDER, {BICYCLE, MOTORCYCLE}, {POLE, SIGN}),
        (BICYCLE, {RIDER}, {MOTORCYCLE, POLE}),
        (MOTORCYCLE, {RIDER}, {BICYCLE, POLE}),
        (POLE, {LIGHT, SIGN}, {RIDER, TRAIN}),
        (LIGHT, {POLE}, {SIGN, RIDER}),
        (SIGN, {POLE}, {LIGHT, RIDER}),
        (FENCE, set(), {POLE, RIDER}),
    ],
)
def test_partners_come_along(tmp_path, drawn, brought, left):
    """The drawn class touches its partners; the other classes stand beside them and stay behind."""
    blocks = [(10, 10, 8, 8, drawn)]
    blocks += [(18, 6 + 8 * k, 6, 8, label) for k, label in enumerate(sorted(brought))]
    blocks += [(40, 10 + 20 * k, 10, 8, label) for k, label in enumerate(sorted(left))]
    maps = [scene(*blocks)]
    images = image_set(tmp_path / "images", [painted(labels) for labels in maps])
    generation = write_generation(tmp_path / "g0001", images.names, maps, [[drawn]])
    samples = TargetSamples(images, CITYSCAPES_19, make_config())
    for position in range(10):
        sample = samples[PasteRequest(0, position, generation, only(drawn))]
        pasted, shown = sample["pasted"].numpy(), sample["pasted"].numpy() != IGNORE
        assert labels_of(pasted) == {drawn} | brought
        student = sample["student"].permute(1, 2, 0).numpy()
        assert (student[shown] == painted(pasted)[shown]).all()


def test_classes_masked_in_an_image_are_not_pasted_from_it(tmp_path):
    maps = [scene((10, 10, 8, 8, RIDER), (18, 10, 8, 8, BICYCLE))]
    images = image_set(tmp_path / "images", [painted(labels) for labels in maps])
    generation = write_generation(tmp_path / "g0001", images.names, maps, [[RIDER]], masked=[[BICYCLE]])
    samples = TargetSamples(images, CITYSCAPES_19, make_config())
    for position in range(5):
        assert labels_of(samples[PasteRequest(0, position, generation, only(RIDER))]["pasted"]) == {RIDER}


def test_labels_at_half_size_lie_on_their_image(tmp_path):
    maps = [scene((21, 31, 13, 11, FENCE), (40, 80, 12, 16, FENCE), size=(96, 192))]
    images = image_set(tmp_path / "images", [painted(labels) for labels in maps])
    generation = write_generation(tmp_path / "g0001", images.names, [maps[0][::2, ::2].copy()], [[FENCE]])
    samples = TargetSamples(images, CITYSCAPES_19, make_config())
    right = total = 0
    for position in range(20):
        sample = samples[PasteRequest(0, position, generation, only(FENCE))]
        shown = (sample["pasted"] == FENCE).numpy()
        colours = sample["student"].permute(1, 2, 0).numpy()[shown]
        right, total = right + (colours == colour(FENCE)).all(1).sum(), total + shown.sum()
    assert right > 0.9 * total  # the odd block loses a row and a column at its border


def test_the_source_image_is_found_by_its_name(tmp_path):
    """A pass may hold some of the images only, in any order."""
    images, _ = single_class_world(tmp_path)
    chosen = [5, 2]
    maps = [scene((20, 30, 12, 10, PASTE[i])) for i in chosen]
    offered = [[PASTE[i]] for i in chosen]
    generation = write_generation(tmp_path / "g0002", [images.names[i] for i in chosen], maps, offered)
    samples = TargetSamples(images, CITYSCAPES_19, make_config())
    for position, i in enumerate(chosen * 3):
        sample = samples[PasteRequest(0, position, generation, only(PASTE[i]))]
        shown = (sample["pasted"] == PASTE[i]).numpy()
        assert shown.any()
        assert (sample["student"].permute(1, 2, 0).numpy()[shown] == colour(PASTE[i])).all()


def test_large_images_are_scaled_down_before_instances_are_cut(tmp_path):
    """1280×640 at ratio 1.6 of 128×64 becomes 204×102: a 110×90 block becomes about 17.5 × 14.3 pixels."""
    maps = [scene((200, 300, 110, 90, FENCE), size=(640, 1280))]
    images = image_set(tmp_path / "images", [painted(labels) for labels in maps])
    generation = write_generation(tmp_path / "g0001", images.names, [maps[0][::2, ::2].copy()], [[FENCE]])
    samples = TargetSamples(images, CITYSCAPES_19, make_config())
    for position in range(15):
        sample = samples[PasteRequest(0, position, generation, only(FENCE))]
        shown = (sample["pasted"] == FENCE).numpy()
        rows, columns = np.nonzero(shown)
        assert 17 <= np.ptp(rows) + 1 <= 18 * 2.5
        assert 14 <= np.ptp(columns) + 1 <= 15 * 2.5
        inner = shown[rows.min() + 4 : rows.max() - 3, columns.min() + 4 : columns.max() - 3]
        assert inner.all()
        colours = sample["student"].permute(1, 2, 0).numpy()[rows.min() + 4 : rows.max() - 3]
        colours = colours[:, columns.min() + 4 : columns.max() - 3].astype(int)
        assert abs(colours - colour(FENCE)).max() <= 2
    unbounded = TargetSamples(images, CITYSCAPES_19, make_config(TCR__PASTE_MAX_RATIO=100.0))
    assert (unbounded[PasteRequest(0, 0, generation, only(FENCE))]["pasted"] == IGNORE).all()  # too large for the view


def test_chosen_mix_classes_replace_the_list(tmp_path):
    config = make_config(TCR__MIX_CLASSES=("car", "train"))
    samples = TargetSamples(image_set(tmp_path / "images", []), CITYSCAPES_19, config)
    assert samples.paste_classes == (13, 16)


# --- order of the images


def test_uniform_order_goes_round_by_round():
    order = uniform_order(7, 17, seed=3, iteration=11)
    assert len(order) >= 17
    for start in (0, 7):
        assert sorted(order[start : start + 7]) == list(range(7))
    assert len(set(order[14:17])) == 3
    assert (order == uniform_order(7, 17, seed=3, iteration=11)).all()
    assert not (order == uniform_order(7, 17, seed=3, iteration=12)).all()
    assert not (order == uniform_order(7, 17, seed=4, iteration=11)).all()


@pytest.mark.parametrize(("count", "length"), [(1, 10_000), (10_000, 10_000), (10_001, 10_500), (12_000, 12_000)])
def test_balanced_order_draws_whole_blocks_and_at_least_twenty(count, length):
    assert len(balanced_order(np.eye(4, dtype=bool), count, seed=1, iteration=0)) == length


def test_balanced_order_is_a_function_of_seed_and_pass():
    presence = np.random.default_rng(0).random((30, 5)) < 0.3
    order = balanced_order(presence, 100, seed=1, iteration=2999)
    assert (order == balanced_order(presence, 100, seed=1, iteration=2999)).all()
    assert not (order == balanced_order(presence, 100, seed=1, iteration=5999)).all()
    assert not (order == balanced_order(presence, 100, seed=2, iteration=2999)).all()


def test_balanced_order_evens_out_the_classes():
    presence = np.zeros((50, 2), bool)
    presence[:, 0] = True
    presence[0] = [False, True]  # one image in fifty, the only one of its class
    order = balanced_order(presence, 1, seed=1, iteration=0)
    assert abs((order == 0).mean() - 0.5) < 0.05
    halves = [(part == 0).mean() for part in np.array_split(order, 20)]
    assert max(halves) - min(halves) < 0.25
    others = np.bincount(order)[1:]
    assert others.max() - others.min() <= 1  # the class's list is gone through in rounds


def test_balanced_order_without_any_class_is_uniform():
    order = balanced_order(np.zeros((5, 3), bool), 23, seed=1, iteration=0)
    assert len(order) >= 23
    assert sorted(order[:5]) == [0, 1, 2, 3, 4]


# --- decoded images on disk


@pytest.mark.parametrize("ratio", [0.7, 1.6])
def test_samples_are_the_same_from_a_cache(world, tmp_path, ratio):
    """Full views, and images to cut from, which the smaller ratio has made smaller first."""
    images, generation = world
    streams = []
    for folder in ("", tmp_path / "cache", tmp_path / "cache"):
        config = make_config(DATALOADER__CACHE=str(folder), TCR__PASTE_MAX_RATIO=ratio)
        samples = TargetSamples(images, CITYSCAPES_19, config)
        requests = [PasteRequest(n % 6, n, str(generation.folder), (1 / len(PASTE),) * len(PASTE)) for n in range(12)]
        streams.append([samples[request] for request in requests])
    assert any((sample["pasted"] != IGNORE).any() for sample in streams[0])
    for stream in streams[1:]:
        for plain, cached in zip(streams[0], stream, strict=True):
            for key in ("full", "student", "pasted", "dropped"):
                assert torch.equal(plain[key], cached[key])
    assert len(list((tmp_path / "cache").glob("*.npy"))) > 6
