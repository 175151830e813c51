"""Shifts: their files, the arithmetic of the table by hand, what is used again, and all of it for real, tiny."""

import importlib
import itertools
import subprocess
import threading
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest

from core.configs import load_config
from core.datasets.catalog import ENTRIES
from core.models import build_model
from core.utils.errors import UserError
from tests.helpers import rows_of
from tests.tools.places import CHECKPOINT, GOOD, TOY, draw, tiny_config, write
from tools.shifts import __main__ as program
from tools.shifts import workplace
from tools.shifts.declared import FOLDER, Shift, Source, choose, read_shift, read_shifts
from tools.shifts.table import ADAPTED, Row, closing_lines, csv_text, page, row_of, summarise, table_lines
from tools.shifts.workplace import Workplace, name_of, run_command

# --- the files -------------------------------------------------------------------------------------------------------


def test_a_shift_is_read_from_its_file(tmp_path):
    shift = read_shift(write(tmp_path / "night.yaml", GOOD))
    assert (shift.name, shift.comment, shift.aside) == ("night", "Day → night", False)
    assert shift.source == Source("", "configs/toy_src.yaml", ("SEED", "1"))
    assert shift.options[:2] == ("DATASETS.TEST", "toy_night_val")
    assert "(256, 128)" in shift.options
    aside = read_shift(write(tmp_path / "x.yaml", GOOD | CHECKPOINT | {"ASIDE": True}))
    assert (aside.source, aside.aside) == (Source("a.pth"), True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"SOURCE": None}, "SOURCE must hold KEY: VALUE pairs"),
        ({"SOURCE": {}}, "SOURCE must hold either CHECKPOINT, or CONFIG"),
        ({"SOURCE": {"CHECKPOINT": "a", "CONFIG": "b"}}, "SOURCE must hold either CHECKPOINT, or CONFIG"),
        ({"SOURCE": {"CHECKPOINT": 3}}, "SOURCE: CHECKPOINT must be the name of a file"),
        ({"SOURCE": {"CONFIG": "configs/toy_scr.yaml"}}, "SOURCE: config configs/toy_scr.yaml does not exist"),
        ({"SOURCE": TOY | {"OPTIONS": ["SEED"]}}, "SOURCE: SEED has no value"),
        ({"SOURCE": TOY | {"OPTIONS": "SEED 1"}}, "SOURCE: OPTIONS must be a list"),
        ({"SOURCE": TOY | {"OPTIONS": ["OUTPUT_DIR", "x"]}}, "SOURCE: OPTIONS: OUTPUT_DIR is set"),
        ({"SOURCES": {}}, "unknown key 'SOURCES'"),
        ({"ASIDE": "later"}, "ASIDE must be True or False"),
        ({"OPTIONS": ["MODEL.NUM_CLASSES", 14]}, "OPTIONS must hold KEY: VALUE pairs"),
        ({"OPTIONS": {"MODEL.NUM_CLASES": 14}}, "OPTIONS: unknown option MODEL.NUM_CLASES; did you mean MODEL.NUM_CL"),
        ({"OPTIONS": {"MODEL.NUM_CLASSES": "many"}}, "OPTIONS: MODEL.NUM_CLASSES must be a whole number"),
        ({"OPTIONS": {"SOLVER.BASE_LR": 1}}, "OPTIONS: SOLVER.BASE_LR is the config's, not a shift's"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_file_and_key(tmp_path, change, words):
    path = write(tmp_path / "night.yaml", GOOD | change)
    with pytest.raises(UserError) as caught:
        read_shift(path)
    assert str(caught.value).startswith(f"{path}: {words}")


@pytest.mark.parametrize("key", ["SOURCE", "OPTIONS"])
def test_what_is_missing_in_a_file_is_named(tmp_path, key):
    path = write(tmp_path / "night.yaml", {name: value for name, value in GOOD.items() if name != key})
    with pytest.raises(UserError, match=f"{key} is missing"):
        read_shift(path)
    path.write_text("SOURCE: [", encoding="utf-8")
    with pytest.raises(UserError, match="not valid yaml"):
        read_shift(path)


def test_the_projects_shifts_are_whole_and_differ_in_nothing_but_source_and_data():
    shifts = read_shifts(FOLDER)
    assert len(shifts) == 23
    assert sum(shift.aside for shift in shifts.values()) == 9
    for shift in shifts.values():
        assert shift.comment
        config = load_config("configs/toy_dtst.yaml", shift.options)
        assert config.DATASETS.TARGET_TRAIN.removesuffix("train") == config.DATASETS.TEST.removesuffix("val")
        assert config.DATASETS.TEST.partition("_")[0] in ENTRIES
        assert len(shift.options) == 12
        if shift.source.config_file:
            source = load_config(shift.source.config_file, shift.source.options)
            for key in ("MODEL.NAME", "MODEL.NUM_CLASSES", "DATASETS.SOURCE_TRAIN"):
                assert source.find(key) == config.find(key)


def test_own_network_is_built_and_gives_logits_of_every_class():
    import torch

    config = load_config("configs/toy_src.yaml", read_shifts()["own_network"].options)
    with torch.no_grad():
        assert build_model(config).eval()(torch.zeros(1, 3, 32, 64), (32, 64)).shape == (1, 14, 32, 64)


def test_shifts_are_chosen_by_name_or_all_that_are_not_kept_aside():
    one, two = (Shift(name, "", Source("a.pth"), (), name == "two") for name in ("one", "two"))
    shifts = {"one": one, "two": two}
    assert choose(shifts, [], False) == [one]
    assert choose(shifts, [], True) == [one, two]
    assert choose(shifts, ["two"], False) == [two]
    with pytest.raises(UserError, match="--only three: no such shift; known are one, two"):
        choose(shifts, ["one", "three"], False)


# --- the table -------------------------------------------------------------------------------------------------------

ROWS = [
    Row("dusk", 1, 40, 44, 45, 46, 60, 100, {"source_IoU_road": 90, "picked_IoU_road": 91}),
    Row("dusk", 2, 40, 38, 39, 42, 30, 200, {"source_IoU_road": 90, "picked_IoU_road": 89}),
    Row("night", 1, error="no such file <a>"),
]


def test_a_row_takes_last_picked_and_best_from_the_scores():
    scores = {
        "model_iter000060.pth": {"mIoU": 44, "IoU_road": 80},
        "model_iter000120.pth": {"mIoU": 43, "IoU_road": 81},
        "model_iter000090.pth": {"mIoU": 44, "IoU_road": 82},
    }
    source = {"mIoU": 40, "mAcc": 50, "IoU_road": 70}
    row = row_of("dusk", 1, source, scores, 12.5)
    assert (row.source, row.last, row.picked, row.best, row.iteration) == (40, 43, 43, 44, 60)
    assert row.gains == (3, 3, 4)
    assert row.classes == {"source_IoU_road": 70, "picked_IoU_road": 81}
    row = row_of("dusk", 1, source, scores | {ADAPTED: {"mIoU": 45, "IoU_road": 83}}, 12.5)
    assert (row.last, row.picked, row.best) == (43, 45, 44)  # the best is one of the numbered ones
    assert row.classes["picked_IoU_road"] == 83
    with pytest.raises(UserError, match="model_iter"):
        row_of("dusk", 1, source, {ADAPTED: source}, 1)


def test_the_last_lines_are_mean_worst_and_ratio_of_what_did_not_fail():
    summary = summarise(ROWS)
    assert (summary.mean.source, summary.mean.last, summary.mean.picked, summary.mean.best) == (40, 41, 42, 44)
    assert summary.mean.gains == (1, 2, 4)
    assert summary.mean.seconds == 150
    assert summary.worst == ROWS[1]
    assert summary.ratio == 0.5  # (5 − 1) / (6 + 2)
    assert summarise([ROWS[2]]) is None
    lost = summarise([Row("same", 1, 40, 30, 30, 39, 60)])
    assert lost.ratio is None  # nothing was to be gained
    assert closing_lines(lost)[1].endswith("–")


def test_the_table_shows_every_row_and_what_failed():
    head, first, second, failed, mean, worst, ratio = (" ".join(line.split()) for line in table_lines(ROWS))
    assert head == "shift seed source last picked best at last−source picked−source best−source seconds"
    assert first == "dusk 1 40.00 44.00 45.00 46.00 60 +4.00 +5.00 +6.00 100"
    assert second == "dusk 2 40.00 38.00 39.00 42.00 30 -2.00 -1.00 +2.00 200"
    assert failed == "night 1 failed"
    assert mean == "mean 40.00 41.00 42.00 44.00 +1.00 +2.00 +4.00 150"
    assert (worst, ratio) == ("worst picked−source: -1.00 (dusk, seed 2)", "gains in all, picked/best: 50 %")
    assert len(table_lines([ROWS[2]])) == 2


def test_csv_and_page_hold_the_same(tmp_path):
    (tmp_path / "a.csv").write_text(csv_text(ROWS), newline="")
    first, second, failed = rows_of(tmp_path / "a.csv")
    assert {key: first[key] for key in ("best_iteration", "picked_gain", "seconds", "picked_IoU_road")} == {
        "best_iteration": "60",
        "picked_gain": "5.0000",
        "seconds": "100.0",
        "picked_IoU_road": "91.0000",
    }
    assert second["last_gain"] == "-2.0000"
    assert (failed["failed"], failed["picked"]) == ("no such file <a>", "")
    html = page(ROWS, "adapt", "python -m tools.shifts")
    assert '<td class="down">−2.00<span class="gain"><i style="left: 33.3%; width: 16.7%">' in html
    assert '<td class="up">+6.00<span class="gain"><i style="left: 50.0%; width: 50.0%">' in html
    assert "no such file &lt;a&gt;" in html
    assert "http" not in html


# --- what is run and what is used again ------------------------------------------------------------------------------


def test_a_folders_name_tells_config_and_options_apart():
    assert name_of("configs/adapt.yaml", ()) == "adapt"
    assert name_of("configs/adapt.yaml", ("SOLVER.BASE_LR", "1e-4")) == "adapt_SOLVER.BASE_LR_1e-4"
    names = {name_of("a.yaml", ("INPUT.INPUT_SIZE_TEST", size)) for size in ("(1, 2)", "[1, 2]", "x" * 300)}
    assert len(names) == 3
    assert all(len(name) < 140 and "/" not in name for name in names)


def test_shifts_are_run_for_real_and_then_used_again(place, capsys, monkeypatch):
    draw(place.folder)
    commands = []

    def run(command, stdout, **options):
        """The first program as the process that it is; the others in this one, which has imported torch already."""
        _, name, *words = command
        commands.append(name)
        if len(commands) == 1:
            return subprocess.run(command, stdout=stdout, **options)
        with open(stdout.name, "a") as log, redirect_stdout(log), redirect_stderr(log):
            return SimpleNamespace(returncode=importlib.import_module(name.removesuffix(".py")).main(words))

    monkeypatch.setattr(workplace, "subprocess", SimpleNamespace(run=run, DEVNULL=-3, STDOUT=-2))
    assert program.main(place.argv) == 1
    first = capsys.readouterr()
    assert commands == ["train_src.py", *["train_TCR_DTU.py", "test.py", "test.py"] * 2]
    assert first.err == "error: 1 of 3 runs failed: lost, seed 1\n"
    assert "lost, seed 1: failed: the source model" in first.out
    results = place.folder / "tiny"
    assert {path.name for path in results.iterdir()} == {"dusk", "same", "shifts.csv", "shifts.html"}
    dusk, lost, same = rows_of(results / "shifts.csv")
    (source,) = rows_of(results / "dusk/source/test_toy_target_val.csv")
    *_, last = rows_of(results / "dusk/seed_1/evaluation/test_toy_target_val.csv")
    assert last["checkpoint"] == "model_iter000002.pth"
    assert (dusk["source"], dusk["last"], dusk["picked"]) == (source["mIoU"], last["mIoU"], last["mIoU"])
    assert dusk["picked_IoU_road"] == last["IoU_road"]
    assert lost["failed"].endswith("does not exist")
    assert same["failed"] == ""
    assert (results / "dusk/seed_1.log").is_file()

    commands.clear()
    assert program.main([*place.argv, "--only", "same", "dusk"]) == 0
    again = capsys.readouterr().out
    assert commands == []
    assert again.count("reused") == 2
    assert rows_of(results / "shifts.csv") == [dusk, same]


@pytest.fixture
def made(place, monkeypatch):
    """A workplace whose commands make what their program would, and nothing else; and the commands so far."""
    commands, numbers = [], itertools.count()

    def run(words, log, append=False):
        commands.append(words[0].removesuffix(".py"))
        config = load_config(words[words.index("-cfg") + 1], [w for w in words[3:] if w != "--skip-test"])
        folder = place.folder / config.OUTPUT_DIR
        folder.mkdir(parents=True, exist_ok=True)
        resume = program.Path(words[words.index("resume") + 1]) if "resume" in words else None
        if words[0] == "test.py":
            names = sorted(path.name for path in resume.iterdir()) if resume.is_dir() else [resume.name]
            lines = [f"{name},40,50" for name in names if name.endswith(".pth")]
            (folder / f"test_{config.DATASETS.TEST}.csv").write_text(
                "\n".join(["checkpoint,mIoU,IoU_road", *lines, ""])
            )
        else:
            (folder / "config.yaml").write_text(config.dump())
            (folder / f"model_iter{config.SOLVER.STOP_ITER:06d}.pth").write_text(f"weights {next(numbers)}")
        return 7.0

    monkeypatch.setattr(workplace, "run_command", run)

    def make(*options):
        commands.clear()
        row = Workplace(place.folder, place.config, options).make_row(read_shift(place.shifts / "dusk.yaml"), 1)
        assert not row.error
        return list(commands)

    return make


ADAPTATION = ["train_TCR_DTU", "test", "test"]


def test_a_run_is_used_again_only_if_config_source_and_end_are_the_same(place, made):
    run, sources = place.folder / "tiny/dusk/seed_1", place.folder / "sources"
    assert made() == ["train_src", *ADAPTATION]
    assert made() == []
    assert made("SOLVER.BASE_LR", "1e-3") == ADAPTATION  # beside it, from the same source model
    assert made("SOLVER.BASE_LR", "1e-3") == []
    assert made() == []
    (run / "made_from.json").unlink()  # it was interrupted
    assert made() == ["train_TCR_DTU", "test"]
    other = load_config(run / "config.yaml").changed({"SOLVER.BASE_LR": 0.5})
    (run / "config.yaml").write_text(other.dump())  # by a config of the same name
    assert made() == ["train_TCR_DTU", "test"]
    (run / "evaluation/test_toy_target_val.csv").write_text("checkpoint,mIoU\n")
    assert made() == ["test"]
    for path in sources.glob("*/model_iter*.pth"):
        path.unlink()
    assert made() == ["train_src", *ADAPTATION]  # other weights: nothing made from the earlier ones is used


def test_only_what_lies_in_the_own_folder_is_removed(tmp_path, place, capsys):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "mine.txt").write_text("precious")
    assert program.main(["--config", place.config, "--folder", str(theirs)]) == 1
    assert "holds something else" in capsys.readouterr().err
    assert [path.name for path in theirs.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="not below"):
        Workplace(place.folder, place.config)._remove(theirs)


