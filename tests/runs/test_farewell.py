"""What a training says last: whether it was worth it, and commands that can be pasted."""

import shlex

import pytest

from core.configs import load_config
from core.runs.farewell import compared, say_adapted, say_trained


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (31.05, 18.777, ("worse than", "31.05 → 18.78 (−12.27)")),
        (45.14, 46.37, ("better than", "45.14 → 46.37 (+1.23)")),
        (45.14, 45.18, ("the same as", "45.14 → 45.18 (+0.04)")),
        (45.14, 45.09, ("the same as", "45.14 → 45.09 (−0.05)")),
    ],
)
def test_two_scores_in_words(before, after, found):
    assert compared(before, after) == found


def ending(tmp_path, log_lines, source, last, *options, adapted=None):
    """What an adaptation says whose tables hold these mIoU."""
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "config.yaml").touch()
    tables = {"evaluation_source": (0, source), "evaluation": (20, last), "evaluation_adapted": (20, adapted)}
    for name, (iteration, value) in tables.items():
        if value is not None:
            text = f"iteration,mIoU\r\n10,99\r\n{iteration},{value}\r\n"
            (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    given = ("OUTPUT_DIR", str(folder), "resume", "source.pth", "SOLVER.STOP_ITER", "20", *options)
    say_adapted(load_config("configs/toy_dtst.yaml", given), 20)
    commands = [shlex.split(line.partition(": ")[2]) for line in log_lines if line.startswith("next, ")]
    return folder, [line for line in log_lines if not line.startswith("next, ")], commands


def test_a_loss_is_called_one_and_says_what_to_use(tmp_path, log_lines):
    folder, said, _ = ending(tmp_path, log_lines, 31.05, 18.77)
    assert said[0] == f"mIoU 31.05 → 18.77 (−12.28): {folder}/model_iter000020.pth is worse than the source model"
    assert said[1] == "use the source model, source.pth, or let a run find its settings: -cfg configs/adapt.yaml"


def test_an_automatic_run_speaks_of_the_model_that_it_hands_over(tmp_path, log_lines):
    folder, said, _ = ending(tmp_path, log_lines, 31.0, 18.0, "ADAPT.AUTO", "True", adapted=30.0)
    assert said[0].startswith(f"mIoU 31.00 → 30.00 (−1.00): {folder}/model_adapted.pth is worse")
    assert said[1] == "use the source model, source.pth, on such images"


def test_a_gain_needs_no_advice(tmp_path, log_lines):
    assert len(ending(tmp_path, log_lines, 31.05, 38.77)[1]) == 1


def test_without_labels_the_next_step_is_to_look(tmp_path, log_lines):
    target = "folder:/my frames"
    options = ("DATASETS.TEST", "", "DATASETS.TARGET_TRAIN", target)
    folder, said, commands = ending(tmp_path, log_lines, None, None, *options)
    assert said == []
    run = ["-cfg", f"{folder}/config.yaml", "resume", f"{folder}/model_iter000020.pth"]
    assert commands == [
        ["python", "-m", "tools.report", str(folder)],
        ["python", "-m", "tools.compare", str(folder)],
        ["python", "-m", "tools.predict", *run, "/my frames", "-o", f"{folder}/pictures"],
    ]


def test_what_was_skipped_is_a_next_step_and_scores_of_an_earlier_checkpoint_are_not_its(tmp_path, log_lines):
    folder, said, commands = ending(tmp_path, log_lines, 31.0, None)
    table = folder / "evaluation.csv"
    table.write_text("iteration,mIoU\r\n10,99\r\n", encoding="utf-8")
    assert said == []
    log_lines.clear()
    say_adapted(load_config("configs/toy_dtst.yaml", ["OUTPUT_DIR", str(folder), "resume", "source.pth"]), 20)
    assert not any("mIoU" in line for line in log_lines)
    checkpoint = f"{folder}/model_iter000020.pth"
    assert ["python", "test.py", "-cfg", f"{folder}/config.yaml", "resume", checkpoint] in commands


def adaptation_after(log_lines, config_file, *options):
    """The config of the command that a source training shows last, its words, and what it says after it."""
    say_trained(load_config(config_file, options), 1800, str(config_file))
    place = next(number for number, line in enumerate(log_lines) if "train_TCR_DTU.py" in line)
    words = shlex.split(log_lines[place].partition(": ")[2])
    return load_config(words[3], words[4:]), words[2:], log_lines[place + 1 :]


def test_after_a_source_training_comes_the_adaptation(tmp_path, log_lines):
    output = ("OUTPUT_DIR", str(tmp_path / "source"), "INPUT.TO_BGR255", "True", "INPUT.PIXEL_STD", "(1, 1, 1)")
    _, words, after = adaptation_after(log_lines, "configs/toy_src.yaml", *output)
    images = ["DATASETS.TARGET_TRAIN", "folder:YOUR_IMAGES"]
    run = ["resume", f"{tmp_path}/source/model_iter001800.pth", "OUTPUT_DIR", f"{tmp_path}/source_adapted"]
    assert words == ["-cfg", "configs/adapt.yaml", *images, *run]  # the model's file says what it needs
    assert after == []


def test_settings_of_ones_own_yaml_that_an_adaptation_would_take_over_are_named(tmp_path, log_lines):
    own = tmp_path / "own.yaml"
    custom = "DATASETS: {CUSTOM: {hall: {classes: [a, b], splits: {train: {images: x}}}}, SOURCE_TRAIN: hall_train}"
    own.write_text(f"{custom}\nSOLVER: {{BASE_LR: 0.02, STOP_ITER: 9}}\nMODEL: {{NUM_CLASSES: 3}}\n", encoding="utf-8")
    options = ("MODEL.NAME", "deeplab_resnet18", "MODEL.NUM_CLASSES", "2")
    config, words, after = adaptation_after(log_lines, own, *options)
    assert (config.MODEL.NUM_CLASSES, config.ADAPT.AUTO) == (2, True)  # the yaml's would contradict the model's file
    assert "MODEL.NAME" not in words
    assert after == [f"take SOLVER.STOP_ITER, SOLVER.BASE_LR out of {own} before, or an adaptation has them, too"]


def test_an_own_network_is_named(tmp_path, log_lines):
    own = tmp_path / "own.yaml"
    own.write_text("MODEL: {NAME: 'mine:build', ARGS: {width: 6}, NUM_CLASSES: 2}\nOUTPUT_DIR: x\n", encoding="utf-8")
    _, words, _ = adaptation_after(log_lines, own, "MODEL.CLASSES_OUT", "(2, 1)")
    assert words[:4] == ["-cfg", "configs/adapt.yaml", "MODEL.NAME", "mine:build"]  # no file's word is enough for that
