"""tools.report on real runs, with labels and without: what the page shows, and that it needs nothing but itself."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict
from html.parser import HTMLParser

import numpy as np
import pytest

from core.adaptation.guard import Verdict
from core.configs import load_config
from core.programs.testing import evaluate_checkpoints
from tests.helpers import contents, rows_of
from tools.report.__main__ import main as report
from tools.report.figures import MAX_POINTS, thinned
from tools.report.run import Run
from tools.report.views import Observation, extremes
from train_TCR_DTU import main as train

STOP = 6
OPTIONS = {"SOLVER.STOP_ITER": STOP, "SOLVER.CHECKPOINT_PERIOD": 3, "SOLVER.BASE_LR": 1e-3}
ALWAYS = {"Training", "Dynamic teacher", "Candidates", "Made with"}
SHOWN = {"Label shares", "Checkpoints, ordered without labels"} | ALWAYS


class References(HTMLParser):
    """Collects what a page refers to, and its headings."""

    def __init__(self, page):
        super().__init__()
        self.found, self.headings, self.tags = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "h2" and data.strip():
            self.headings.append(data)


@pytest.fixture(scope="module", params=["labels", "no labels"])
def run(request, tmp_path_factory, make_cityscapes, write_config):
    """(the run's folder, whether it had labels)."""
    folder = make_cityscapes(tmp_path_factory.mktemp("report"))
    options = dict(OPTIONS)
    if request.param == "no labels":
        shutil.rmtree(folder / "cityscapes/gtFine")
        options |= {"DATASETS.TEST": "", "DATASETS.TARGET_TRAIN": f"folder:{folder / 'cityscapes/leftImg8bit/train'}"}
    assert train(["-cfg", str(write_config(folder, **options))]) == 0
    return folder / "out", request.param == "labels"


@pytest.fixture(scope="module")
def page(run):
    """The page of a run as text."""
    folder, _ = run
    before = contents(folder)
    assert report([str(folder), "--images", "2"]) == 0
    after = contents(folder)
    assert after.pop("report.html")
    assert after == before  # it writes nothing else
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_refers_to_nothing_outside(page):
    ElementTree.fromstring(page.partition("\n")[2])
    seen = References(page)
    assert len(seen.found) > 10
    assert all(value.startswith("data:image/") for value in seen.found)
    assert not {"script", "link", "iframe", "object", "embed"} & set(seen.tags)
    assert not re.search(r"url\(|@import|https?:", page)
    assert len(page) < 1_500_000


def test_every_part_is_there(page, run):
    labelled = run[1]
    headings = References(page).headings
    assert set(headings) > SHOWN
    with_labels = ("Source → adapted", "What is taken for what", "IoU over time")
    assert [title in headings for title in with_labels] == [labelled] * 3
    assert any(heading.startswith("Images, by " + ("mIoU" if labelled else "mean confidence")) for heading in headings)
    assert ("Images that adaptation changed most" in headings) == (not labelled)
    assert ("of the pixels changed class" in page) == (not labelled)
    shown = [page.count(f"<figcaption>{column}</figcaption>") for column in ("image", "source", "adapted", "changed")]
    assert shown == shown[:1] * 4
    assert shown[0] > 2
    assert page.count("<figcaption>label</figcaption>") == (shown[0] if labelled else 0)
    assert "card verdict" not in page  # it was no automatic run
    assert "python train_TCR_DTU.py -cfg" in page
    assert "TOPK_CANDIDATE: 0.5" in page


def cells(page, first):
    """The texts of the row of a table that begins with `first`."""
    row = re.search(rf"<tr[^>]*><td[^>]*>{re.escape(first)}</td>(.*?)</tr>", page)[1]
    return re.findall(r"<td[^>]*>([^<]*)", row)


def test_source_and_adapted_are_what_test_py_finds(page, run, tmp_path):
    folder, labelled = run
    if not labelled:
        assert "mIoU" not in page
        return
    for place, checkpoint in enumerate((None, folder / f"model_iter{STOP:06d}.pth")):
        options = ["OUTPUT_DIR", str(tmp_path), *(["resume", str(checkpoint)] if checkpoint else [])]
        evaluate_checkpoints(load_config(folder.parent / "tiny.yaml", options))
        (row,) = rows_of(tmp_path / "test_cityscapes_val.csv")
        assert cells(page, "mIoU")[place] == f"{float(row['mIoU']):.2f}"
        assert cells(page, "mIoU (labelled)")[place] == f"{float(row['mIoU_labelled']):.2f}"
        assert cells(page, "building")[place] == f"{float(row['IoU_building']):.2f}"
    taken = page[page.index("What is taken for what") :]  # by the adapted model, which came last
    assert float(cells(taken, "building")[1]) == pytest.approx(float(row["accuracy_building"]), abs=0.051)
    assert "car" not in re.findall("<td>([a-z]+)</td>", taken.partition("</table>")[0])  # not in the truth


def test_an_adapted_model_beside_the_checkpoints_is_the_one_that_is_shown(run, tmp_path):
    folder, labelled = run
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    shutil.copy(load_config(folder / "config.yaml").resume, copy / "model_adapted.pth")  # the source model
    signs, harm = "information 0.912 → 0.904, steadiness 0.800 → 0.810", ["car would be lost"]
    verdict = Verdict(0.5, False, signs, "car 3.1 → 4.0 %, sky 9.0 → 8.1 %", harm)
    (copy / "verdict.json").write_text(json.dumps(asdict(verdict)))
    assert report([str(copy), "--images", "1"]) == 0
    page = (copy / "report.html").read_text(encoding="utf-8")
    ElementTree.fromstring(page.partition("\n")[2])
    assert "Images that adaptation changed most" not in page
    if labelled:
        source, adapted = cells(page, "mIoU")[:2]
        assert source == adapted
    assert page.index("<main>") < page.index("verdict: ") < page.index('<div class="cards">')
    assert '<div class="card verdict worse">' in page
    assert f"50% of the way from the start of the run to model_iter{STOP:06d}.pth. Use {copy}/model_adapted.pth" in page
    losses = re.findall('<span class="down">(.*?)</span>', page)
    refused = "refused of the adapted model: car would be lost"
    assert losses == ["not surely better", "0.912 → 0.904", "9.0 → 8.1 %", refused]


def test_what_was_lost_is_red(run, tmp_path, make_checkpoint):
    folder, _ = run
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    make_checkpoint(copy / "model_adapted.pth")  # random weights
    assert report([str(copy), "--images", "1"]) == 0
    red = re.findall('<span class="down">(.*?)</span>', (copy / "report.html").read_text(encoding="utf-8"))
    before, after = (float(value) for value in red[0].removesuffix(" %").split(" → "))
    assert before > after + 5
    assert len(red) > 1  # and of the images below


@pytest.mark.parametrize(
    ("better", "shifted", "kind", "words"),
    [
        (True, True, "better", "believed to be better than the source model"),
        (False, False, "", "is the source model as it was"),
    ],
)
def test_a_verdict_needs_no_model_and_is_marked_as_what_it_is(run, tmp_path, better, shifted, kind, words):
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy, ignore=shutil.ignore_patterns("state", "*.pth", "candidates", "report.html"))
    verdict = Verdict(0.75, better, "confidence 0.800 → 0.900", "car 3.1 → 4.0 %", (), shifted)
    (copy / "verdict.json").write_text(json.dumps(asdict(verdict)))
    assert report([str(copy), "--no-images"]) == 0
    page = (copy / "report.html").read_text(encoding="utf-8")
    ElementTree.fromstring(page.partition("\n")[2])
    assert f'<div class="card verdict{kind and " "}{kind}">' in page
    assert words in page
    assert 'class="down">' not in page.partition("Training")[0]
    for broken in ("{", "[]", '{"share": 1}'):
        (copy / "verdict.json").write_text(broken)
        assert Run.read(copy, []).verdict is None


