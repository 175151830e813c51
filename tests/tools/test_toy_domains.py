"""The toy domains: Cityscapes' layout and labels, the same files from the same seed, and a shift between them."""

import hashlib
from dataclasses import replace

import cv2
import numpy as np
import pytest

from core.datasets.cityscapes import IMAGES, LABEL_IDS, label_path
from core.datasets.images import read_image, read_label
from core.datasets.taxonomy import TOY_14
from core.datasets.toy import NAMES
from core.utils.errors import UserError
from tests.helpers import contents
from tools.toy_domains.__main__ import main
from tools.toy_domains.cameras import Camera
from tools.toy_domains.domains import DAYLIGHT, DOMAINS
from tools.toy_domains.drawing import COUNTS, draw_domains, draw_image
from tools.toy_domains.scenes import draw_scene

FEW = {"toy_source": {"train": 3, "val": 2}, "toy_target": {"train": 2, "val": 2}}
SMALL = (128, 64)
OTHERS = [name for name in DOMAINS if name not in FEW]
IDS = [LABEL_IDS[name] for name in TOY_14.names]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    draw_domains(folder, 1, FEW, SMALL, workers=1)
    return folder


@pytest.fixture(scope="module")
def sample():
    """256×128 images and labels of domains with streets of their own: {domain: (N×H×W×3 uint8, N×H×W uint8)}."""
    numbers = dict.fromkeys(FEW, 60) | {"toy_city": 20, "toy_village": 20}
    drawn = {
        name: [draw_image(name, "train", number, size=(256, 128)) for number in range(count)]
        for name, count in numbers.items()
    }
    return {name: tuple(np.stack(arrays) for arrays in zip(*pairs, strict=True)) for name, pairs in drawn.items()}


def test_layout_and_names_are_those_of_cityscapes_and_files_hold_what_draw_image_returns(tree):
    assert sorted(path.name for path in tree.iterdir()) == ["toy_source", "toy_target"]
    for domain, splits in FEW.items():
        for split, count in splits.items():
            images = sorted((tree / domain).glob(IMAGES.format(split=split)))
            assert len(images) == count
            for image in images:
                town, number, frame, kind = image.stem.split("_")
                assert (town, len(number), frame, kind) == (image.parent.name, 6, "000019", "leftImg8bit")
                drawn, label = draw_image(domain, split, images.index(image), 1, SMALL)
                assert drawn.shape == (64, 128, 3)
                assert np.array_equal(read_image(image), drawn)
                assert np.array_equal(read_label(label_path(image)), label)
    assert len(contents(tree)) == 2 * 9


def test_the_program_draws_the_same_bytes_in_several_processes_and_says_what(tree, tmp_path, capsys):
    assert main([str(tmp_path / "new/toy"), "--images-per-split", "2", "--size", "128x64"]) == 0
    told, following = capsys.readouterr().out.splitlines()
    assert told.startswith("8 images with labels: ")
    assert following.endswith(f"train_src.py -cfg configs/toy_src.yaml DATASETS.ROOT {tmp_path}/new/toy")
    assert COUNTS == {"toy_source": {"train": 400, "val": 80}, "toy_target": {"train": 200, "val": 80}}  # unasked
    drawn = contents(tmp_path / "new/toy")
    assert len(drawn) == 2 * 8
    assert drawn.items() <= contents(tree).items()


def test_seed_domain_split_and_number_all_make_another_image():
    first = draw_image("toy_source", "train", 0, 1, SMALL)[1]
    others = ("toy_source", "train", 0, 2), ("toy_source", "train", 1, 1), ("toy_source", "val", 0, 1)
    for other in (*others, ("toy_target", "train", 0, 1)):
        assert not np.array_equal(draw_image(*other, SMALL)[1], first)


