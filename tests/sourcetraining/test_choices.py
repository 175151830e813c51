"""What a source training chooses (SOLVER.AUTO), by hand; what the config gives is left to it."""

import numpy as np
import pytest

from core.configs import load_config
from core.configs.choices import Choices
from core.configs.defaults import OPTIONS
from core.configs.defaults import cfg as defaults
from core.datasets.reader import ImageSet
from core.sourcetraining.choices import CHOSEN, choose_all

SOURCES = ("deeplabv2_r101_src", "deeplabv2_r101_src_synthia", "deeplabv2_ur101_src", "deeplabv2_ur101_src_synthia")


@pytest.fixture
def make_images(tmp_path, write_png):
    """make_images(count, size) → a set whose files are all the same one."""

    def make(count, size=(640, 360)):
        path = write_png(tmp_path / "one.png", np.zeros((size[1], size[0], 3), np.uint8))
        return ImageSet("own_train", (path,) * count, ("one.png",) * count)

    return make


@pytest.fixture
def chosen(tmp_path, make_images):
    """chosen(count, **of choose_all) → the choices for so many images of one size."""
    own = tmp_path / "own.yaml"
    own.write_text("SOLVER:\n  AUTO: True\n", encoding="utf-8")

    def choose(count, *options, size=(640, 360), random=True, parts=1):
        choices = Choices(load_config(own, options))
        choose_all(choices, make_images(count, size), random, parts)
        return choices

    return choose


@pytest.mark.parametrize("count", [1, 40, 400, 25_000])
def test_every_choice_is_an_option_within_its_bounds_and_is_said(chosen, count):
    choices = chosen(count)
    for key in CHOSEN:
        rule = OPTIONS[key].rule
        assert rule is None or rule.holds(choices.config.find(key)), key
        assert type(choices.config.find(key)) is type(defaults.find(key))
        assert any(f"{key} " in line for line in choices.lines), key
    assert choices.config.SOLVER.STOP_ITER == choices.config.SOLVER.MAX_ITER


def test_length_and_rate_follow_from_images_and_weights(chosen):
    random, trained = chosen(400).config.SOLVER, chosen(400, random=False).config.SOLVER
    assert (trained.STOP_ITER, random.STOP_ITER) == (120 * 20, 180 * 20)
    assert (trained.BASE_LR, random.BASE_LR) == (5e-4, 0.02)
    adamw = [chosen(400, "SOLVER.OPTIMIZER", "AdamW", random=random).config.SOLVER for random in (False, True)]
    assert [solver.BASE_LR for solver in adamw] == [6e-5, 1e-3]
    assert pytest.approx(20_000, rel=0.1) == chosen(24_966, random=False).config.SOLVER.STOP_ITER  # as published
    assert chosen(10**8).config.SOLVER.STOP_ITER == 60_000
    assert chosen(4).config.SOLVER.STOP_ITER == 900


def test_sizes_follow_from_the_images(chosen):
    small, large = chosen(5).config.INPUT, chosen(5, size=(2048, 1024)).config.INPUT
    assert (small.INPUT_SIZE_TEST, small.SOURCE_INPUT_SIZE_TRAIN) == ((640, 360), (424, 240))
    assert small.INPUT_SCALES_TRAIN == (0.7, 1.4)
    assert (large.INPUT_SIZE_TEST, large.SOURCE_INPUT_SIZE_TRAIN) == ((1024, 512), (680, 344))
    assert large.INPUT_SCALES_TRAIN == (0.35, 0.7)  # of the stored size, half of which is seen


def test_what_is_given_stays_and_the_rest_follows_it(chosen):
    config = chosen(
        400, "SOLVER.STOP_ITER", "77", "SOLVER.BASE_LR", "0.001", "INPUT.INPUT_SIZE_TEST", "(320, 180)"
    ).config
    assert (config.SOLVER.STOP_ITER, config.SOLVER.MAX_ITER, config.SOLVER.BASE_LR) == (77, 77, 0.001)
    assert config.INPUT.SOURCE_INPUT_SIZE_TRAIN == (216, 120)
    assert config.INPUT.INPUT_SCALES_TRAIN == (0.35, 0.7)


def test_a_batch_divides_by_the_processes(chosen):
    assert chosen(5, parts=3).config.SOLVER.BATCH_SIZE == 6


def test_the_published_source_trainings_choose_nothing():
    for name in (*SOURCES, "camvid_day_src", "toy_src"):
        assert not load_config(f"configs/{name}.yaml").SOLVER.AUTO
    assert not defaults.SOLVER.AUTO
