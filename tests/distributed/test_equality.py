"""The number of processes, and of the parts that a batch comes in, changes nothing but the order of sums."""

import shutil

import numpy as np
import pytest
import torch

from core.configs import load_config
from core.datasets.catalog import ImageSet
from core.datasets.images import write_png
from core.datasets.loading import full_view_loader
from core.runs.resume import load_model
from core.selftraining.generations import Generation
from core.utils import distributed
from tests.distributed.hooks import note_networks
from tests.helpers import contents, read_checkpoint, rows_of
from tests.networks import TINY


def last_state(folder):
    (path,) = (folder / "state").glob("iter*.pth")
    return read_checkpoint(path)


def weights(folder, who):
    """All weights of a run's last state as one float64 vector."""
    return torch.cat([tensor.flatten() for tensor in last_state(folder)[who].values()])


def start_weights(config_file):
    """What the networks of that run began with."""
    model = load_model(load_config(config_file), torch.device("cpu"))
    return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])


def assert_near(run, reference, start, who, tolerance=1e-6):
    one, several = weights(reference, who), weights(run, who)
    assert one.dtype == torch.float64
    moved = float((one - start).norm())
    assert moved > 1e-3
    assert float((several - one).norm()) <= tolerance * moved


def assert_same_adaptation(run, reference, config_file):
    start = start_weights(config_file)
    for who in ("student", "teacher"):
        assert_near(run, reference, start, who)
    one, several = (last_state(folder)["running_conf"] for folder in (reference, run))
    assert torch.allclose(several, one, rtol=1e-6, atol=0)
    history = rows_of(reference / "dtu_history.csv")
    assert rows_of(run / "dtu_history.csv") == history
    assert {"refused"} < {row["decision"] for row in history}  # it moved, too
    last = Generation(max((reference / "candidates").iterdir()))
    assert last.number == 2
    assert any(len(offering) for offering in last.candidates)  # so that something was pasted
    assert contents(run / "candidates") == contents(reference / "candidates")
    for name in ("metrics.csv", "evaluation.csv"):
        for row, other in zip(rows_of(run / name), rows_of(reference / name), strict=True):
            assert {k: float(v) for k, v in row.items()} == pytest.approx({k: float(v) for k, v in other.items()})


def assert_processes_agree(folder, count):
    notes = [path.read_text() for path in sorted(folder.glob("process*.txt"))]
    assert len(notes) == count
    assert len(set(notes)) == 1


@pytest.fixture
def adapt_with(alone, finish, config, cityscapes_root):
    """adapt_with(name, processes, **options) → (folder, yaml) of 30 iterations across two candidate passes."""

    def run(name, processes, **options):
        file = config(name, **{"DATASETS.TEST": "cityscapes_val", **options})
        if processes == 1:
            alone("train_TCR_DTU", "-cfg", file)
        else:
            finish(processes, "train_TCR_DTU", "-cfg", file, hook=note_networks)
            assert_processes_agree(cityscapes_root / name, processes)
        return cityscapes_root / name, file

    return run


def test_adaptation_with_two_processes_and_two_parts_each(adapt_with):
    reference, file = adapt_with("one", 1)
    run, _ = adapt_with("two", 2, **{"SOLVER.ACCUMULATE": 2, "TEST.BATCH_SIZE": 4})
    assert_same_adaptation(run, reference, file)


def test_parameters_without_part_in_the_output_are_named_and_left_alone(alone, finish, config, cityscapes_root):
    """An auxiliary head: without find_unused_parameters, the second step would end in a traceback."""
    options = {"MODEL.NAME": "tests.distributed.double_network:with_auxiliary", "SOLVER.STOP_ITER": 4}
    options |= {"SOLVER.MAX_ITER": 8, "SOLVER.CHECKPOINT_PERIOD": 4, "DTU.DYNAMIC": False, "DTU.FIX_ITERATION": 1}
    file = config("one", **options)
    alone("train_TCR_DTU", "-cfg", file)
    job = finish(2, "train_TCR_DTU", "-cfg", config("two", **options, **{"SOLVER.ACCUMULATE": 2}))
    found = "feature_extractor.aux.weight, feature_extractor.aux.bias (each step looks for them"
    assert job.text.count(f"2 parameters have no part in the output, and do not learn: {found}") == 1
    start = start_weights(file)
    assert_near(cityscapes_root / "two", cityscapes_root / "one", start, "student")
    begun = load_model(load_config(file), torch.device("cpu")).state_dict()
    ended = last_state(cityscapes_root / "two")["student"]
    alike = {key: torch.equal(value, ended[key]) for key, value in begun.items()}
    assert {key for key, same in alike.items() if same} == {key for key in alike if ".aux." in key}


