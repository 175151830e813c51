"""`tools.shifts --reliability`: its arithmetic by hand, and measured for real, tiny."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from core.adaptation.looks import Looks
from tests.helpers import rows_of
from tests.tools.places import draw, write
from tools.shifts import __main__ as program
from tools.shifts import reliability, workplace
from tools.shifts.declared import read_shift
from tools.shifts.reliability import Point, fit, nearest, ranks, spearman, true_precision
from tools.shifts.workplace import Workplace


def test_ranks_and_spearman_by_hand():
    assert ranks([0.3, 0.1, 0.3, 0.9]).tolist() == [2.5, 1, 2.5, 4]
    assert spearman([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))  # Σd² = 4
    # ranks 1 2.5 2.5 4 and 1 3 2 4: covariance 4.5, squared deviations 4.5 and 5
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert np.isnan(spearman([], []))


def points_at(pairs):
    return [Point("dusk", "source", "car", 0.1, x, y, x, 1.0) for x, y in pairs]


def test_a_fit_by_hand():
    found = fit(points_at([(0.2, 0.5), (0.4, 0.6), (0.6, 0.7), (0.8, 0.8)]))
    assert (found.count, found.rank) == (4, pytest.approx(1))
    assert (found.error, found.slope, found.offset) == pytest.approx((0.15, 0.5, 0.4))
    # centred x is −0.5, 0, 0.5; slope = (0.5 · 0.9 − 0.5 · 0.5) / 0.5
    found = fit(points_at([(0.0, 0.5), (0.5, 0.1), (1.0, 0.9)]))
    assert (found.rank, found.slope, found.offset) == pytest.approx((0.5, 0.4, 0.3))
    assert np.isnan(fit(points_at([(0.5, 0.1), (0.5, 0.2)])).slope)
    assert fit([]).count == 0


@pytest.mark.parametrize("size", [(9, 17), (8, 5), (3, 2), (1, 1), (20, 30)])
def test_a_label_is_sampled_where_upsampled_logits_have_their_pixels(size):
    label = np.random.default_rng(0).integers(0, 5, (20, 30)).astype(np.uint8)
    found = nearest(label, size)
    assert found.shape == size
    for y, x in np.ndindex(size):
        places = [i * (many - 1) / max(few - 1, 1) for i, many, few in zip((y, x), label.shape, size, strict=True)]
        assert found[y, x] == label[tuple(int(place + 0.5) for place in places)]


def test_true_precision_is_of_the_labelled_pixels():
    rng = np.random.default_rng(0)
    winners = rng.integers(0, 3, (2, 5, 9)).astype(np.uint8)
    labels = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (2, 20, 30))
    files = [cv2.imencode(".png", one)[1].tobytes() for one in winners]
    looks = Looks(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), np.zeros(4), 0.0, 0.0, files)
    found = true_precision(looks, SimpleNamespace(read_label=labels.__getitem__))
    for c in range(3):
        right = [
            label[int(y * 19 / 4 + 0.5), int(x * 29 / 8 + 0.5)] == c
            for image, label in zip(winners, labels, strict=True)
            for y, x in np.ndindex(5, 9)
            if image[y, x] == c and label[int(y * 19 / 4 + 0.5), int(x * 29 / 8 + 0.5)] != 255
        ]
        assert found[c] == pytest.approx(np.mean(right))
    assert np.isnan(found[3])


@pytest.fixture
def measurable(place, make_checkpoint):
    """The arguments of a measurement of a shift whose source model is there, and of one whose is not."""
    draw(place.folder)
    checkpoint = make_checkpoint(place.folder.parent / "random.pth", NUM_CLASSES=14)
    data = read_shift(place.shifts / "dusk.yaml").options
    options = dict(zip(data[::2], data[1::2], strict=True))
    write(place.shifts / "dusk.yaml", {"SOURCE": {"CHECKPOINT": str(checkpoint)}, "OPTIONS": options})
    return [*place.argv, "--reliability", "--only", "dusk", "lost"]


def test_reliability_is_measured_printed_and_written(place, measurable, capsys):
    argv = [*measurable, "MODEL.FREEZE_BN", "True", "ADAPT.AUTO", "True"]
    assert program.main(argv) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "error: 1 of 2 shifts failed: lost"
    lines = [" ".join(line.split()) for line in captured.out.splitlines()]
    assert "shift model classes Spearman error line: true ≈" in lines
    (folder,) = [path.parent for path in place.folder.glob("tiny*/reliability.csv")]
    rows = rows_of(folder / "reliability.csv")
    assert list(rows[0]) == ["shift", "model", "class", "share", "estimated", "true", "mirrored", "smaller"]
    for model in ("source", "start"):
        own = [row for row in rows if row["model"] == model]
        numbers = [{key: float(row[key]) for key in list(row)[3:]} for row in own]
        assert own
        for row in numbers:
            assert 0 <= row["true"] <= 1
            assert row["share"] >= 5e-4
            assert row["estimated"] == pytest.approx(row["mirrored"] * row["smaller"], abs=2e-6)
        rank = spearman(*([row[key] for row in numbers] for key in ("estimated", "true")))
        for name in ("dusk", "all shifts"):
            assert any(line.startswith(f"{name} {model} {len(own)} {rank:.2f} ") for line in lines)
    assert cv2.imread(str(folder / "reliability.png")) is not None
    assert not list(folder.glob("*/seed_1"))  # nothing was adapted


def test_where_a_run_has_ended_its_mix_is_measured(place, measurable, capsys, monkeypatch):
    work = Workplace(place.folder, place.config, ("MODEL.FREEZE_BN", "True", "ADAPT.AUTO", "True"))
    shift = read_shift(place.shifts / "dusk.yaml")
    checkpoint = program.Path(shift.source.checkpoint)
    run = work.run_of(shift, 1, checkpoint)
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(run.config.changed({"ADAPT.NORM_MIX": (0.4,)}).dump())
    (run.folder / "model_iter000002.pth").touch()
    record = {"source": workplace.digest(checkpoint), "rules": workplace.rules(), "seconds": 1}
    (run.folder / workplace.RECORD).write_text(json.dumps(record))
    mixes = []
    monkeypatch.setattr(reliability, "mix_norms", lambda model, shares, *_: mixes.append(shares))
    assert program.main([*measurable[:-1], "MODEL.FREEZE_BN", "True", "ADAPT.AUTO", "True"]) == 0
    assert mixes == [(0.4,)]
    rows = rows_of(work.results / "reliability.csv")
    source, start = ([list(r.values())[2:] for r in rows if r["model"] == m] for m in ("source", "start"))
    assert source == start  # as nothing was mixed here
