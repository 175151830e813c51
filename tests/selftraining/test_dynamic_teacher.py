"""The dynamic teacher update as an object (method §5): when it asks, what it decides, and what it keeps."""

import copy
import gc
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.configs import cfg
from core.selftraining.dynamic_teacher import HISTORY_FIELDS, DynamicTeacher, count_improved, draw_points, ema_update

UP, DOWN = 200, 50  # grey levels of images that a rising theta makes more certain, or less


class Threshold(nn.Module):
    """Two classes; the logit of the first is 3 + theta · brightness, brightness from −1 to 1, at stride 8."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, images):
        brightness = F.avg_pool2d(images.float() / 127.5 - 1, 8).mean(1)
        return torch.stack([3 + self.theta * brightness, torch.zeros_like(brightness)], 1)


class Run:
    """A DynamicTeacher with a student that the test moves by hand."""

    def __init__(self, seed=1, anchor=(), **options):
        self.options = cfg.DTU.clone()
        for key, value in ({"PROXY_METRIC": "ENT"} | options).items():
            self.options[key] = value
        self.student, self.teacher = Threshold(), Threshold().requires_grad_(False)
        self.rows, self.shown, self.scored, self.iteration = [], [], 0, 0
        self.monitor = self  # a run is what its teacher takes for predictor, output and monitor
        self.object = DynamicTeacher(self.teacher, self.student, self.options, self, 4, self, seed, anchor)

    def prepare(self, images):
        assert images.dtype == torch.uint8
        return images

    def logits(self, model, images):
        self.scored += 1
        return model(images)

    def append(self, table, row):
        assert (table, tuple(row)) == ("dtu_history.csv", HISTORY_FIELDS)
        self.rows.append(row)

    def scalars(self, iteration, values):
        self.shown.append((iteration, values))

    def step(self, images, change):
        """One iteration, in which the optimiser adds `change` to theta; returns whether the teacher moved."""
        if not isinstance(images, torch.Tensor):
            images = torch.full((2, 3, 16, 24), images, dtype=torch.uint8)
        if self.options.DYNAMIC:
            self.object.before_step(self.iteration, images, ("a", "b"), self.object.probabilities(images))
        with torch.no_grad():
            self.student.theta += change
        before = self.teacher.theta.item()
        moved = self.object.after_step(self.iteration)
        assert moved == (self.teacher.theta.item() != before)
        self.iteration += 1
        return moved


# --- when


def test_an_improving_student_moves_the_teacher_at_every_ninth_batch():
    run = Run()
    moved = [i + 1 for i in range(30) if run.step(UP, 0.05)]
    assert moved == [9, 18, 27]
    assert [row["decision"] for row in run.rows] == ["improved"] * 3
    assert [row["batches"] for row in run.rows] == [9] * 3


def test_a_failing_student_is_asked_every_third_batch_and_forced_at_33():
    """The limit of 30 is tested at queries only, and 30 itself is not above it."""
    run = Run()
    moved = [i + 1 for i in range(50) if run.step(UP, -0.05)]
    assert moved == [33]
    assert [(row["iteration"], row["batches"]) for row in run.rows] == [
        *((n, n) for n in (9, 12, 15, 18, 21, 24, 27, 30, 33)),
        *((33 + n, n) for n in (9, 12, 15)),  # only the update empties the buffer
    ]
    assert [row["decision"] for row in run.rows] == ["refused"] * 8 + ["forced"] + ["refused"] * 3


def test_nothing_is_scored_between_queries_nor_where_the_update_is_forced():
    run = Run()
    extra = {}
    for _ in range(33):
        before = run.scored
        run.step(UP, -0.05)
        extra[run.iteration] = run.scored - before - 1  # one score of its own batch
    asked = {n for n, count in extra.items() if count}
    assert asked == {9, 12, 15, 18, 21, 24, 27, 30}
    # none of n improves: settled once so many are through that the rest is no majority
    assert all(extra[n] == math.ceil(n / 2) for n in asked)


@pytest.mark.parametrize(
    ("options", "queries"),
    [
        ({"Query_START": 2, "Query_STEP": 1, "META_MAX_UPDATE": 4}, [2, 3, 4, 5]),
        ({"Query_START": 4, "Query_STEP": 5, "META_MAX_UPDATE": 9}, [4, 9, 14]),
        ({"Query_START": 3, "Query_STEP": 4, "META_MAX_UPDATE": 1}, [3]),
    ],
)
def test_schedule_follows_its_options(options, queries):
    run = Run(**options)
    while not run.step(UP, -0.05):
        assert run.iteration < 50
    assert [row["batches"] for row in run.rows] == queries
    assert [row["decision"] for row in run.rows] == ["refused"] * (len(queries) - 1) + ["forced"]


# --- whether


@pytest.mark.parametrize(("up", "total", "moves"), [(4, 9, False), (5, 9, True), (6, 12, False), (7, 12, True)])
def test_more_than_half_must_be_better(up, total, moves):
    run = Run(Query_START=total)
    kinds = [UP] * up + [DOWN] * (total - up)
    order = np.random.default_rng(total + up).permutation(kinds).tolist()
    for kind in order[:-1]:
        assert not run.step(kind, 0.0)
    assert run.step(order[-1], 0.5) == moves
    (row,) = run.rows
    assert row["decision"] == ("improved" if moves else "refused")
    assert row["batches"] == total


@pytest.mark.parametrize("total", range(1, 8))
def test_batches_are_scored_at_a_stretch_but_none_that_the_decision_could_do_without(total):
    """Against one after the other, for every pattern of better and worse."""
    for better in itertools.product([False, True], repeat=total):
        asked, needed = [], 0
        while 2 * sum(better[:needed]) <= total < 2 * (sum(better[:needed]) + total - needed):
            needed += 1  # neither is there a majority, nor is it out of reach

        def rescore(batches, better=better, asked=asked):
            asked.append(batches)
            return [float(better[i]) for i in batches]

        rescored, improved = count_improved([0.5] * total, rescore)
        assert (2 * improved > total) == (2 * sum(better) > total)
        assert asked[0] == range(-(-total // 2))
        assert [i for batches in asked for i in batches] == list(range(needed))
        assert (len(rescored), improved) == (needed, sum(better[:needed]))


@pytest.mark.parametrize("metric", ["ENT", "SND"])
def test_an_unchanged_student_scores_exactly_as_before_which_is_no_improvement(metric):
    """With other points at the re-scoring, about half of the batches would come out larger."""
    run = Run(PROXY_METRIC=metric)
    run.student.theta.data.fill_(2.0)
    rng = np.random.default_rng(0)
    for _ in range(12):
        coarse = torch.from_numpy(rng.integers(0, 256, (2, 1, 12, 12)).astype(np.uint8))
        images = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)
        assert not run.step(images, 0.0)
    assert [row["batches"] for row in run.rows] == [9, 12]
    assert [row["improved"] for row in run.rows] == [0, 0]
    for row in run.rows:
        assert row["mean_after"] == row["mean_before"]


@pytest.mark.parametrize("metric", ["ENT", "SND"])
def test_history_tells_the_scores(metric):
    """Every batch is smaller than 100 rows, so that SND sees all of them, and their order does not matter."""

    def score(images, theta):
        brightness = images.float().numpy().reshape(2, 3, 2, 8, 3, 8).mean((1, 3, 5)).ravel() / 127.5 - 1
        first = 1 / (1 + np.exp(-(3 + theta * brightness)))
        if metric == "ENT":
            peak = np.maximum(first, 1 - first)
            return np.mean(1 + 2 * peak * np.log2(peak))
        rows = np.stack([first, 1 - first], 1)
        rows /= np.sqrt((rows**2).sum(1, keepdims=True))
        similar = np.exp(20 * rows @ rows.T)
        similar /= similar.sum(1, keepdims=True)
        return np.mean(-(similar * np.log(similar + 1e-5)).sum(1))

    run = Run(PROXY_METRIC=metric, Query_START=5)
    rng = np.random.default_rng(0)
    batches = [torch.from_numpy(rng.integers(0, 256, (2, 3, 16, 24)).astype(np.uint8)) for _ in range(5)]
    thetas = [2.0, 1.8, 1.6, 1.4, 1.2, 9.0]
    run.student.theta.data.fill_(thetas[0])
    for i, images in enumerate(batches):
        run.step(images, thetas[i + 1] - thetas[i])
    (row,) = run.rows
    before = [score(images, theta) for images, theta in zip(batches, thetas, strict=False)]
    after = [score(images, thetas[-1]) for images in batches]
    scored = row["scored"]
    assert 3 <= scored <= 5
    assert row["improved"] == sum(new > old for new, old in zip(after[:scored], before[:scored], strict=True))
    assert row["fraction_improved"] == pytest.approx(row["improved"] / scored)
    assert row["mean_before"] == pytest.approx(np.mean(before[:scored]), abs=1e-5)
    assert row["mean_after"] == pytest.approx(np.mean(after[:scored]), abs=1e-5)
    majority = 2 * sum(new > old for new, old in zip(after, before, strict=True)) > 5
    assert row["decision"] == ("improved" if majority else "refused")


def test_every_row_has_all_columns():
    run = Run(Query_START=2, Query_STEP=1, META_MAX_UPDATE=3)
    for change in [-0.1] * 4 + [0.1] * 2:
        run.step(UP, change)
    assert [row["decision"] for row in run.rows] == ["refused", "refused", "forced", "improved"]
    assert [row["iteration"] for row in run.rows] == [2, 3, 4, 6]
    assert run.rows[2]["mean_after"] is None  # nothing was scored


def test_an_update_forgets_the_batches_before_it():
    run = Run(Query_START=3, Query_STEP=1)
    assert [run.step(UP, change) for change in (0.0, 0.0, 1.0)] == [False, False, True]
    # these three are worse now, the three old ones better
    assert [run.step(DOWN, change) for change in (0.0, 0.0, 0.5)] == [False, False, False]
    assert run.rows[-1]["batches"] == 3
    assert run.rows[-1]["improved"] == 0


# --- how


def small_network(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    nn.init.normal_(network[1].weight)
    nn.init.normal_(network[1].bias)
    network(torch.randn(2, 3, 8, 8))  # moves the buffers
    return network


def test_ema_of_parameters_and_copy_of_buffers():
    teacher, student = small_network(0).requires_grad_(False), small_network(1)
    student(torch.randn(2, 3, 8, 8))
    old, new = copy.deepcopy(teacher.state_dict()), copy.deepcopy(student.state_dict())
    ema_update(teacher, student, 0.99)
    parameters = {name for name, _ in teacher.named_parameters()}
    for name, value in teacher.state_dict().items():
        if name in parameters:
            expected = 0.99 * old[name].double() + 0.01 * new[name].double()
            assert torch.allclose(value.double(), expected, rtol=1e-6, atol=1e-8), name
            assert not torch.equal(value, old[name])
        else:
            assert torch.equal(value, new[name]), name
    assert teacher.state_dict()["1.num_batches_tracked"] == 2
    assert all(torch.equal(value, new[name]) for name, value in student.state_dict().items())
    assert all(p.requires_grad for p in student.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())
    pairs = zip(teacher.parameters(), student.parameters(), strict=True)
    assert all(t.data_ptr() != s.data_ptr() for t, s in pairs)


def test_an_update_is_one_ema_step_of_the_configured_weight():
    run = Run(Query_START=2, EMA_WEIGHT=0.9)
    with torch.no_grad():
        run.student.count += 7
    run.step(UP, 0.5)
    assert run.step(UP, 1.5)
    assert run.teacher.theta.item() == pytest.approx(0.1 * 2.0)
    assert run.teacher.count.item() == 7
    assert run.student.theta.item() == 2.0


@pytest.mark.parametrize(("every", "expected"), [(12, [0, 12, 24]), (5, [0, 5, 10, 15, 20, 25])])
def test_without_dynamic_the_teacher_moves_at_fixed_iterations_and_nothing_is_scored(every, expected):
    run = Run(DYNAMIC=False, FIX_ITERATION=every)
    moved = [i for i in range(30) if run.step(UP, -0.1)]
    assert moved == expected
    assert run.scored == 0
    assert [(row["iteration"], row["decision"]) for row in run.rows] == [(i + 1, "fixed") for i in expected]
    theta = 0.0
    for i in expected:
        theta = 0.99 * theta + 0.01 * -0.1 * (i + 1)
    assert run.teacher.theta.item() == pytest.approx(theta, rel=1e-4)


FIXED = {"DYNAMIC": False, "FIX_ITERATION": 2, "EMA_WEIGHT": 0.9}  # moves at iterations 0, 2, …


def test_every_move_pulls_the_teacher_to_its_anchor():
    anchor = torch.tensor(5.0)
    run = Run(anchor=[anchor], ANCHOR=0.25, **FIXED)
    assert run.step(UP, 1.0)
    first = 0.75 * (0.9 * 0 + 0.1 * 1) + 0.25 * 5
    assert run.teacher.theta.item() == pytest.approx(first)
    with torch.no_grad():
        run.student.count += 7
    assert not run.step(UP, 1.0)
    assert run.teacher.theta.item() == pytest.approx(first)  # not between two moves
    assert run.step(UP, 1.0)
    assert run.teacher.theta.item() == pytest.approx(0.75 * (0.9 * first + 0.1 * 3) + 0.25 * 5)
    assert (anchor.item(), run.student.theta.item(), run.teacher.count.item()) == (5, 3, 7)


def test_a_dynamic_move_pulls_too():
    run = Run(anchor=[torch.tensor(5.0)], ANCHOR=0.25, Query_START=2, EMA_WEIGHT=0.9)
    run.step(UP, 0.5)
    assert run.step(UP, 1.5)
    assert run.teacher.theta.item() == pytest.approx(0.75 * 0.1 * 2 + 0.25 * 5)


def test_without_a_pull_not_a_bit_differs():
    plain, anchored = Run(**FIXED), Run(anchor=[torch.tensor(5.0)], **FIXED)
    expected = Threshold().requires_grad_(False)
    for iteration in range(6):
        for run in (plain, anchored):
            run.step(UP, 0.37)
        if iteration % 2 == 0:
            ema_update(expected, plain.student, 0.9)
        for run in (plain, anchored):
            assert torch.equal(run.teacher.theta, expected.theta)


def test_the_pull_is_kept_with_the_state():
    run, again = (Run(anchor=[torch.tensor(5.0)], ANCHOR=0.1) for _ in range(2))
    run.object.pull_share = 0.4
    again.object.load_state_dict(run.object.state_dict(), lambda names: None)
    assert again.object.pull_share == 0.4
    again.object.load_state_dict({"buffer": []}, lambda names: None)  # of a run before there was one
    assert again.object.pull_share == 0.1


# --- what is kept


def tensors_of(thing):
    """Every tensor that an object holds on to, modules aside."""
    found, seen, open_ = [], set(), [thing]
    while open_:
        one = open_.pop()
        if id(one) in seen or isinstance(one, nn.Module | type | Run) or callable(one):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            found.append(one)
        else:
            open_ += gc.get_referents(one)
    return found


@pytest.mark.parametrize("metric", ["ENT", "SND"])
def test_the_buffer_holds_8_bit_images_points_and_scores(metric):
    run = Run(PROXY_METRIC=metric, META_MAX_UPDATE=8)
    batches = [torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8) for _ in range(8)]
    for images in batches:
        run.step(images, 0.1)
    held = tensors_of(run.object)
    images = [tensor for tensor in held if tensor.dtype == torch.uint8]
    assert len(images) == 8
    assert all(any(torch.equal(tensor, batch) for tensor in images) for batch in batches)
    shared = {tensor.data_ptr() for tensor in images} & {tensor.data_ptr() for tensor in batches}
    assert not shared  # a loader's batch lies in memory that is shared with its workers
    others = [tensor for tensor in held if tensor.dtype != torch.uint8]
    assert sum(tensor.untyped_storage().nbytes() for tensor in others) <= 8 * (100 * 8 + 8)
    assert run.step(batches[0], 0.1)  # the ninth: the buffer is emptied
    assert tensors_of(run.object) == []


def test_points_are_drawn_evenly():
    counts = np.bincount(np.concatenate([draw_points(400, 1, i).numpy() for i in range(400)]), minlength=400)
    assert len(counts) == 400
    assert abs(counts - 100).max() < 45  # standard deviation 8.7
    thirds = counts[:133].sum(), counts[133:266].sum(), counts[266:399].sum()
    assert max(thirds) < 1.05 * min(thirds)


def test_points_depend_on_seed_and_iteration_only():
    torch.manual_seed(0)
    first = draw_points(5000, 1, 7)
    torch.manual_seed(1)
    assert torch.equal(first, draw_points(5000, 1, 7))
    assert not torch.equal(first, draw_points(5000, 1, 8))
    assert not torch.equal(first, draw_points(5000, 2, 7))


@pytest.mark.parametrize("count", [1, 7, 99, 100, 101, 5000])
def test_points_are_a_hundred_different_rows_or_all_of_fewer(count):
    for iteration in range(20):
        points = draw_points(count, 1, iteration)
        assert points.dtype == torch.int64
        assert points.shape == (min(count, 100),)
        assert len(set(points.tolist()) & set(range(count))) == len(points)
