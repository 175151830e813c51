"""What a run chooses, from how many images there are and what was seen; what the config gives is left to it."""

import numpy as np
import pytest

from core.adaptation.choices import CHOSEN, PUBLISHED, choose_classes, choose_schedule, choose_sizes
from core.adaptation.looks import Looks
from core.configs import load_config
from core.configs.choices import Choices, with_chosen
from core.configs.defaults import OPTIONS
from core.configs.defaults import cfg as defaults
from core.datasets.reader import ImageSet
from core.datasets.taxonomy import Taxonomy

NO_FILES = ImageSet("none", (), ())


def chosen(images, *options, parts=1):
    choices = Choices(load_config("configs/adapt.yaml", options))
    choose_sizes(choices, NO_FILES, (480, 360))
    choose_schedule(choices, images, parts)
    return choices


@pytest.mark.parametrize("images", [1, 12, 62, 200, 2975, 1_000_000])
def test_a_schedule_fits_together_whatever_the_number_of_images(images):
    config = chosen(images).config
    solver, dtu = config.SOLVER, config.DTU
    assert solver.STOP_ITER == solver.MAX_ITER >= 60
    assert 0 < solver.CHECKPOINT_PERIOD <= solver.STOP_ITER
    assert dtu.Query_START <= dtu.META_MAX_UPDATE < solver.STOP_ITER
    moves = solver.STOP_ITER / (dtu.META_MAX_UPDATE + 1)
    assert dtu.EMA_WEIGHT**moves == pytest.approx(0.1, abs=0.02)
    assert 2 <= config.TCR.UPDATE_FREQUENCY <= solver.STOP_ITER


def test_more_images_make_a_longer_run():
    lengths = [chosen(images).config.SOLVER.STOP_ITER for images in (12, 62, 200, 2975)]
    assert lengths == sorted(lengths)
    assert lengths[1] == round(3 * 62**0.75)


def test_every_choice_is_an_option_within_its_bounds():
    choices = chosen(62)
    assert set(CHOSEN) <= set(OPTIONS)
    for key in CHOSEN:
        rule = OPTIONS[key].rule
        assert rule is None or rule.holds(choices.config.find(key)), key
        assert type(choices.config.find(key)) is type(defaults.find(key))


def test_what_is_given_stays_and_the_rest_follows_it():
    choices = chosen(62, "SOLVER.STOP_ITER", "40", "DTU.EMA_WEIGHT", "0.99")  # the latter is the default
    config = choices.config
    assert (config.SOLVER.STOP_ITER, config.SOLVER.MAX_ITER, config.DTU.EMA_WEIGHT) == (40, 40, 0.99)
    assert any("as the config gives it: SOLVER.STOP_ITER 40" in line for line in choices.lines)
    assert any(line.startswith("not chosen: as the config gives it: DTU.EMA_WEIGHT 0.99") for line in choices.lines)


def test_each_choice_is_one_line_with_its_reason():
    lines = chosen(62).lines
    assert all(line.startswith("chosen: ") and line.endswith(")") and "\n" not in line for line in lines)
    assert any("SOLVER.STOP_ITER" in line and "62 images" in line for line in lines)


def test_a_batch_divides_by_the_processes():
    assert chosen(62, parts=3).config.SOLVER.BATCH_SIZE == 6
    assert chosen(62, parts=4).config.SOLVER.BATCH_SIZE == 4


def seen(shares, held, sure):
    """Looks with these shares of the pixels, and so much of each class kept by both looks together."""

    def joint(keep):
        keep = np.asarray(keep)
        pixels = 1000 * np.asarray(shares)
        counts = np.diag(pixels * keep)
        counts[:, 0] += pixels * (1 - keep)
        return np.stack([counts, np.diag(pixels)])

    return Looks(joint(held), joint(sure), np.asarray(shares), 0.9, 0.1, ())


def test_rarer_classes_whose_candidates_hold_are_pasted():
    taxonomy, choices = Taxonomy(("road", "car", "pole", "rider", "train")), chosen(62)
    choose_classes(choices, taxonomy, seen([0.8, 0.1, 0.07, 0.03, 0], [1, 0.9, 0.6, 0.1, 0], [1, 0.95, 0.5, 0.9, 0]))
    assert choices.config.TCR.MIX_CLASSES == ("car", "rider")
    assert choices.config.TCR.PASTE
    assert any("hardly knows rider, train in these images" in line for line in choices.lines)


def test_where_no_candidate_holds_nothing_is_pasted():
    choices = chosen(62)
    choose_classes(choices, Taxonomy(("road", "car")), seen([0.9, 0.1], [1, 0.5], [1, 0.5]))
    assert not choices.config.TCR.PASTE
    assert not any("hardly knows" in line for line in choices.lines)


def test_a_run_that_goes_on_keeps_its_choices_and_what_is_given_now():
    first = chosen(62).config
    again = load_config("configs/adapt.yaml", ["INPUT.INPUT_SIZE_TEST", "(480, 360)", "SOLVER.STOP_ITER", "200"])
    written = first.changed({key: list(value) for key in CHOSEN if isinstance(value := first.find(key), tuple)})
    found = with_chosen(again, written, CHOSEN)  # as a state holds them
    assert all(type(found.find(key)) is type(first.find(key)) for key in CHOSEN)
    assert found.SOLVER.STOP_ITER == 200
    assert found.SOLVER.MAX_ITER == first.SOLVER.MAX_ITER
    plain = load_config("configs/toy_dtst.yaml")
    assert with_chosen(plain, first, ()) == plain


def test_the_published_experiments_choose_nothing():
    for name in ("deeplabv2_r101_dtst", "deeplabv2_r101_dtst_synthia", "camvid_day2dusk_dtst", "toy_dtst"):
        config = load_config(f"configs/{name}.yaml")
        assert not config.ADAPT.AUTO
        assert (config.ADAPT.NORM_MIX, config.ADAPT.TEACHER_LOOKS, config.ADAPT.CLASS_WEIGHTS) == ((), (), ())
        assert config.DTU.ANCHOR == 0


def test_what_the_published_experiments_have_in_common_needs_no_line_of_the_users_yaml():
    published = load_config("configs/deeplabv2_r101_dtst.yaml")
    config = chosen(62).config
    for key in PUBLISHED:
        assert config.find(key) == published.find(key), key


def pictures(write_png, folder, *sizes):
    """Images of these (width, height)."""
    paths = [write_png(folder / f"{n}.png", np.zeros((h, w, 3), np.uint8)) for n, (w, h) in enumerate(sizes)]
    return ImageSet("frames", tuple(paths), tuple(path.name for path in paths))


def test_the_size_is_the_source_models_else_that_of_most_images(tmp_path, write_png):
    images = pictures(write_png, tmp_path, (100, 100), (640, 361), (640, 361))

    def size(known, *options):
        choices = Choices(load_config("configs/adapt.yaml", options))
        choose_sizes(choices, images, known)
        return choices.config.INPUT.INPUT_SIZE_TEST

    assert size((512, 256)) == (512, 256)
    assert size(None) == (640, 360)
    assert size((512, 256), "INPUT.INPUT_SIZE_TEST", "(64, 32)") == (64, 32)
    assert size(None, "INPUT.INPUT_SIZE_TEST", "(64, 32)") == (64, 32)


def test_large_images_are_seen_smaller(tmp_path, write_png):
    choices = Choices(load_config("configs/adapt.yaml"))
    choose_sizes(choices, pictures(write_png, tmp_path, (4000, 2000)), None)
    assert choices.config.INPUT.INPUT_SIZE_TEST == (1024, 512)