def test_candidates_are_those_of_every_generation(page, run):
    rows = rows_of(run[0] / "candidates.csv")
    assert [(row["generation"], row["iteration"]) for row in rows] == [("0", "0"), ("1", "2"), ("2", "5")]
    offering = page[page.index("images offering") :]
    assert cells(offering, "pole") == [row["offering_pole"] for row in rows]
    agreement = page[page.index("Agreement of each generation") :]
    assert cells(agreement, "sky") == [f"{100 * float(row['consistency_sky']):.1f}" for row in rows[1:]]


def test_without_images_no_model_is_touched_and_names_cannot_break_the_page(run, tmp_path, monkeypatch):
    folder, labelled = run
    monkeypatch.setattr("tools.report.contents.new_model", None)
    copy, out = tmp_path / "<b>\x1b[1m& ü", tmp_path / "new/page.html"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("state", "*.pth", "candidates"))
    assert report([str(copy), "--no-images", "-o", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert "<h1>&lt;b&gt;[1m&amp; ü</h1>" in page
    ElementTree.fromstring(page.partition("\n")[2])
    headings = References(page).headings
    assert set(headings) > ALWAYS
    assert ("IoU over time" in headings) == labelled
    assert not any(heading.startswith(("Images", "Source")) for heading in headings)


def test_what_is_no_run_or_would_be_overwritten_is_one_line(run, tmp_path, capsys):
    folder, _ = run
    (tmp_path / "notes.html").write_text("mine")
    for words, expected in (
        ([tmp_path], "not a run's folder"),
        ([folder / "nothing"], "not a run's folder"),
        ([], "give one run's folder"),
        ([folder, "--no-images", "-o", tmp_path / "notes.html"], "is no report"),
        ([folder, "--no-images", "-o", tmp_path], "is a folder"),
    ):
        assert report(list(map(str, words))) == 1
        captured = capsys.readouterr()
        assert expected in captured.err
        assert captured.err.count("\n") == 1
    assert contents(tmp_path) == {"notes.html": b"mine"}


def test_a_source_model_or_images_that_are_gone_are_said_and_the_rest_is_shown(run, tmp_path):
    folder, labelled = run
    out = tmp_path / "page.html"
    assert report([str(folder), "resume", "gone.pth", "--images", "0", "-o", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert "gone.pth is not there any more" in page
    assert "Source → adapted" not in page
    if labelled:
        assert report([str(folder), "DATASETS.ROOT", str(tmp_path / "gone"), "-o", str(out)]) == 0
        page = out.read_text(encoding="utf-8")
        assert "The images were not found" in page
        assert "IoU over time" in page


def test_what_changed_is_the_share_of_the_pixels_of_another_class():
    before, after = (
        Observation(None, np.zeros(2), maps) for maps in (np.zeros((2, 2, 2)), np.eye(2)[None].repeat(2, 0))
    )
    after.thinned[1][:] = 0
    assert after.changed(before).tolist() == [50, 0]


def test_extremes_are_each_shown_once_and_never_without_a_value():
    values = np.array([3.0, 1.0, float("nan"), 2.0, 5.0])
    assert extremes(values, 1) == ([1], [4])
    assert extremes(values, 9) == ([1, 3], [4, 0])
    assert extremes(values[:2], 3) == ([1], [0])
    assert extremes(values[2:3], 3) == ([], [])


def test_long_curves_are_thinned_to_the_last_point():
    values = thinned(list(range(10 * MAX_POINTS + 7)))
    assert MAX_POINTS / 2 < len(values) <= MAX_POINTS
    assert values[-1] == 10 * MAX_POINTS + 6
    assert len(set(np.diff(values))) == 1
    assert thinned([1, 2]) == [1, 2]
