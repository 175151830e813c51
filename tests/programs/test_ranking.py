"""Checkpoints ordered without labels: each signal against a plain computation, and test.py --rank-without-labels."""

import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from core.configs import load_config
from core.datasets.catalog import find_images
from core.evaluation.predictor import Predictor
from core.models import build_model
from core.programs.ranking import (
    RULE,
    agreement,
    find_unlabelled_images,
    mean_ranks,
    measure,
    png_bytes,
    signs_of_ruin,
)
from core.selftraining.dynamic_teacher import draw_points, snd_score
from core.utils.checkpoints import load_checkpoint
from test import main as evaluate
from tests.helpers import rows_of


def test_mean_ranks_share_the_ranks_of_equal_values():
    table = [[5.0, 1.0], [7.0, 1.0], [6.0, 3.0], [1.0, 2.0]]
    assert mean_ranks(table).tolist() == [(3 + 3.5) / 2, (1 + 3.5) / 2, (2 + 1) / 2, (4 + 2) / 2]


def test_agreement_is_that_of_the_pixels_and_the_mean_iou_of_the_classes_that_either_has():
    first, second = np.array([[0, 0, 1], [3, 3, 3]], np.uint8), np.array([[0, 1, 1], [3, 3, 0]], np.uint8)
    maps = [[png_bytes(part) for part in (one, one[:1])] for one in (first, second)]  # two images
    pixels = (4 + 2) / (6 + 3)
    ious = [(1 + 1) / (3 + 1 + 1), (1 + 1) / (2 + 2), 2 / 3]
    assert agreement(*maps, num_classes=6) == pytest.approx((pixels, np.mean(ious)))
    assert agreement(maps[0], maps[0], num_classes=6) == (1, 1)


def test_the_signals_of_a_model_equal_a_plain_computation(cityscapes_root, write_config, tiny_checkpoint):
    config = load_config(write_config(cityscapes_root, **{"TEST.BATCH_SIZE": 2}))
    model = build_model(config).train()
    load_checkpoint(model, tiny_checkpoint)
    images = find_images(config, "TEST")
    predictor = Predictor(config, torch.device("cpu"))
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    signals, found_shares, labels = measure(model, images, predictor)
    assert model.training  # its mode is left as it was
    probs = F.softmax(torch.cat(seen).double(), dim=1)
    assert probs.shape == (3, 19, 8, 16)
    assert signals["confidence"] == pytest.approx(float(probs.amax(1).mean()), rel=1e-5)
    entropy = float(-(probs * probs.log()).sum(1).mean())
    assert signals["entropy"] == pytest.approx(entropy, rel=1e-4)
    winners = probs.argmax(1)
    shares = np.bincount(winners.flatten().numpy(), minlength=19) / winners.numel()
    assert found_shares == pytest.approx(shares)
    assert signals["classes"] == len(set(winners.flatten().tolist())) > 4
    mean = probs.mean((0, 2, 3)).numpy()
    assert signals["information"] == pytest.approx(-(mean * np.log(mean)).sum() - entropy, rel=1e-4)
    rows = probs.float().permute(0, 2, 3, 1).flatten(1, 2)
    density = [float(snd_score(rows[i], draw_points(128, config.SEED, i))) for i in range(3)]
    assert signals["snd"] == pytest.approx(np.mean(density), rel=1e-4)
    assert labels == [png_bytes(winner.to(torch.uint8).numpy()) for winner in winners]


@pytest.fixture
def checkpoints(cityscapes_root, tiny_checkpoint):
    """A folder of four: the tiny model thrice, the second and third a little changed, and one that sees road only."""
    folder = cityscapes_root / "models"
    folder.mkdir()
    content = torch.load(tiny_checkpoint, weights_only=True)
    noise = torch.Generator().manual_seed(0)
    for number, change in ((1, 0.0), (2, 0.05), (3, 0.1)):
        classifier = {
            key: value * (1 + change * torch.randn(value.shape, generator=noise))
            for key, value in content["classifier"].items()
        }
        torch.save(content | {"classifier": classifier}, folder / f"model_iter{number:06d}.pth")
    collapsed = {key: torch.zeros_like(value) for key, value in content["classifier"].items()}
    collapsed["conv2d_list.0.bias"][0] = 9.0
    torch.save(content | {"classifier": collapsed}, folder / "model_iter000004.pth")
    shutil.copy(folder / "model_iter000004.pth", folder / "model_adapted.pth")  # no iteration of the run: left out
    return folder


