"""Source training for real: tiny runs with everything that they write, what reads it afterwards, and bad input."""

import shlex
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from core.configs import cfg, load_config
from core.datasets.catalog import find_taxonomy
from core.models.dsu import DSU
from core.selftraining.trainer import Trainer
from core.sourcetraining.choices import CHOSEN
from test import main as evaluate
from tests.helpers import PROJECT, SOURCE, contents, read_checkpoint, rows_of, same_weights, start, without_details
from tests.networks import TINY as TINY_NETWORK
from train_src import main as train
from train_TCR_DTU import main as adapt

TINY = SOURCE | {"SOLVER.BASE_LR": 1e-3}
DSU_ON = {"MODEL.NAME": "deeplab_resnet18", "MODEL.UNCERTAINTY": 0.5, "MODEL.POS": (0, 1, 2, 3, 4, 5)}


@pytest.fixture(scope="module")
def root(tmp_path_factory, make_cityscapes, make_gta5):
    """DATASETS.ROOT: GTA5 with a mismatched pair among its seven, Cityscapes to evaluate on."""
    folder = tmp_path_factory.mktemp("source_root")
    make_gta5(folder, 7, mismatched=(2,))
    return make_cityscapes(folder, train=2, val=2)


@pytest.fixture
def trained(root, tmp_path, write_config, capsys):
    """trained(name, argv=(), **overrides): a tiny run in this process, which must succeed: (OUTPUT_DIR, log lines)."""

    def run(name="out", argv=(), **overrides):
        options = TINY | {"DATASETS.ROOT": str(root), "OUTPUT_DIR": str(tmp_path / name)} | overrides
        code = train(["-cfg", str(write_config(tmp_path, **options)), *argv])
        captured = capsys.readouterr()
        assert (code, captured.err) == (0, "")
        return tmp_path / name, captured.out.splitlines()

    return run


def test_check_tries_a_step_says_what_a_run_costs_and_writes_nothing(trained, tmp_path):
    out, log = trained(argv=["--check"])
    assert not out.exists()
    text = "\n".join(log)
    for found in (
        "source images: 6 of gta5_train",
        "one training step: loss ",
        "s/iteration × 2",
        "disk: 1 checkpoints",
    ):
        assert found in text, found


OWN_CLASSES = """
MODEL: {{NAME: {network}, NUM_CLASSES: 2, DEVICE: cpu}}
DATASETS:
  CUSTOM:
    hall:
      classes: [floor, box]
      splits:
        train: {{images: {folder}/photos, labels: {folder}/masks}}
  SOURCE_TRAIN: hall_train
SOLVER: {{AUTO: True}}
ADAPT: {{AUTO: True}}
"""