@pytest.mark.parametrize("domain", [*FEW, "toy_city", "toy_village"])
def test_every_class_occurs_large_enough_to_be_learnt_and_no_other(sample, domain):
    labels = sample[domain][1]
    assert set(np.unique(labels)) <= {0, *IDS}
    assert (labels == 0).mean() < 0.02
    occurs = {name: (labels == LABEL_IDS[name]).any((1, 2)).mean() for name in TOY_14.names}
    assert min(occurs.values()) >= (0.08 if domain in FEW else 0.05), occurs
    common = min(occurs[name] for name in ("road", "sidewalk", "building", "vegetation", "sky", "car"))
    if domain in FEW:
        assert max(occurs[name] for name in ("rider", "bicycle", "truck", "light", "fence")) < common

    for name in ("light", "sign", "person", "rider", "bicycle"):
        areas = (labels == LABEL_IDS[name]).sum((1, 2))
        assert np.median(areas[areas > 0]) > 50, name  # pixels of a 256×128 image, where the class occurs


def test_domains_look_different_but_hold_the_same(sample):
    (source, source_labels), (target, target_labels) = sample["toy_source"], sample["toy_target"]
    assert source.mean() > 1.1 * target.mean()
    assert source.std() > 1.3 * target.std()
    counts = [np.bincount(labels.ravel(), minlength=256)[IDS] for labels in (source_labels, target_labels)]
    assert np.abs(counts[0] - counts[1]).max() < 0.08 * target_labels.size


def test_cameras_blend_from_daylight_to_the_targets_and_beyond():
    dusk = DOMAINS["toy_target"].camera
    assert DAYLIGHT.towards(dusk, 0) == DAYLIGHT
    half, double = (DAYLIGHT.towards(dusk, share) for share in (0.5, 2))
    assert DAYLIGHT.noise[1] < half.noise[1] < dusk.noise[1] < double.noise[1]


@pytest.mark.parametrize(("domain", "digest"), [("toy_source", "e84347a303cc241a"), ("toy_target", "d0310e9179ad7c11")])
def test_what_the_demo_learns_from_stays_bit_for_bit(domain, digest):
    """Effects of other domains, off here, draw nothing from the random numbers."""
    drawn = draw_image(domain, "train", 0, 1, (256, 128))
    assert hashlib.sha256(b"".join(array.tobytes() for array in drawn)).hexdigest()[:16] == digest


def test_the_reader_knows_every_domain_and_no_two_share_their_seeds():
    assert [f"toy_{name}" for name in NAMES] == list(DOMAINS)
    assert len({domain.number for domain in DOMAINS.values()}) == len(DOMAINS)


@pytest.mark.parametrize("domain", OTHERS)
def test_other_domains_are_the_same_from_the_same_seed_and_hold_known_classes_only(domain):
    image, label = draw_image(domain, "val", 1, 3, SMALL)
    again = draw_image(domain, "val", 1, 3, SMALL)
    assert image.shape == (64, 128, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, again[0])
    assert np.array_equal(label, again[1])
    assert set(np.unique(label)) <= {0, *IDS}


def test_same_is_the_source_rare_lacks_three_classes_and_small_sets_are_small():
    source, same = DOMAINS["toy_source"], DOMAINS["toy_same"]
    assert (same.style, same.camera, same.shift) == (source.style, source.camera, source.shift)
    labels = np.stack([draw_image("toy_rare", "train", number, size=SMALL)[1] for number in range(12)])
    missing = [LABEL_IDS[name] for name in ("truck", "rider", "bicycle")]
    assert not np.isin(labels, missing).any()
    assert np.isin(labels, LABEL_IDS["car"]).any()
    assert DOMAINS["toy_small"].counts == DOMAINS["toy_snow_small"].counts == {"train": 12, "val": 40}


@pytest.fixture(scope="module")
def scene():
    return draw_scene(DOMAINS["toy_night"].style, np.random.default_rng(4), (256, 128))