def test_exactly_the_missing_domains_are_drawn(place, monkeypatch):
    drawn = []
    monkeypatch.setattr(workplace, "run_command", lambda words, log: drawn.append(words) or 1.0)
    (place.folder / "domains/toy_source").mkdir(parents=True)
    write(
        place.shifts / "sun.yaml",
        GOOD | {"OPTIONS": {"DATASETS.TARGET_TRAIN": "toy_low_sun_train", "DATASETS.TEST": "toy_low_sun_val"}},
    )
    Workplace(place.folder, place.config).draw_domains(list(read_shifts(place.shifts).values()))
    assert drawn == [["-m", "tools.toy_domains", f"{place.folder}/domains", "--domains", "low_sun", "target"]]


def test_other_data_sets_keep_the_configs_root(place):
    shift = Shift("x", "", Source("a.pth"), ("DATASETS.TARGET_TRAIN", "camvid_dusk_train", "DATASETS.TEST", ""))
    work = Workplace(place.folder, place.config, ("DATASETS.ROOT", "mine"))
    assert "domains" not in "".join(work.options_of(shift))
    toy = read_shift(place.shifts / "dusk.yaml")
    assert work.options_of(toy)[-2:] == ("DATASETS.ROOT", f"{place.folder}/domains")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('one'); print('error: two'); raise SystemExit(1)", "two (see "),
        ("print('at 3', flush=True); import os; os.kill(os.getpid(), 9)", "it ended with exit code -9: at 3 (see "),
        ("raise SystemExit(3)", "it ended with exit code 3 (see "),
    ],
)
def test_a_failed_command_is_told_by_its_last_line(tmp_path, code, words):
    with pytest.raises(UserError) as caught:
        run_command(["-c", code], tmp_path / "a/run.log")
    assert str(caught.value).startswith(words)