@pytest.mark.parametrize("data", ["cityscapes_val", "folder", "none"])
def test_a_folder_is_ordered_without_any_label(cityscapes_root, write_config, checkpoints, capsys, data):
    shutil.rmtree(cityscapes_root / "cityscapes/gtFine")
    name = {"folder": f"folder:{cityscapes_root / 'cityscapes/leftImg8bit/val'}", "none": ""}.get(data, data)
    config = write_config(cityscapes_root, **{"DATASETS.TEST": name})
    assert evaluate(["-cfg", str(config), "--rank-without-labels", "resume", str(checkpoints)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    (table,) = (cityscapes_root / "out").iterdir()
    assert table.name == {"folder": "ranking_val.csv", "none": "ranking_cityscapes_train.csv"}.get(
        data, f"ranking_{data}.csv"
    )
    rows = rows_of(table)
    assert [row["place"] for row in rows] == ["1", "2", "3", "4"]
    assert sorted(row["checkpoint"] for row in rows) == sorted(
        path.name for path in checkpoints.glob("model_iter*.pth")
    )
    ranks = mean_ranks([[float(row[name]) for name in RULE] for row in rows])
    assert [float(row["mean_rank"]) for row in rows] == pytest.approx(ranks, abs=1e-3)
    assert sorted(ranks) == ranks.tolist()
    by_name = {row["checkpoint"]: row for row in rows}
    collapsed = by_name["model_iter000004.pth"]
    assert (collapsed["classes"], float(collapsed["share_road"]), float(collapsed["diversity"])) == ("1", 1, 0)
    assert float(collapsed["information"]) == pytest.approx(0, abs=1e-5)
    assert collapsed is not rows[0]
    assert f"chosen without labels: {checkpoints / rows[0]['checkpoint']}" in captured.out


def ranked(cityscapes_root, write_config, folder, source, capsys):
    """(rows, last line but the table's name) of a run's folder that names its source model."""
    shutil.copy(write_config(cityscapes_root, resume=str(source)), folder / "config.yaml")
    config = str(write_config(cityscapes_root))
    assert evaluate(["-cfg", config, "--rank-without-labels", "resume", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return rows_of(cityscapes_root / "out/ranking_cityscapes_val.csv"), lines[-3]


def test_a_ruined_checkpoint_comes_last_and_is_named(
    cityscapes_root, write_config, checkpoints, tiny_checkpoint, capsys
):
    rows, last = ranked(cityscapes_root, write_config, checkpoints, tiny_checkpoint, capsys)
    assert [bool(row["ruin"]) for row in rows] == [False, False, False, True]
    assert rows[-1]["checkpoint"] == "model_iter000004.pth"
    assert "classes lost" in rows[-1]["ruin"]
    same = {row["checkpoint"]: float(row["same_as_source"]) for row in rows}
    assert same["model_iter000001.pth"] == 1
    assert "source model" in last


def test_where_all_are_ruined_the_source_model_is_chosen(
    cityscapes_root, write_config, checkpoints, tiny_checkpoint, capsys
):
    for number in (1, 2, 3):
        shutil.copy(checkpoints / "model_iter000004.pth", checkpoints / f"model_iter{number:06d}.pth")
    rows, last = ranked(cityscapes_root, write_config, checkpoints, tiny_checkpoint, capsys)
    assert all(row["ruin"] for row in rows)
    assert f"chosen without labels: the source model {tiny_checkpoint}, for every checkpoint is ruined" in last


def test_where_nothing_has_changed_it_cannot_tell(cityscapes_root, write_config, checkpoints, tiny_checkpoint, capsys):
    for number in (2, 3, 4):
        shutil.copy(checkpoints / "model_iter000001.pth", checkpoints / f"model_iter{number:06d}.pth")
    _, last = ranked(cityscapes_root, write_config, checkpoints, tiny_checkpoint, capsys)
    assert "cannot tell: 100.0% of the pixels have the class that the source model" in last


def test_signs_of_ruin_by_hand():
    had = np.array([0.5, 0.3, 0.1, 0.0996, 0.0004])  # four classes that count: 0.15 of them is less than one
    assert signs_of_ruin({"confidence": 0.8}, had, {"confidence": 0.69}, had) == ""
    assert signs_of_ruin({"confidence": 0.8}, had, {"confidence": 0.67}, had) == "confidence 0.80 → 0.67"
    now = np.array([0.68, 0.3, 0.01, 0.01, 0])
    assert signs_of_ruin({"confidence": 0.8}, had, {"confidence": 0.9}, now) == "2 classes lost"


def test_what_cannot_be_ranked_is_one_line(cityscapes_root, write_config, tiny_checkpoint, checkpoints, capsys):
    config = str(write_config(cityscapes_root))
    for words, expected in (
        (["resume", str(tiny_checkpoint)], "nothing to rank"),
        (["resume", str(checkpoints), "--saveres"], "give it alone"),
    ):
        assert evaluate(["-cfg", config, "--rank-without-labels", *words]) == 1
        captured = capsys.readouterr()
        assert expected in captured.err
        assert captured.err.count("\n") == 1
    assert not (cityscapes_root / "out").exists()


def test_unlabelled_images_are_those_of_test_else_of_the_target(cityscapes_root, write_config):
    config = load_config(write_config(cityscapes_root))
    assert find_unlabelled_images(config).label_path is None
    assert find_unlabelled_images(config).paths == find_images(config, "TEST").paths