@pytest.fixture(scope="module")
def photograph(scene):
    """photograph(**effects): the scene (H×W×3 float) by an otherwise ideal camera with these effects."""
    ideal = dict.fromkeys(("haze", "blur", "noise"), (0.0, 0.0))
    ideal |= dict.fromkeys(("exposure", "red", "blue", "saturation", "contrast", "gamma"), (1.0, 1.0))

    def take(**effects):
        camera = Camera(**ideal | {name: (value, value) for name, value in effects.items()})
        label = scene.label.copy()
        image = camera.photograph(np.random.default_rng(1), scene)
        assert np.array_equal(scene.label, label)
        return image.astype(float)

    return take


def test_fog_takes_the_far_first(scene, photograph):
    grey = photograph(haze=0.03, haze_red=180, haze_green=180, haze_blue=180)
    kept = np.abs(grey - 180).mean(2) / np.maximum(np.abs(scene.image - 180.0).mean(2), 1)
    assert kept[scene.depth > 60].mean() < 0.25 < 0.6 < kept[scene.depth < 8].mean()


def test_headlights_light_the_near_road_and_lamps_glow_beyond_themselves(scene, photograph):
    dark, lit = photograph(exposure=0.1), photograph(exposure=0.1, headlights=1.0)
    gained, road = (lit - dark).mean(2), scene.label == LABEL_IDS["road"]
    assert gained[road & (scene.depth < 8)].mean() > 4 * gained[road & (scene.depth > 30)].mean()
    shining = scene.glow > 0
    around = cv2.dilate(scene.glow, np.ones((5, 5))) - scene.glow > 0
    gained = (photograph(exposure=0.1, glow=0.8) - dark).mean(2)
    assert 0 < shining.mean() < 0.2
    assert gained[shining].mean() > gained[around].mean() > 20
    assert gained[~cv2.dilate(scene.glow, np.ones((81, 81))).astype(bool)].max(initial=0) < 5


def test_wet_ground_mirrors_what_stands_on_it(scene, photograph):
    wet, ground = photograph(mirror=0.8), np.isin(scene.label, [LABEL_IDS["road"], LABEL_IDS["sidewalk"]])
    assert np.array_equal(wet[~ground], scene.image[~ground])
    column = np.argmax(ground.sum(0))
    foot = np.flatnonzero(~ground[:, column])[-1]
    scene_above, seen = scene.image[foot - 12 : foot, column].mean(), wet[foot + 1 : foot + 13, column].mean()
    before = scene.image[foot + 1 : foot + 13, column].mean()
    assert abs(seen - scene_above) < abs(before - scene_above)


def test_the_sun_glares_where_the_horizon_is(scene, photograph):
    gained = (photograph(exposure=0.4, glare=0.8) - photograph(exposure=0.4)).mean((1, 2))
    assert abs(np.argmax(gained) - scene.view.horizon) < 0.2 * len(gained)
    assert gained.max() > 1.5 * gained[-1]


@pytest.mark.parametrize(
    ("effects", "least", "most"),
    [({"flakes": 200, "fall": 12}, 0.03, 0.3), ({"flakes": 200, "fall": 1}, 0.005, 0.03), ({"drops": 30}, 0.02, 0.5)],
)
def test_rain_snow_and_drops_touch_a_part_of_the_image(scene, photograph, effects, least, most):
    assert least < (np.abs(photograph(**effects) - scene.image).max(2) > 8).mean() < most


def test_vignette_darkens_the_corners_and_motion_smears_sideways(scene, photograph):
    share = photograph(vignette=0.6).mean(2) / np.maximum(photograph().mean(2), 1)
    assert share[0, :9].mean() < 0.55 < 0.95 < share[60:68, 124:132].mean()
    gradients = [np.abs(np.diff(photograph(motion=8), axis=axis)).mean() for axis in (0, 1)]
    before = [np.abs(np.diff(scene.image.astype(float), axis=axis)).mean() for axis in (0, 1)]
    assert gradients[1] < 0.7 * before[1]
    assert gradients[1] / before[1] < 0.7 * gradients[0] / before[0]


