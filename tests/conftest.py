"""What the whole suite shares: tiny data sets in their published layout, a tiny source model, a tiny config."""

import logging
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, settings
from PIL import Image

from core.configs import cfg
from core.datasets.transforms import Normalise, to_tensor
from core.models import build_model
from core.utils.checkpoints import save_checkpoint
from core.utils.logging import LOGGER
from tests.networks import TINY

os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that tests start
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 8 << 30 and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
    # tmp_path lies there: on a disk, files that are synced and folders that go take a sixth of the tests' time
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
for name, examples in (("few", 300), ("many", 10_000)):  # make test-long takes many
    settings.register_profile(
        name, max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=HealthCheck
    )
settings.load_profile("few")

CELL = 16  # pixels; the scenes are a grid of such squares
GRID = (4, 8)  # rows and columns: images of 128×64
# class index (of 19), Cityscapes labelId, colour of the classes that the scenes are made of
CLASSES = {
    "road": (0, 7, (128, 64, 128)),
    "building": (2, 11, (60, 60, 60)),
    "vegetation": (8, 21, (90, 160, 35)),
    "sky": (10, 23, (70, 150, 230)),
    "pole": (5, 17, (200, 200, 200)),
    "sign": (7, 20, (230, 230, 0)),
    "rider": (12, 25, (230, 20, 20)),
    "bicycle": (18, 33, (120, 10, 230)),
}
UNLABELLED = 0  # a labelId that is no class