@pytest.mark.long
def test_adaptation_with_four_processes(adapt_with):
    reference, file = adapt_with("one", 1)
    for name, processes, options in [("four", 4, {"TEST.BATCH_SIZE": 4}), ("parts", 1, {"SOLVER.ACCUMULATE": 4})]:
        run, _ = adapt_with(name, processes, **options)
        assert_same_adaptation(run, reference, file)


@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 4])
def test_a_resnet_in_single_precision_stays_near(adapt_with, resnet18, processes):
    network = resnet18 | {"MODEL.FREEZE_BN": True, "SOLVER.BASE_LR": 1e-4}
    reference, _ = adapt_with("one", 1, **network)
    run, _ = adapt_with("several", processes, **network)
    one, several = weights(reference, "student"), weights(run, "student")
    assert float((several - one).norm()) < 1e-3 * float(one.norm())
    assert rows_of(run / "dtu_history.csv")[0]["decision"] == rows_of(reference / "dtu_history.csv")[0]["decision"]


def test_source_training_with_dsu_over_the_whole_batch(alone, finish, config, tmp_path, make_gta5):
    """DSU acts in every batch: its statistics, and their gradients, are those of both processes' images."""
    make_gta5(tmp_path, count=7)
    options = {
        "MODEL.UNCERTAINTY": 1.0,
        "MODEL.POS": [0],
        "SOLVER.CLASS_WEIGHTS": True,
        "SOLVER.STOP_ITER": 12,
        "SOLVER.CHECKPOINT_PERIOD": 12,
        "DATASETS.TARGET_TRAIN": "",
    }
    file = config("one", **options)
    alone("train_src", "-cfg", file)
    counted = contents(tmp_path / "label_statistics")
    shutil.rmtree(tmp_path / "label_statistics")
    finish(2, "train_src", "-cfg", config("two", **options), hook=note_networks)
    assert contents(tmp_path / "label_statistics") == counted != {}
    assert_near(tmp_path / "two", tmp_path / "one", start_weights(file), "model")
    assert_processes_agree(tmp_path / "two", 2)


def test_evaluation_in_shares(alone, finish, config, cityscapes_root, tiny_checkpoint, make_cityscapes):
    make_cityscapes(cityscapes_root, val=5)
    network = {"MODEL.NAME": TINY, "MODEL.FREEZE_BN": True, "resume": str(tiny_checkpoint)}
    network |= {"DATASETS.TEST": "cityscapes_val", "TEST.BATCH_SIZE": 2}
    alone("test", "-cfg", config("one", **network), "--saveres")
    job = finish(2, "test", "-cfg", config("two", **network), "--saveres")
    assert job.text.count("checkpoint:") == 1  # one process logs
    files, others = (contents(cityscapes_root / name) for name in ("one", "two"))
    assert sum("inference" in name for name in files) == 5
    assert files == others


@pytest.mark.parametrize("length", [1, 2, 5, 6, 9])
def test_a_pass_has_the_batches_of_one_process_in_its_order(monkeypatch, tmp_path, length):
    """Images that are predicted together are the same for any number of processes; some may have none."""
    names = tuple(f"{n}.png" for n in range(length))
    for name in names:
        write_png(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
    images = ImageSet("folder:x", tuple(tmp_path / name for name in names), names)

    def batches(count):
        found = []
        monkeypatch.setattr(distributed, "count", lambda: count)
        for rank in range(count):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            found += [batch["index"] for batch in full_view_loader(images, [(8, 8)], 2, workers=0)]
        return found

    assert batches(2) == batches(4) == batches(1)


def test_shares_cover_everything_once_in_whole_batches(monkeypatch):
    for count in (1, 2, 3, 5):
        monkeypatch.setattr(distributed, "count", lambda count=count: count)
        for length in (0, 1, 2, 7, 12):
            for multiple in (1, 2, 4):
                parts = []
                for rank in range(count):
                    monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                    parts.append(distributed.share(length, multiple))
                assert [n for part in parts for n in part] == list(range(length))
                assert all(part.start % multiple == 0 for part in parts if part)
                blocks = [-(-len(part) // multiple) for part in parts]
                assert max(blocks) - min(blocks) <= 1
                assert np.sum([len(part) for part in parts]) == length
