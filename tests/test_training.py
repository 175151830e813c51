"""Exact resume of both trainers, with networks so small that a run may be broken off at every one of its iterations."""

import copy
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from core.configs import cfg
from core.datasets.gta5 import label_path
from core.datasets.reader import ImageSet, label_table
from core.datasets.taxonomy import CITYSCAPES_19, Taxonomy
from core.evaluation.metrics import Scores
from core.models.deeplab import Segmentor
from core.runs import RunOutput
from core.selftraining.trainer import Trainer
from core.sourcetraining.statistics import LabelStatistics
from core.sourcetraining.trainer import SourceTrainer
from core.states import StateFolder
from core.utils import signals
from core.utils.errors import UserError
from core.utils.files import remove_leftovers

STOP = 40
TABLES = ("metrics.csv", "dtu_history.csv")


class Killed(BaseException):
    """Stands for a kill -9: nothing of the program's own catches it."""


def make_config(**options):
    config = cfg.clone()
    config.INPUT.INPUT_SIZE_TEST, config.INPUT.TARGET_INPUT_SIZE_TRAIN = (64, 32), (48, 32)
    config.INPUT.SOURCE_INPUT_SIZE_TRAIN, config.INPUT.INPUT_SCALES_TRAIN = (48, 32), (0.75, 1.25)
    config.INPUT.HORIZONTAL_FLIP_PROB_TRAIN = 0.5
    config.DATALOADER.NUM_WORKERS = 0
    config.SOLVER.BASE_LR, config.SOLVER.MAX_ITER, config.SOLVER.BATCH_SIZE = 0.01, 50, 2
    config.SOLVER.STOP_ITER, config.SOLVER.CHECKPOINT_PERIOD = STOP, 8
    config.TCR.UPDATE_FREQUENCY, config.TCR.PASTE_LAG, config.TCR.MIX_CLASSES = 15, 3, CITYSCAPES_19.names
    config.DTU.Query_START, config.DTU.Query_STEP, config.DTU.META_MAX_UPDATE = 4, 2, 9
    for key, value in options.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