def draw_scene(seed):
    """(H×W×3 uint8 RGB, H×W uint8 labelIds): sky, walls of colour, road, and upon them one object of each kind."""
    rng = np.random.default_rng(seed)
    rows, columns = GRID
    names = np.full(GRID, "building", dtype=object)
    names[0], names[-1] = "sky", "road"
    names[1, columns // 2 :] = "vegetation"
    places = rng.permutation(columns)
    for place, name in zip(places, ("pole", "sign", "rider", "bicycle"), strict=False):
        names[2, place] = name
    labels, image = np.zeros(GRID, np.uint8), np.zeros((*GRID, 3))
    for place in np.ndindex(rows, columns):
        _, labels[place], image[place] = CLASSES[names[place]]
    image, labels = (array.repeat(CELL, 0).repeat(CELL, 1) for array in (image, labels))
    image = (image + rng.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)
    labels[0, :8] = UNLABELLED
    return image, labels


def write_png(path, array):
    """Write H×W or RGB H×W×3 uint8, folders included."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    array = array[..., ::-1] if array.ndim == 3 else array
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(array))[1].tobytes())
    return path


def make_cityscapes(root, train=6, val=3):
    """A Cityscapes tree below `root`/cityscapes with labels for val only."""
    for split, count, first_seed in (("train", train, 0), ("val", val, 1000)):
        for number in range(count):
            city = ("aachen", "bochum")[number % 2]
            image, labels = draw_scene(first_seed + number)
            stem = f"{split}/{city}/{city}_{number:06d}_000019"
            write_png(Path(root) / "cityscapes/leftImg8bit" / f"{stem}_leftImg8bit.png", image)
            if split == "val":
                write_png(Path(root) / "cityscapes/gtFine" / f"{stem}_gtFine_labelIds.png", labels)
    return Path(root)


def make_gta5(root, count=6, mismatched=()):
    """A GTA5 tree below `root`/gta5 with palette labels; those of the images numbered `mismatched` lack a row."""
    for number in range(count):
        image, labels = draw_scene(3000 + number)
        write_png(Path(root) / f"gta5/images/{number:05d}.png", image)
        label = Image.fromarray(labels[number in mismatched :])
        label.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
        path = Path(root) / f"gta5/labels/{number:05d}.png"
        path.parent.mkdir(exist_ok=True)
        label.save(path)
    return Path(root)


@pytest.fixture(autouse=True)
def one_thread():
    """As in a loader's worker; several threads on tiny tensors are many times as slow where others work, too."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", name="make_cityscapes")
def make_cityscapes_fixture():
    """The function make_cityscapes(root, train=6, val=3), for fixtures of a wider scope."""
    return make_cityscapes


@pytest.fixture(scope="session", name="make_gta5")
def make_gta5_fixture():
    """The function make_gta5(root, count=6, mismatched=())."""
    return make_gta5


@pytest.fixture(scope="session", name="write_png")
def write_png_fixture():
    """The function write_png(path, array)."""
    return write_png


@pytest.fixture(scope="session", name="draw_scene")
def draw_scene_fixture():
    """The function draw_scene(seed)."""
    return draw_scene


@pytest.fixture
def cityscapes_root(tmp_path):
    """tmp_path, which now holds cityscapes/: 6 training images without labels, 3 validation images with them."""
    return make_cityscapes(tmp_path)


@pytest.fixture
def camvid_root(tmp_path):
    """tmp_path, which now holds camvid/: one or two frames of every split, and frames that belong to none."""
    frames = {
        "train": ("0001TP_006690", "0001TP_006720", "0006R0_f00930", "0016E5_00390"),
        "val": ("0016E5_07959", "0016E5_07961"),
        "test": ("0001TP_008550", "0001TP_008580", "Seq05VD_f00000"),
    }
    for part, names in frames.items():
        for number, name in enumerate(names):
            image, _ = draw_scene(number)
            labels = np.arange(12, dtype=np.uint8).repeat(4)[None].repeat(48, 0)  # twelve stripes, the last is void
            write_png(tmp_path / "camvid" / part / f"{name}.png", image[:48, :48])
            write_png(tmp_path / "camvid" / f"{part}annot" / f"{name}.png", labels)
    return tmp_path


@pytest.fixture
def log_lines():
    """What was logged so far, a list that grows."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    level = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    yield lines
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(level)


def tiny_options(**options):
    """A clone of the defaults with the tiny network of 19 classes."""
    config = cfg.clone()
    config.MODEL.NAME, config.MODEL.FREEZE_BN = TINY, True
    for key, value in options.items():
        config.MODEL[key] = value
    return config


def save_knowing_checkpoint(path, config):
    """Write a checkpoint of a network of 19 classes that knows the scenes.

    Its backbone is random; the classifier's centre taps are the least-squares map from features to classes.
    """
    torch.manual_seed(0)
    model = build_model(config).eval()
    index_of = np.zeros(256, np.int64)
    for index, label_id, _ in CLASSES.values():
        index_of[label_id] = index
    scenes = [draw_scene(seed) for seed in range(2000, 2008)]
    images = Normalise(config.INPUT)(torch.stack([to_tensor(image) for image, _ in scenes]))
    labels = np.stack([index_of[label_ids[4::8, 4::8]] for _, label_ids in scenes])  # the networks have stride 8
    classifier, sharpness = model.classifier, 6.0
    with torch.no_grad():
        features = model.feature_extractor(images).permute(0, 2, 3, 1).flatten(0, 2).double()
        spread = features.std()
        inputs = torch.cat([features / spread, torch.ones(len(features), 1)], dim=1)
        wanted = torch.nn.functional.one_hot(torch.from_numpy(labels).flatten(), 19).double()
        solution = torch.linalg.solve(inputs.T @ inputs + 0.1 * torch.eye(inputs.shape[1]), inputs.T @ wanted)
        for parameter in classifier.parameters():
            parameter.zero_()
        classifier.conv2d_list[0].weight[:, :, 1, 1] = sharpness * (solution[:-1] / spread).T.float()
        classifier.conv2d_list[0].bias.copy_(sharpness * solution[-1].float())
    save_checkpoint(model, path, 20000)
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Path of a checkpoint of the tiny network that knows the scenes: treat it as read-only."""
    return save_knowing_checkpoint(tmp_path_factory.mktemp("source") / "tiny.pth", tiny_options())


@pytest.fixture(scope="session")
def resnet18(tmp_path_factory):
    """Options of the published deeplab_resnet18, with a checkpoint that knows the scenes."""
    path = tmp_path_factory.mktemp("source") / "r18.pth"
    save_knowing_checkpoint(path, tiny_options(NAME="deeplab_resnet18"))
    return {"MODEL.NAME": "deeplab_resnet18", "resume": str(path)}


@pytest.fixture(scope="session")
def make_checkpoint():
    """make_checkpoint(path, **MODEL options): a random checkpoint in the published format."""

    def make(path, iteration=0, **options):
        torch.manual_seed(0)
        save_checkpoint(build_model(tiny_options(**options)), path, iteration)
        return Path(path)

    return make


def tiny_config(folder):
    """The options of the tiny experiment, by their full names."""
    return {
        "OUTPUT_DIR": str(folder / "out"),
        "MODEL.NAME": TINY,
        "MODEL.NUM_CLASSES": 19,
        "MODEL.FREEZE_BN": True,
        "MODEL.DEVICE": "cpu",
        "DATASETS.ROOT": str(folder),
        "DATASETS.SOURCE_TRAIN": "gta5_train",
        "DATASETS.TARGET_TRAIN": "cityscapes_train",
        "DATASETS.TEST": "cityscapes_val",
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.TARGET_INPUT_SIZE_TRAIN": [96, 48],
        "INPUT.INPUT_SCALES_TRAIN": [0.75, 1.25],
        "INPUT.INPUT_SIZE_TEST": [128, 64],
        "INPUT.HORIZONTAL_FLIP_PROB_TRAIN": 0.5,
        "INPUT.BRIGHTNESS": 0.5,
        "INPUT.CONTRAST": 0.5,
        "INPUT.SATURATION": 0.5,
        "INPUT.HUE": 0.2,
        "DTU.Query_START": 2,
        "DTU.Query_STEP": 1,
        "DTU.META_MAX_UPDATE": 4,
        "TCR.UPDATE_FREQUENCY": 3,
        "SOLVER.BASE_LR": 1e-4,
        "SOLVER.MAX_ITER": 100,
        "SOLVER.STOP_ITER": 2,
        "SOLVER.BATCH_SIZE": 2,
        "SOLVER.CHECKPOINT_PERIOD": 4,
    }


@pytest.fixture(scope="session")
def write_config(tiny_checkpoint):
    """write_config(folder, **overrides) → path of folder/tiny.yaml, an experiment with data and OUTPUT_DIR in folder.

    Overrides go by full name, write_config(tmp_path, **{"SOLVER.STOP_ITER": 4}); `resume` is the tiny checkpoint.
    """

    def write(folder, **overrides):
        tree = {}
        for key, value in (tiny_config(folder) | {"resume": str(tiny_checkpoint)} | overrides).items():
            *sections, name = key.split(".")
            node = tree
            for section in sections:
                node = node.setdefault(section, {})
            node[name] = list(value) if isinstance(value, tuple) else value
        path = Path(folder) / "tiny.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    return write