def test_a_mosaic_keeps_the_colours_but_not_their_detail_and_compression_costs_more(scene, photograph):
    plain, mosaic = photograph(), photograph(mosaic=0.1)
    assert np.abs(mosaic.mean((0, 1)) - plain.mean((0, 1))).max() < 2  # red is red and blue is blue
    assert 0.5 < np.abs(mosaic - plain).mean() < np.abs(photograph(mosaic=15.0) - plain).mean()
    assert np.abs(photograph(compression=75) - plain).mean() > 1.5 * np.abs(photograph(compression=20) - plain).mean()


def test_snow_whitens_the_ground_and_a_low_sun_shadows_it():
    def drawn(**changes):
        style = replace(DOMAINS["toy_source"].style, **changes)
        return [draw_scene(style, np.random.default_rng(number), (256, 128)) for number in range(4)]

    def brightness(scenes, name):
        return np.concatenate([one.image[one.label == LABEL_IDS[name]] for one in scenes]).mean()

    plain, snow, low_sun = drawn(), drawn(snow=(1.0, 1.0)), drawn(shadow=(0.7, 0.7))
    assert brightness(snow, "sidewalk") > 1.15 * brightness(plain, "sidewalk")
    assert brightness(snow, "vegetation") > 1.5 * brightness(plain, "vegetation")
    assert brightness(low_sun, "road") < 0.9 * brightness(plain, "road")
    for one, other in zip(plain, snow, strict=True):
        assert np.array_equal(one.label, other.label)


def test_another_lens_is_another_view_and_its_labels_follow():
    def road(**changes):
        style = replace(DOMAINS["toy_source"].style, **changes)
        scenes = [draw_scene(style, np.random.default_rng(number), SMALL) for number in range(4)]
        assert all(scene.image.shape[:2] == scene.label.shape == SMALL[::-1] for scene in scenes)
        return np.mean([scene.label == LABEL_IDS["road"] for scene in scenes]), scenes[0].view

    (_, plain), (_, wide) = road(), road(lens=(0.6, 0.6), mount=(0.5, 0.5), tilt=(0.1, 0.1))
    assert wide.focal == pytest.approx(0.6 * plain.focal)
    assert wide.eye == pytest.approx(0.5 * plain.eye)
    assert wide.horizon == pytest.approx(plain.horizon + 0.1 * SMALL[1])
    assert road(tilt=(0.15, 0.15))[0] < road()[0]
    hood = draw_scene(DOMAINS["toy_dashcam"].style, np.random.default_rng(0), SMALL).label
    assert (hood[-1] == 0).mean() > 0.5


def test_named_domains_are_drawn_beside_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tools.toy_domains.drawing._draw_in_processes", lambda draw, tasks, _: list(map(draw, tasks)))
    few = ["--images-per-split", "1", "--size", "64x32"]
    assert main([str(tmp_path), "--domains", "night", *few]) == 0
    assert main([str(tmp_path), "--domains", "fog", "snow_small", *few]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("4 images with labels: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy_fog", "toy_night", "toy_snow_small"]
    assert main([str(tmp_path), "--domains", "same", "fog", *few]) == 1
    assert "toy_fog is there already" in capsys.readouterr().err
    assert not (tmp_path / "toy_same").exists()


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
        (["--domains", "fog", "mars"], "--domains mars: no such domain; known are source, target, night, fog"),
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
    making = tmp_path / "toy_target.partial/mine"  # another run's
    making.mkdir(parents=True)
    assert main([str(tmp_path)]) == 1
    assert "toy_target.partial is there already" in capsys.readouterr().err
    assert making.is_dir()


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tools.toy_domains.drawing.write_label", fail)
    with pytest.raises(UserError, match="No space left on device"):
        draw_domains(tmp_path / "toy", 1, FEW, SMALL, workers=1)
    assert not contents(tmp_path)
    assert not list((tmp_path / "toy").iterdir())