def make_model(classes=19):
    """Stride 8, with noise and running statistics of its own."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout2d(0.2))
    model = Segmentor(features, nn.Conv2d(6, classes, 1))
    with torch.no_grad():
        model.classifier.weight.mul_(6)
    return model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    paths = tuple(folder / f"images/{i}.png" for i in range(5))
    for path, size in zip(paths, [(64, 32), (80, 40), (90, 48), (64, 32), (100, 50)], strict=True):
        coarse = rng.integers(0, 256, (4, 6, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
        Image.fromarray(rng.integers(0, 3, size[::-1]).astype(np.uint8)).save(folder / "labels" / path.name)
    return paths


def adaptation(folder, pictures, config):
    images = ImageSet("folder:pictures", pictures, tuple(path.name for path in pictures))
    return Trainer(config, make_model(), images, CITYSCAPES_19, output_of(folder, config, CITYSCAPES_19))


def source(folder, pictures, config):
    taxonomy = Taxonomy(("road", "sky", "car"))
    table = label_table(taxonomy, dict(enumerate(taxonomy.names)), ())
    images = ImageSet("things_train", pictures, tuple(path.name for path in pictures), label_path, table)
    statistics = LabelStatistics(np.full((5, 3), 64), ())
    return SourceTrainer(config, make_model(3), images, statistics, output_of(folder, config, taxonomy))


def output_of(folder, config, taxonomy):
    folder.mkdir(exist_ok=True)
    solver = config.SOLVER
    return RunOutput(
        folder, taxonomy, solver.STOP_ITER, solver.CHECKPOINT_PERIOD, torch.device("cpu"), None, solver.KEEP_STATES
    )


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
    momentum = [s["momentum_buffer"] for s in trainer.solver.state_dict()["state"].values()]
    return [*(t for model in models for t in model.state_dict().values()), *momentum]


def assert_same_run(first, second):
    assert first.iteration == second.iteration
    assert all(torch.equal(a, b) for a, b in zip(weights_of(first), weights_of(second), strict=True))
    tables = [name for name in TABLES if (first.output.folder / name).exists()]
    assert tables
    for name in tables:
        assert (first.output.folder / name).read_bytes() == (second.output.folder / name).read_bytes(), name
    if isinstance(first, Trainer):
        assert torch.equal(first.running_conf, second.running_conf)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, pictures):
    """straight(kind): a run of 40 iterations that nothing broke off."""
    runs = {}

    def run(kind):
        if kind not in runs:
            runs[kind] = KINDS[kind](tmp_path_factory.mktemp("straight") / kind, pictures, make_config())
            runs[kind].run()
        return runs[kind]

    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("killed", [9, 14, 21, 33, 39])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, pictures, straight, kind, killed):
    """States after 8, 16, …; passes after 14 and 29; the mean of 20 iterations is half summed up in most of them."""
    run_until(KINDS[kind](tmp_path / "out", pictures, make_config()), killed)
    trainer, begun = go_on(KINDS[kind], tmp_path / "out", pictures, make_config())
    assert begun == killed // 8 * 8
    assert_same_run(trainer, straight(kind))


@pytest.mark.parametrize("killed", [14, 29])
def test_a_run_killed_in_a_pass_makes_it_again(tmp_path, pictures, straight, killed):
    run_until(adaptation(tmp_path / "out", pictures, make_config()), killed, "pass")
    trainer, begun = go_on(adaptation, tmp_path / "out", pictures, make_config())
    assert begun < killed
    assert_same_run(trainer, straight("adaptation"))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_anywhere_and_again_goes_on_as_if_nothing_had_been(tmp_path, pictures, straight, kind):
    for killed in range(8, STOP):
        folder = tmp_path / str(killed)
        run_until(KINDS[kind](folder, pictures, make_config()), killed)
        again = KINDS[kind](folder, pictures, make_config())
        again.load_state_dict(StateFolder(folder).newest()[1])
        run_until(again, min(killed + 3, STOP - 1))
        assert_same_run(go_on(KINDS[kind], folder, pictures, make_config())[0], straight(kind))


def test_states_of_such_runs_hold_what_they_are_to_bring_back(straight, tmp_path, pictures):
    """Or the tests above would not show much: sums of a row, scored batches, confidences that workers wait for."""
    run_until(adaptation(tmp_path / "out", pictures, make_config(SOLVER__KEEP_STATES=9)), 39)
    states = [torch.load(path, weights_only=True) for path in StateFolder(tmp_path / "out").paths()]
    assert [state["iteration"] for state in states] == [8, 16, 24, 32]
    assert [state["generation"] for state in states] == ["g0000", "g0001", "g0001", "g0002"]
    assert [state["stretch"] for state in states] == [[0, 14], [14, 29], [14, 29], [29, 40]]
    assert [state["output"]["count"] for state in states] == [8, 16, 4, 12]
    assert any(len(state["dynamic_teacher"]["buffer"]) > 1 for state in states)
    assert all(len(state["schedule"]["recorded"]) >= 3 for state in states)
    held = states[0]["dynamic_teacher"]["buffer"]
    assert all(batch.keys() == {"names", "points", "score"} for state in states for batch in held)


def test_workers_that_run_ahead_leave_the_state_what_it_needs(tmp_path, pictures, straight):
    """They are handed the confidences of iterations to come, which the state must not have thrown away by then."""
    config = make_config(DATALOADER__NUM_WORKERS=1)
    run_until(adaptation(tmp_path / "out", pictures, config), 26)
    trainer, begun = go_on(adaptation, tmp_path / "out", pictures, config)
    assert begun == 24
    assert_same_run(trainer, straight("adaptation"))


def test_the_stream_of_samples_is_the_same_for_any_number_of_workers(tmp_path, pictures):
    streams = []
    for workers in (0, 1, 4):
        config = make_config(DATALOADER__NUM_WORKERS=workers, TCR__PASTE_LAG=9)
        trainer = adaptation(tmp_path / str(workers), pictures, config)
        trainer.update_candidates()
        trainer.schedule.load_state_dict({"recorded": {i: torch.linspace(0, 0.05 * i, 19) for i in range(12)}})
        streams.append(list(trainer.batches(range(4, 12), range(14))))
        assert len(streams[-1]) == 8
    for batches in streams[1:]:
        for one, other in zip(streams[0], batches, strict=True):
            assert (one.names, one.views) == (other.names, other.views)
            for name in ("full", "student", "dropped", "pasted", "valid"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert any((batch.pasted != 255).any() for batch in streams[0])


def test_the_rest_of_a_stretch_is_what_it_would_have_been(tmp_path, pictures):
    for kind in KINDS.values():
        trainer = kind(tmp_path / kind.__name__, pictures, make_config(TCR__PASTE=False))
        if kind is adaptation:
            trainer.update_candidates()
        whole = [batch.names for batch in trainer.batches(range(5, 20), range(5, 20))]
        assert [batch.names for batch in trainer.batches(range(12, 20), range(5, 20))] == whole[7:]
        assert [batch.names for batch in trainer.batches(range(12, 20), range(12, 20))] != whole[7:]


# --- generations and states ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "states", "generations"), [(1, [40], [2]), (3, [24, 32, 40], [1, 2])])
def test_a_generation_stays_while_the_run_or_a_kept_state_needs_it(tmp_path, pictures, keep, states, generations):
    trainer = adaptation(tmp_path / "out", pictures, make_config(SOLVER__KEEP_STATES=keep))
    trainer.run()
    assert [path.name for path in StateFolder(tmp_path / "out").paths()] == [f"iter{n:06d}.pth" for n in states]
    found = sorted(path.name for path in (tmp_path / "out/candidates").iterdir())
    assert found == [f"g{n:04d}" for n in generations]


def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path, pictures, straight):
    run_until(adaptation(tmp_path / "out", pictures, make_config()), 33)
    newest = StateFolder(tmp_path / "out").paths()[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    trainer, begun = go_on(adaptation, tmp_path / "out", pictures, make_config())
    assert begun == 24
    assert_same_run(trainer, straight("adaptation"))


def test_no_state_is_left_but_damaged_ones(tmp_path):
    folder = StateFolder(tmp_path)
    with pytest.raises(UserError, match="holds no state"):
        folder.newest()
    folder.folder.mkdir()
    (folder.folder / "iter000008.pth").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"iter000008\.pth is not a checkpoint"):
        folder.newest()


def test_bad_images_that_were_done_without_stay_counted(tmp_path, pictures):
    trainer = source(tmp_path / "out", pictures, make_config())
    trainer._images.skipped.paths.append("bad.png")
    run_until(trainer, 9)
    again = source(tmp_path / "out", pictures, make_config())
    again.load_state_dict(StateFolder(tmp_path / "out").newest()[1])
    assert again._images.skipped.paths == again.samples.skipped.paths == ["bad.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_other_images_are_refused(tmp_path, pictures, kind):
    run_until(KINDS[kind](tmp_path / "out", pictures, make_config()), 9)
    trainer = KINDS[kind](tmp_path / "out", pictures[:4], make_config())
    with pytest.raises(UserError, match="images of the run"):
        trainer.load_state_dict(StateFolder(tmp_path / "out").newest()[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_may_go_on_beyond_its_end(tmp_path, pictures, straight, kind):
    short, longer = make_config(SOLVER__STOP_ITER=20), make_config()
    first = KINDS[kind](tmp_path / "out", pictures, short)
    first.run()
    trainer, begun = go_on(KINDS[kind], tmp_path / "out", pictures, longer)
    assert (begun, trainer.iteration) == (20, 40)
    assert trainer.stretch.stop == 40
    metrics = (tmp_path / "out/metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in metrics] == ["iteration", "20", "40"]
    assert metrics[1] == (straight(kind).output.folder / "metrics.csv").read_text().splitlines()[1]


def test_a_balanced_run_that_goes_on_beyond_its_end_draws_anew(tmp_path, pictures):
    short = make_config(SOLVER__STOP_ITER=20, DATASETS__SOURCE_SAMPLING="balanced")
    source(tmp_path / "out", pictures, short).run()
    trainer, _ = go_on(source, tmp_path / "out", pictures, make_config(DATASETS__SOURCE_SAMPLING="balanced"))
    assert trainer.iteration == 40
    assert trainer.stretch == range(20, 40)


# --- signals ---------------------------------------------------------------------------------------------------------


class SelfEvaluation:
    """An evaluator with the scores of a perfect model, that calls `during` first."""

    def __init__(self, during=lambda: None):
        self._during = during

    def run(self, model):
        self._during()
        return Scores.of(torch.eye(19, dtype=torch.int64))


def with_evaluator(folder, config, during=lambda: None):
    solver, cpu = config.SOLVER, torch.device("cpu")
    folder.mkdir(exist_ok=True)
    period = (solver.STOP_ITER, solver.CHECKPOINT_PERIOD)
    return RunOutput(folder, CITYSCAPES_19, *period, cpu, SelfEvaluation(during), solver.KEEP_STATES)


def stopped(trainer, number=signal.SIGTERM):
    """Run until the signal that someone sends; the Stopped."""
    with signals.listening(), pytest.raises(signals.Stopped) as raised:
        trainer.run()
    assert raised.value.number == number
    return raised.value


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_ends_the_step_and_saves_the_state(tmp_path, pictures, straight, kind, number):
    trainer = KINDS[kind](tmp_path / "out", pictures, make_config())
    step = trainer.solver.step

    def signalled(loss, iteration):
        if iteration == 18:
            send(number)
        return step(loss, iteration)

    trainer.solver.step = signalled
    note = stopped(trainer, number).note
    assert note.startswith("after iteration 19, state saved as ")
    assert note.endswith("state/iter000019.pth")
    trainer, begun = go_on(KINDS[kind], tmp_path / "out", pictures, make_config())
    assert begun == 19
    assert_same_run(trainer, straight(kind))


def test_more_signals_do_not_disturb_the_saving(tmp_path, pictures):
    """A cluster may repeat itself."""
    trainer = adaptation(tmp_path / "out", pictures, make_config())
    make, write = trainer.samples._make, trainer.output.states.write

    def signalled(request):
        if request.position == 2 * 3:
            send(signal.SIGUSR1)
        return make(request)

    def signalled_again(state):
        send(signal.SIGTERM)
        return write(state)

    trainer.samples._make, trainer.output.states.write = signalled, signalled_again
    stopped(trainer, signal.SIGUSR1)
    assert StateFolder(tmp_path / "out").newest()[1]["iteration"] == 3


def test_a_signal_while_a_batch_is_waited_for_saves_what_is_done(tmp_path, pictures, straight):
    trainer = adaptation(tmp_path / "out", pictures, make_config())
    make = trainer.samples._make

    def signalled(request):
        if request.position == 2 * 21:
            send(signal.SIGUSR1)
        return make(request)

    trainer.samples._make = signalled
    stopped(trainer, signal.SIGUSR1)
    trainer, begun = go_on(adaptation, tmp_path / "out", pictures, make_config())
    assert begun == 21
    assert_same_run(trainer, straight("adaptation"))


@pytest.mark.parametrize(("iteration", "images"), [(0, 0), (0, 4), (14, 2), (29, 4)])
def test_a_signal_in_a_pass_drops_it_and_it_is_made_again(tmp_path, pictures, straight, iteration, images):
    trainer = adaptation(tmp_path / "out", pictures, make_config())
    entry, seen = trainer.candidate_pass._entry, []

    def signalled(index, *rest):
        if trainer.iteration == iteration:
            seen.append(index)
            if index == images:
                send(signal.SIGTERM)
        return entry(index, *rest)

    trainer.candidate_pass._entry = signalled
    assert f"after iteration {iteration}," in stopped(trainer).note
    assert seen == list(range(images + 1))  # no further image was looked at
    assert not list((tmp_path / "out/candidates").glob("*.partial"))
    trainer, begun = go_on(adaptation, tmp_path / "out", pictures, make_config())
    assert begun == iteration
    assert_same_run(trainer, straight("adaptation"))


@pytest.mark.parametrize("how", ["signal", "kill"])
def test_an_evaluation_that_was_broken_off_is_made_again(tmp_path, pictures, straight, how):
    config, calls = make_config(SOLVER__CHECKPOINT_PERIOD=14), []

    def interrupt():
        calls.append(True)
        if len(calls) == 2:
            if how == "kill":
                raise Killed
            send(signal.SIGTERM)

    trainer = adaptation(tmp_path / "out", pictures, config)
    trainer.output = with_evaluator(tmp_path / "out", config, interrupt)
    if how == "kill":
        with pytest.raises(Killed):
            trainer.run()
    else:
        stopped(trainer)
    trainer = adaptation(tmp_path / "out", pictures, config)
    trainer.output = with_evaluator(tmp_path / "out", config)
    trainer.load_state_dict(StateFolder(tmp_path / "out").newest()[1])
    assert trainer.iteration == 28
    trainer.run()
    assert_same_run(trainer, straight("adaptation"))
    evaluated = (tmp_path / "out/evaluation.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in evaluated] == ["iteration", "14", "28", "40"]


def test_an_evaluation_that_was_done_is_not_done_again(tmp_path, pictures):
    config, calls = make_config(SOLVER__CHECKPOINT_PERIOD=14), []
    trainer = adaptation(tmp_path / "out", pictures, config)
    trainer.output = with_evaluator(tmp_path / "out", config)
    run_until(trainer, 15)
    trainer = adaptation(tmp_path / "out", pictures, config)
    trainer.output = with_evaluator(tmp_path / "out", config, lambda: calls.append(trainer.iteration))
    trainer.load_state_dict(StateFolder(tmp_path / "out").newest()[1])
    trainer.run()
    assert calls == [28, 40]


# --- numbers that go bad ---------------------------------------------------------------------------------------------


def spoil(trainer, iterations, what):
    """Make the loss, the gradient of one parameter, or what flows through the network not finite in some iterations."""
    network = trainer.student if isinstance(trainer, Trainer) else trainer.model

    def bad():
        return trainer.iteration in iterations

    def on_gradient(gradient):
        return gradient * float("inf") if bad() else gradient

    def on_output(module, inputs, output):
        return output * float("nan") if bad() and module.training else output

    if what == "gradient":
        network.classifier.bias.register_hook(on_gradient)
    else:
        network.feature_extractor[0].register_forward_hook(on_output)


def touched(trainer):
    """What a bad step must leave alone."""
    held = [trainer.bad_steps, copy.deepcopy(weights_of(trainer))]
    if isinstance(trainer, Trainer):
        held += [trainer.running_conf.clone(), len(trainer.dynamic_teacher.state_dict()["buffer"])]
    return held


def assert_untouched(before, after):
    assert before[0] == after[0]
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    if len(before) > 2:
        assert torch.equal(before[2], after[2])
        assert before[3] == after[3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["gradient", "activations"])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run(tmp_path, pictures, kind, what):
    trainer = KINDS[kind](tmp_path / "out", pictures, make_config())
    spoil(trainer, {9}, what)
    step, seen = trainer.train_step, []

    def watched(batch):
        if trainer.iteration == 9:
            seen.extend([batch.names, touched(trainer)])
        return step(batch)

    trainer.train_step = watched
    with pytest.raises(UserError) as raised:
        trainer.run()
    assert_untouched(seen[1], touched(trainer))
    message = str(raised.value)
    rate = 0.01 * (1 - 9 / 50) ** 0.9
    parts = ["iteration 10: ", "not finite", f"learning rate {rate:.3g}", ", ".join(seen[0]), "state/iter000008.pth"]
    parts += ["gradient is" if what == "gradient" else "loss nan is", "SOLVER.MAX_BAD_STEPS"]
    assert not [part for part in parts if part not in message], message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["gradient", "activations"])
def test_some_bad_steps_may_be_skipped(tmp_path, pictures, kind, what, caplog):
    config = make_config(SOLVER__MAX_BAD_STEPS=2)
    trainer = KINDS[kind](tmp_path / "out", pictures, config)
    spoil(trainer, {3, 9, 30}, what)
    step, skipped = trainer.train_step, []

    def watched(batch):
        before = touched(trainer)
        scalars = step(batch)
        if not scalars:
            after = touched(trainer)
            assert after[0] == before[0] + 1
            assert_untouched([after[0], *before[1:]], after)
            skipped.append(trainer.iteration)
        return scalars

    trainer.train_step = watched
    with pytest.raises(UserError, match="iteration 31: "):
        trainer.run()
    assert skipped == [4, 10]
    row = (tmp_path / "out/metrics.csv").read_text().splitlines()[1]
    assert "nan" not in row
    saved = StateFolder(tmp_path / "out").newest()[1]
    assert (saved["iteration"], saved["bad_steps"]) == (24, 2)  # a run that goes on has no more to skip, either


def test_leftovers_of_a_crash_are_removed(tmp_path):
    (tmp_path / "g0001.partial/labels").mkdir(parents=True)
    (tmp_path / ".metrics.csv.123.tmp").write_text("half")
    (tmp_path / "metrics.csv").write_text("whole")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
