"""The toy domains: Cityscapes' layout and labels, the same files from the same seed, and a shift between the two."""

import numpy as np
import pytest

from core.datasets.cityscapes import IMAGES, LABEL_IDS, label_path
from core.datasets.images import read_image, read_label
from core.datasets.taxonomy import TOY_14
from core.utils.errors import UserError
from tests.helpers import contents
from tools.toy_domains.__main__ import main
from tools.toy_domains.domains import DAYLIGHT, DOMAINS
from tools.toy_domains.drawing import COUNTS, draw_domains, draw_image

FEW = {"toy_source": {"train": 3, "val": 2}, "toy_target": {"train": 2, "val": 2}}
SMALL = (128, 64)
IDS = [LABEL_IDS[name] for name in TOY_14.names]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    draw_domains(folder, 1, FEW, SMALL, workers=1)
    return folder


@pytest.fixture(scope="module")
def sample():
    """60 images and labels of each domain at half the size: {domain: (60×H×W×3 uint8, 60×H×W uint8)}."""
    drawn = {name: [draw_image(name, "train", number, size=(256, 128)) for number in range(60)] for name in DOMAINS}
    return {name: tuple(np.stack(arrays) for arrays in zip(*pairs, strict=True)) for name, pairs in drawn.items()}


def test_layout_and_names_are_those_of_cityscapes(tree):
    assert sorted(path.name for path in tree.iterdir()) == ["toy_source", "toy_target"]
    for domain, splits in FEW.items():
        for split, count in splits.items():
            images = sorted((tree / domain).glob(IMAGES.format(split=split)))
            assert len(images) == count
            for image in images:
                town, number, frame, kind = image.stem.split("_")
                assert (town, len(number), frame, kind) == (image.parent.name, 6, "000019", "leftImg8bit")
                assert label_path(image).is_file()
                assert read_image(image).shape == (64, 128, 3)
                assert read_label(label_path(image)).shape == (64, 128)
    assert len(contents(tree)) == 2 * 9


def test_files_hold_what_draw_image_returns(tree):
    path = sorted((tree / "toy_target").glob(IMAGES.format(split="train")))[1]
    image, label = draw_image("toy_target", "train", 1, 1, SMALL)
    assert np.array_equal(read_image(path), image)
    assert np.array_equal(read_label(label_path(path)), label)


def test_the_program_draws_the_same_bytes_in_several_processes_and_says_what(tree, tmp_path, capsys):
    assert main([str(tmp_path / "new/toy"), "--images-per-split", "2", "--size", "128x64"]) == 0
    assert capsys.readouterr().out.startswith("8 images with labels: ")
    drawn = contents(tmp_path / "new/toy")
    assert len(drawn) == 2 * 8
    assert drawn.items() <= contents(tree).items()


def test_seed_domain_split_and_number_all_make_another_image():
    first = draw_image("toy_source", "train", 0, 1, SMALL)[1]
    others = ("toy_source", "train", 0, 2), ("toy_source", "train", 1, 1), ("toy_source", "val", 0, 1)
    for other in (*others, ("toy_target", "train", 0, 1)):
        assert not np.array_equal(draw_image(*other, SMALL)[1], first)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_class_occurs_and_no_other(sample, domain):
    labels = sample[domain][1]
    assert set(np.unique(labels)) <= {0, *IDS}
    assert (labels == 0).mean() < 0.02
    occurs = {name: (labels == LABEL_IDS[name]).any((1, 2)).mean() for name in TOY_14.names}
    assert min(occurs.values()) >= 0.08, occurs
    common = min(occurs[name] for name in ("road", "sidewalk", "building", "vegetation", "sky", "car"))
    assert max(occurs[name] for name in ("rider", "bicycle", "truck", "light", "fence")) < common


@pytest.mark.parametrize("domain", DOMAINS)
def test_rare_things_are_large_enough_to_be_learnt(sample, domain):
    """Median area where the class occurs, in pixels of a 256×128 image."""
    labels = sample[domain][1]
    for name in ("light", "sign", "person", "rider", "bicycle"):
        areas = (labels == LABEL_IDS[name]).sum((1, 2))
        assert np.median(areas[areas > 0]) > 50, name


def test_domains_look_different_but_hold_the_same(sample):
    (source, source_labels), (target, target_labels) = sample["toy_source"], sample["toy_target"]
    assert source.mean() > 1.1 * target.mean()
    assert source.std() > 1.3 * target.std()
    shares = [
        np.bincount(labels.ravel(), minlength=256)[IDS] / labels.size for labels in (source_labels, target_labels)
    ]
    assert np.abs(shares[0] - shares[1]).max() < 0.08


def test_cameras_blend_from_daylight_to_the_targets_and_beyond():
    dusk = DOMAINS["toy_target"].camera
    assert DAYLIGHT.towards(dusk, 0) == DAYLIGHT
    half, double = (DAYLIGHT.towards(dusk, share) for share in (0.5, 2))
    assert DAYLIGHT.noise[1] < half.noise[1] < dusk.noise[1] < double.noise[1]


def test_colours_do_not_give_the_classes_away(sample):
    """Mean colours of cars, trucks, persons and buildings overlap: no class stands apart from the others."""
    images, labels = sample["toy_source"]
    names = ("car", "truck", "person", "building")
    pixels = {name: images[labels == LABEL_IDS[name]].astype(float) for name in names}
    for name in names[1:]:
        gap = np.abs(pixels[name].mean(0) - pixels["car"].mean(0))
        assert (gap < 1.2 * pixels["car"].std(0)).all(), name


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--size", "512"], "--size"),
        (["--size", "8x8"], "size 8x8"),
        (["--size", "99999x99999"], "size 99999x99999"),
        (["--seed", "-1"], "seed -1"),
        (["--images-per-split", "0"], "0 images"),
        (["--images-per-split", "many"], "--images-per-split"),
        (["--unknown"], "--unknown"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, arguments, part):
    assert main([str(tmp_path / "toy"), *arguments]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ")
    assert complaint.count("\n") == 1
    assert part in complaint
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tree, tmp_path, capsys):
    before = contents(tree)
    assert main([str(tree)]) == 1
    assert "remove it or choose another folder" in capsys.readouterr().err
    assert contents(tree) == before
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below"):
        assert main([str(out)]) == 1
        assert capsys.readouterr().err.count("\n") == 1
    assert file.read_text() == "mine"


def test_another_run_in_the_making_is_left_alone(tmp_path, capsys):
    mine = tmp_path / "toy_target.partial" / "mine"
    mine.mkdir(parents=True)
    assert main([str(tmp_path)]) == 1
    assert "toy_target.partial is there already" in capsys.readouterr().err
    assert mine.is_dir()


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tools.toy_domains.drawing.write_label", fail)
    with pytest.raises(UserError, match="No space left on device"):
        draw_domains(tmp_path / "toy", 1, FEW, SMALL, workers=1)
    assert not contents(tmp_path)
    assert not list((tmp_path / "toy").iterdir())


def test_default_counts():
    assert COUNTS == {"toy_source": {"train": 400, "val": 80}, "toy_target": {"train": 200, "val": 80}}
