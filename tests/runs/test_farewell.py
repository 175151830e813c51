"""What a training says last: whether it was worth it, and commands that can be pasted."""

import shlex

import pytest

from core.configs import load_config
from core.runs.farewell import compared, say_adapted, say_trained


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (31.05, 18.777, "31.05 → 18.78 (−12.27): m.pth is worse than the source model"),
        (45.14, 46.37, "45.14 → 46.37 (+1.23): m.pth is better than the source model"),
        (45.14, 45.18, "45.14 → 45.18 (+0.04): m.pth is the same as the source model"),
        (45.14, 45.09, "45.14 → 45.09 (−0.05): m.pth is the same as the source model"),
    ],
)
def test_two_scores_in_words(before, after, words):
    assert compared(before, after, "m.pth") == words


def ending(tmp_path, log_lines, source, last, *options, adapted=None):
    """What an adaptation says whose tables hold these mIoU."""
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "config.yaml").touch()
    tables = {"evaluation_source": source, "evaluation": last, "evaluation_adapted": adapted}
    for name, value in tables.items():
        if value is not None:
            (folder / f"{name}.csv").write_text(f"checkpoint,mIoU\r\nx,99\r\ny,{value}\r\n", encoding="utf-8")
    given = ("OUTPUT_DIR", str(folder), "resume", "source.pth", "SOLVER.STOP_ITER", "20", *options)
    say_adapted(load_config("configs/toy_dtst.yaml", given))
    commands = [shlex.split(line.partition(": ")[2]) for line in log_lines if line.startswith("next, ")]
    return folder, [line for line in log_lines if not line.startswith("next, ")], commands


def test_a_loss_is_called_one_and_says_what_to_use(tmp_path, log_lines):
    folder, said, _ = ending(tmp_path, log_lines, 31.05, 18.77)
    assert said[0] == f"mIoU 31.05 → 18.77 (−12.28): {folder}/model_iter000020.pth is worse than the source model"
    assert said[1].startswith("use the source model, source.pth, or an earlier checkpoint; or let a run find its")


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
    tools = ("tools.report", "tools.compare")
    assert commands == [["python", "-m", tool, str(folder)] for tool in tools]


def test_what_was_skipped_is_the_next_step(tmp_path, log_lines):
    folder, _, commands = ending(tmp_path, log_lines, None, None)
    checkpoint = f"{folder}/model_iter000020.pth"
    assert commands[-1] == ["python", "test.py", "-cfg", f"{folder}/config.yaml", "resume", checkpoint]


def test_after_a_source_training_comes_the_adaptation(tmp_path, log_lines):
    say_trained(load_config("configs/toy_src.yaml", ["OUTPUT_DIR", str(tmp_path)]), "configs/toy_src.yaml")
    (line,) = [line for line in log_lines if "train_TCR_DTU.py" in line]
    words = shlex.split(line.partition(": ")[2])
    config = load_config(words[3], words[4:])
    assert (config.MODEL.NAME, config.MODEL.NUM_CLASSES) == ("deeplab_resnet18", 14)
    assert config.ADAPT.AUTO
    assert config.resume == f"{tmp_path}/model_iter001800.pth"