def test_mistakes_are_one_line_before_anything_is_run(place, capsys):
    for argv, words in (
        (["--only", "dusk", "night"], "--only night: no such shift; known are dusk, lost, same"),
        (["--only", "dusk", "SOLVER.BASE_LRR", "1"], "unknown option SOLVER.BASE_LRR"),
        (["SEED", "3"], "SEED is set by this program: give --seeds"),
        (["--seeds", "0"], "--seeds"),
        (["dusk"], "name shifts by --only"),
    ):
        assert program.main([*place.argv, *argv]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert [path.name for path in place.folder.iterdir()] == [workplace.MARK]


def test_the_list_names_every_shift_and_what_it_is(place, capsys):
    write(place.shifts / "snow.yaml", GOOD | {"ASIDE": True}, "# Day → snow")
    assert program.main(["--list"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == ["dusk Day → night", "lost Day → night", "same Day → night", "snow aside Day → snow"]


def test_several_shifts_are_run_at_a_time_and_a_source_model_is_trained_once(place, made, monkeypatch, capsys):
    """Every adaptation waits for another one to be at work."""
    place.config = tiny_config(place.shifts.parent / "tiny.yaml", "toy_dtst.yaml")
    both, commands, run = threading.Barrier(2, timeout=60), [], workplace.run_command

    def run_together(words, log, append=False):
        commands.append(words[0])
        if words[0] == "train_TCR_DTU.py":
            both.wait()
        return run(words, log, append)

    monkeypatch.setattr(workplace, "run_command", run_together)
    draw(place.folder)
    assert program.main([*place.argv, "--only", "same", "dusk", "--seeds", "2", "--jobs", "2"]) == 0
    assert (commands.count("train_src.py"), commands.count("train_TCR_DTU.py")) == (1, 4)
    rows = rows_of(place.folder / "tiny/shifts.csv")
    assert [(row["shift"], row["seed"]) for row in rows] == [(s, n) for s in ("dusk", "same") for n in "12"]