def test_one_yaml_with_classes_of_ones_own_and_nothing_else_serves_training_adaptation_and_evaluation(
    tmp_path, write_png, capsys
):
    rng = np.random.default_rng(0)
    for number in range(5):
        mask = (rng.random((6, 8)) < 0.3).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        image = (80 + 100 * mask[..., None] + rng.integers(0, 40, (48, 64, 3))).astype(np.uint8)
        write_png(tmp_path / f"masks/{number}.png", mask)
        write_png(tmp_path / f"photos/{number}.png", image)
        write_png(tmp_path / f"dark/{number}.png", image // 2)
    own = tmp_path / "own.yaml"
    own.write_text(OWN_CLASSES.format(folder=tmp_path, network=TINY_NETWORK), encoding="utf-8")
    short = ["SOLVER.STOP_ITER", "6", "VIS.PERIOD", "0"]
    assert train(["-cfg", str(own), "OUTPUT_DIR", str(tmp_path / "source"), *short]) == 0
    log = capsys.readouterr().out.splitlines()
    saved = load_config(tmp_path / "source/config.yaml")
    assert (saved.INPUT.INPUT_SIZE_TEST, saved.SOLVER.BATCH_SIZE, saved.SOLVER.BASE_LR) == ((64, 48), 4, 5e-4)
    given = load_config(own, short)
    for key in saved.flat_keys():
        if saved.find(key) != given.find(key) and key != "OUTPUT_DIR":
            assert key in CHOSEN
            assert any(f"{key} " in line and "chosen: " in line for line in log), key

    (line,) = [line for line in log if " next, adapt it" in line]
    words = shlex.split(line.partition(": ")[2])
    assert words[:4] == ["python", "train_TCR_DTU.py", "-cfg", str(own)]
    words = [word.replace("YOUR_IMAGES", str(tmp_path / "dark")) for word in words[2:]]
    assert adapt([*words[:-1], str(tmp_path / "adapted"), "SOLVER.STOP_ITER", "3", "VIS.PERIOD", "0"]) == 0
    capsys.readouterr()
    adapted = load_config(tmp_path / "adapted/config.yaml")
    assert adapted.INPUT.INPUT_SIZE_TEST == (64, 48)  # of the source model's file
    assert adapted.MODEL.FREEZE_BN
    assert adapted.INPUT.BRIGHTNESS == 0.5

    options = ["resume", str(tmp_path / "adapted/model_adapted.pth"), "DATASETS.TEST", "hall_train"]
    assert evaluate(["-cfg", str(own), "OUTPUT_DIR", str(tmp_path), *options]) == 0
    assert "INPUT.INPUT_SIZE_TEST is not given: 64×48, as " in capsys.readouterr().out


# --- one whole run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(root, tmp_path_factory, write_config):
    """One run in a process of its own, with a worker process and DSU: 4 iterations, 2 checkpoints."""
    folder = tmp_path_factory.mktemp("source_run")
    options = {
        "DATASETS.ROOT": str(root),
        "DATALOADER.NUM_WORKERS": 1,
        "SOLVER.STOP_ITER": 4,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "VIS.PERIOD": 2,
    }
    config = write_config(folder, **TINY | DSU_ON | options)
    process = start("train_src.py", "-cfg", config)
    assert process.returncode == 0, process.stderr
    return SimpleNamespace(folder=folder, config=config, out=folder / "out", process=process)


def test_a_run_writes_these_files_and_no_others(run, root):
    assert run.process.stderr == ""
    (events,) = (run.out / "tensorboard").iterdir()
    assert {path.relative_to(run.out).as_posix() for path in run.out.rglob("*")} == {
        "tensorboard",
        f"tensorboard/{events.name}",
        "panels",
        "panels/iter000002.png",
        "panels/iter000004.png",
        "config.yaml",
        "confusion.csv",
        "confusion.png",
        "environment.json",
        "images.txt",
        "evaluation.csv",
        "log.txt",
        "metrics.csv",
        "model_iter000002.pth",
        "model_iter000004.pth",
        "state",
        "state/iter000002.pth",
        "state/iter000004.pth",
    }
    assert {path.name for path in root.iterdir()} == {"cityscapes", "gta5", "label_statistics"}
    assert load_config(run.out / "config.yaml") == load_config(run.config)


def test_the_log_tells_the_run_in_order_on_the_terminal_and_in_the_file(run):
    log = (run.out / "log.txt").read_text(encoding="utf-8")
    assert run.process.stdout == without_details(log)
    events = (
        "device: cpu",
        "skipped 1 pair of gta5_train whose image and label differ in size: images/00002.png",
        "no pixel of sidewalk, wall, fence, light, terrain, person, car, truck, bus, train, motorcycle in gta5_train",
        "source images: 6 of gta5_train",
        "classes: 19 (road, ",
        "model: deeplab_resnet18, 11.5 M parameters, from random",
        "evaluation: 2 images of cityscapes_val",
        "DSU with probability 0.5 at the positions (0, 1, 2, 3, 4, 5)",
        "model_iter000002.pth",
        "mIoU",
        "iteration 4/4",
        "model_iter000004.pth",
    )
    positions = [log.find(event) for event in events]
    assert -1 not in positions, events[positions.index(-1)]
    assert positions == sorted(positions)
    assert log.count("skipped") == log.count("motorcycle in gta5_train") == 1
    assert log.count("motorcycle in the labels of cityscapes_val: mIoU counts") == log.count("(mIoU_labelled)") == 2


def test_the_tables(run):
    (row,) = rows_of(run.out / "metrics.csv")
    assert list(row) == ["iteration", "lr", "loss"]
    assert row["iteration"] == "4"
    assert float(row["lr"]) == pytest.approx(1e-3 * (1 - 3 / 100) ** 0.9, rel=1e-6)
    assert 0 < float(row["loss"]) < 10  # log 19 = 2.9 to begin with
    assert [row["iteration"] for row in rows_of(run.out / "evaluation.csv")] == ["2", "4"]


def test_checkpoints_have_the_published_format(run):
    saved = read_checkpoint(run.out / "model_iter000004.pth")
    assert saved["iteration"] == 4
    for part, keys in (
        ("feature_extractor", ("backbone.conv1.weight", "backbone.bn1.running_var", "backbone.layer4.1.conv2.weight")),
        ("classifier", ("conv2d_list.0.weight", "conv2d_list.3.bias")),
    ):
        assert set(keys) <= saved[part].keys()
        assert all(value.isfinite().all() for value in saved[part].values())
    assert not [key for key in saved["feature_extractor"] if "dsu" in key]
    assert not same_weights(run.out / "model_iter000002.pth", run.out / "model_iter000004.pth")


def test_adaptation_and_evaluation_start_from_it_with_frozen_batch_norm(run, root, tmp_path, write_config, capsys):
    options = {
        "DATASETS.ROOT": str(root),
        "MODEL.NAME": "deeplab_resnet18",
        "resume": str(run.out / "model_iter000004.pth"),
        "SOLVER.STOP_ITER": 1,
        "TCR.RESAMPLE": False,
        "TCR.PASTE": False,
        "INPUT.INPUT_SIZE_TEST": (64, 32),
    }
    config = write_config(tmp_path, **options)
    assert load_config(config).MODEL.FREEZE_BN
    assert adapt(["-cfg", str(config)]) == 0
    (row,) = rows_of(tmp_path / "out/metrics.csv")
    assert np.isfinite(float(row["loss"]))
    # as it was trained, evaluation gives the figures of the run; frozen batch norm has no epsilon
    for frozen in ("False", "True"):
        out = tmp_path / f"test_{frozen}"
        assert evaluate(["-cfg", str(config), "OUTPUT_DIR", str(out), "MODEL.FREEZE_BN", frozen]) == 0
        (found,) = rows_of(out / "test_cityscapes_val.csv")
        if frozen == "False":
            recorded = rows_of(run.out / "evaluation.csv")[-1]
            assert {key: value for key, value in found.items() if key != "checkpoint"} == {
                key: value for key, value in recorded.items() if key != "iteration"
            }
    assert capsys.readouterr().err == ""


def test_a_second_run_into_the_folder_is_refused(run, root, capsys):
    before = contents(run.folder), contents(root)
    assert train(["-cfg", str(run.config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: OUTPUT_DIR {run.out} holds a run already")
    assert (contents(run.folder), contents(root)) == before


def test_the_same_seed_repeats_it_with_any_number_of_workers_and_evaluations(run, trained):
    options = {"SOLVER.STOP_ITER": 4, "SOLVER.CHECKPOINT_PERIOD": 4} | DSU_ON
    last = "model_iter000004.pth"
    same, _ = trained("same", ["--skip-test"], **options)
    assert same_weights(same / last, run.out / last)
    assert (same / "metrics.csv").read_bytes() == (run.out / "metrics.csv").read_bytes()
    other, _ = trained("other", ["--skip-test"], SEED=2, **options)
    assert not same_weights(other / last, run.out / last)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_without_dsu_training_differs_and_no_line_speaks_of_it(trained):
    losses = {}
    for name, options in (
        ("off", {"MODEL.UNCERTAINTY": 0, "MODEL.POS": ()}),
        ("on", {"MODEL.UNCERTAINTY": 1.0}),
        ("positions only", {"MODEL.UNCERTAINTY": 0, "MODEL.POS": (0, 1)}),
    ):
        out, log = trained(name, ["--skip-test"], **DSU_ON | options | {"SOLVER.STOP_ITER": 1})
        losses[name] = rows_of(out / "metrics.csv")[0]["loss"]
        assert any("DSU with probability" in line for line in log) == (name == "on")
        assert any("no evaluation: --skip-test" in line for line in log)
        assert not (out / "evaluation.csv").exists()
    assert losses["off"] == losses["positions only"] != losses["on"]


def test_a_batch_of_one_is_told_that_dsu_never_acts(trained):
    _, log = trained("one", ["--skip-test"], **DSU_ON, **{"SOLVER.BATCH_SIZE": 1, "SOLVER.STOP_ITER": 1})
    assert len([line for line in log if "a batch of one" in line]) == 1


def test_adaptation_has_no_dsu_in_its_networks(root, tmp_path, write_config, resnet18, capsys, monkeypatch):
    found, step = [], Trainer.train_step

    def watched(trainer, batch):
        found.extend(
            module
            for model in (trainer.student, trainer.teacher)
            for module in model.modules()
            if isinstance(module, DSU)
        )
        found.append("stepped")
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", watched)
    options = {"TCR.RESAMPLE": False, "TCR.PASTE": False, "SOLVER.STOP_ITER": 1, "SOLVER.BATCH_SIZE": 1}
    config = write_config(tmp_path, **{"DATASETS.ROOT": str(root)}, **options, **resnet18 | DSU_ON)
    assert adapt(["-cfg", str(config), "--skip-test"]) == 0
    assert found == ["stepped"]
    assert "MODEL.UNCERTAINTY is for source training: no DSU here" in capsys.readouterr().out


def test_batch_norm_moves_unless_frozen(trained, tiny_checkpoint):
    moved = {}
    for frozen in (False, True):
        options = {"MODEL.FREEZE_BN": frozen, "resume": str(tiny_checkpoint), "SOLVER.STOP_ITER": 1}
        out, _ = trained(f"frozen_{frozen}", ["--skip-test"], **options)
        after = read_checkpoint(out / "model_iter000001.pth")["feature_extractor"]
        before = read_checkpoint(tiny_checkpoint)["feature_extractor"]
        moved[frozen] = [key for key in before if not torch.equal(before[key], after[key])]
    assert {"backbone.conv1.weight", "backbone.bn1.weight", "backbone.bn1.running_var"} <= set(moved[False])
    assert "backbone.conv1.weight" in moved[True]
    assert not [key for key in moved[True] if ".bn" in key or "downsample.1" in key]


def test_loss_options_act(trained):
    losses, ends = {}, {}
    for name, options in (
        ("plain", {}),
        ("weighted", {"SOLVER.CLASS_WEIGHTS": True}),
        ("clipped", {"SOLVER.CLIP_GRAD": 1e-3}),
    ):
        out, _ = trained(name, ["--skip-test"], **options, **{"SOLVER.STOP_ITER": 1})
        losses[name] = float(rows_of(out / "metrics.csv")[0]["loss"])
        ends[name] = out / "model_iter000001.pth"
    assert losses["plain"] == losses["clipped"] != losses["weighted"]
    assert not same_weights(ends["plain"], ends["clipped"])


# --- the experiments of the project ----------------------------------------------------------------------------------

PUBLISHED = {
    "MODEL.NAME": "deeplab_resnet101",
    "MODEL.FREEZE_BN": True,
    "MODEL.WEIGHTS": "pretrain/resnet101-5d3b4d8f.pth",
    "MODEL.NUM_CLASSES": 19,
    "DATASETS.SOURCE_TRAIN": "gta5_train",
    "DATASETS.TEST": "cityscapes_val",
    "INPUT.SOURCE_INPUT_SIZE_TRAIN": (1280, 720),
    "INPUT.INPUT_SIZE_TEST": (1536, 768),
    "INPUT.GRAYSCALE_PROB": 0.1,
    "SOLVER.BASE_LR": 5e-4,
    "SOLVER.MAX_ITER": 31250,
    "SOLVER.STOP_ITER": 20000,
    "SOLVER.BATCH_SIZE": 4,
}
SYNTHIA = PUBLISHED | {
    "MODEL.NUM_CLASSES": 16,
    "DATASETS.SOURCE_TRAIN": "synthia_train",
    "INPUT.SOURCE_INPUT_SIZE_TRAIN": (960, 512),
    "INPUT.INPUT_SCALES_TRAIN": (0.75, 1.25),
    "INPUT.INPUT_SIZE_TEST": (1280, 640),
    "SOLVER.BATCH_SIZE": 8,
}
UNCERTAIN = {"MODEL.UNCERTAINTY": 0.5, "MODEL.POS": (0, 1, 2, 3, 4, 5)}
EXPERIMENTS = {
    "deeplabv2_r101_src": PUBLISHED,
    "deeplabv2_ur101_src": PUBLISHED | UNCERTAIN,
    "deeplabv2_r101_src_synthia": SYNTHIA,
    "deeplabv2_ur101_src_synthia": SYNTHIA | UNCERTAIN,
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_published_source_trainings(name):
    """What method §11 says, and beyond that nothing but defaults: no jitter, no flip."""
    expected = cfg.clone()
    for key, value in (EXPERIMENTS[name] | {"OUTPUT_DIR": f"results/{name}"}).items():
        *sections, last = key.split(".")
        (expected[sections[0]] if sections else expected)[last] = value
    assert load_config(PROJECT / f"configs/{name}.yaml") == expected


@pytest.mark.parametrize(
    ("name", "data_set", "classes", "adaptation"),
    [
        ("camvid_day_src", "camvid_day", 11, "camvid_day2dusk_dtst"),
        ("toy_src", "toy_source", 14, "toy_dtst"),
        ("deeplabv2_ur101_src", "gta5", 19, "deeplabv2_r101_dtst"),
        ("deeplabv2_ur101_src_synthia", "synthia", 16, "deeplabv2_r101_dtst_synthia"),
    ],
)
def test_source_trainings_fit_their_adaptations(name, data_set, classes, adaptation):
    source, target = (load_config(PROJECT / f"configs/{file}.yaml") for file in (name, adaptation))
    assert source.DATASETS.SOURCE_TRAIN == target.DATASETS.SOURCE_TRAIN == f"{data_set}_train"
    assert source.MODEL.NUM_CLASSES == target.MODEL.NUM_CLASSES == classes
    assert source.MODEL.NAME == target.MODEL.NAME
    assert find_taxonomy(source).names == find_taxonomy(target).names
    assert len(find_taxonomy(source)) == classes
    assert source.MODEL.FREEZE_BN is name.startswith("deeplabv2")  # as the release's; the others start at random
    assert target.MODEL.FREEZE_BN is (name != "toy_src")
    assert source.INPUT.INPUT_SIZE_TEST == target.INPUT.INPUT_SIZE_TEST


@pytest.mark.parametrize("name", ["camvid_day_src", "toy_src"])
def test_source_trainings_on_a_cpu_start_from_random_weights_and_end_with_the_schedule(name):
    config = load_config(PROJECT / f"configs/{name}.yaml")
    assert (config.MODEL.NAME, config.MODEL.WEIGHTS, config.resume) == ("deeplab_resnet18", "", "")
    assert config.MODEL.UNCERTAINTY == 0
    assert config.SOLVER.STOP_ITER == config.SOLVER.MAX_ITER
    assert config.SOLVER.STOP_ITER % config.SOLVER.CHECKPOINT_PERIOD == 0
