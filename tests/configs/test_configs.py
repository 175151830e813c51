"""Options: the release's keys and values, the defaults, and what may be written for a value."""

from pathlib import Path

import pytest
import yaml

from core.configs import cfg, load_config
from core.selftraining.trainer import check_paste_lag
from core.utils.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def flat(config):
    """Values by their full names, those of plain dicts, too."""
    pairs = {}
    for name, node in config.items():
        pairs |= (
            {f"{name}.{key}": value for key, value in flat(node).items()} if isinstance(node, dict) else {name: node}
        )
    return pairs


def typed(values):
    """With types, since 1 == 1.0 == True."""
    return {key: (type(value), value) for key, value in values.items()}


def table(text):
    """Options by full name, of a yaml text."""
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in flat(yaml.safe_load(text)).items()
    }


# every option that the experiments of the release do not set, and the source trainings', with its default
DEFAULTS = table("""
OUTPUT_DIR: ''
resume: ''
MODEL: {NAME: deeplab_resnet101, NUM_CLASSES: 19, WEIGHTS: '', FREEZE_BN: false, DEVICE: auto, COMPILE: false,
  FREEZE_BN_PARAMETERS: true, UNCERTAINTY: 0.0, POS: [], CLASSES_OUT: [], ARGS: {}, CLASSES: [], CLASS_COLOURS: [],
  ALIGN_CORNERS: true}
DATASETS: {ROOT: datasets, SOURCE_SAMPLING: auto, TARGET_LIST: ''}
VIDEO: {EVERY: 0, MIN_CHANGE: 1.0, FOLDER: ''}
DATALOADER: {NUM_WORKERS: 4, SKIP_BAD_IMAGES: 0, CACHE: '', CACHE_GB: 50.0}
INPUT: {SOURCE_INPUT_SIZE_TRAIN: [1280, 720], INPUT_SIZE_TEST: [1024, 512], INPUT_SCALES_TRAIN: [1.0, 1.0],
  HORIZONTAL_FLIP_PROB_TRAIN: 0.0, BRIGHTNESS: 0.0, CONTRAST: 0.0, SATURATION: 0.0, HUE: 0.0, GRAYSCALE_PROB: 0.0,
  IGNORE_LABEL: 255, PIXEL_MEAN: [0.485, 0.456, 0.406], PIXEL_STD: [0.229, 0.224, 0.225], TO_BGR255: false,
  DEPTH: auto, DEPTH_RANGE: [], MASK: "", MARGINS: []}
DTU: {DYNAMIC: true, Query_STEP: 3, Query_START: 9, META_MAX_UPDATE: 30, EMA_WEIGHT: 0.99, PROXY_METRIC: SND,
  FIX_ITERATION: 12, ANCHOR: 0.0}
ADAPT: {AUTO: false, NORM_MIX: [], TEACHER_LOOKS: [], CLASS_WEIGHTS: []}
TCR: {TOPK_CANDIDATE: 0.5, UPDATE_FREQUENCY: 3000, MIX_SAMPLING: confidence, MIX_CLASSES: [], PASTE_LAG: 16,
  PASTE_MAX_RATIO: 1.6, RESAMPLE: true, PASTE: true, MAX_PASS_IMAGES: 0}
SOLVER: {AUTO: false, BASE_LR: 0.02, MAX_ITER: 16000, STOP_ITER: 10000, BATCH_SIZE: 16, LR_METHOD: poly, LR_POWER: 0.9,
  MOMENTUM: 0.9, WEIGHT_DECAY: 5.0e-4, CHECKPOINT_PERIOD: 1000, CLIP_GRAD: 0.0, KEEP_STATES: 2, TF32: true,
  OPTIMIZER: SGD, HEAD_FACTOR: 10.0, LAYER_DECAY: 1.0, WARMUP: 0,
  CUDNN_BENCHMARK: false, DETERMINISTIC: false, ACCUMULATE: 1, MAX_BAD_STEPS: 0, CLASS_WEIGHTS: false, AMP: 'off'}
VIS: {PERIOD: 200, TENSORBOARD: true, COLOURS: clear, NAMES: true}
TEST: {BATCH_SIZE: 1, WINDOW: [], STRIDE: []}
""")
# GTA5 → Cityscapes, as published; the second table holds where SYNTHIA → Cityscapes differs
PUBLISHED = table("""
MODEL: {NAME: deeplab_resnet101, WEIGHTS: pretrain/resnet101-5d3b4d8f.pth, FREEZE_BN: true, NUM_CLASSES: 19}
DATASETS: {SOURCE_TRAIN: gta5_train, TARGET_TRAIN: cityscapes_train, TEST: cityscapes_val, TT: cityscapes_TT_train,
  II: cityscapes_II_train}
INPUT: {TARGET_INPUT_SIZE_TRAIN: [1024, 512], INPUT_SCALES_TRAIN: [0.75, 1.25], INPUT_SIZE_TEST: [1536, 768],
  HORIZONTAL_FLIP_PROB_TRAIN: 0.5, BRIGHTNESS: 0.5, CONTRAST: 0.5, SATURATION: 0.5, HUE: 0.2}
DTU: {DYNAMIC: true, Query_STEP: 3, Query_START: 9, META_MAX_UPDATE: 30, EMA_WEIGHT: 0.99, PROXY_METRIC: SND,
  FIX_ITERATION: 12, ANCHOR: 0.0}
ADAPT: {AUTO: false, NORM_MIX: [], TEACHER_LOOKS: [], CLASS_WEIGHTS: []}
TCR: {TOPK_CANDIDATE: 0.5, UPDATE_FREQUENCY: 3000}
SOLVER: {BASE_LR: 2.5e-4, MAX_ITER: 62500, STOP_ITER: 20000, BATCH_SIZE: 4}
""")
SYNTHIA = table("""
MODEL: {NUM_CLASSES: 16}
DATASETS: {SOURCE_TRAIN: synthia_train}
INPUT: {TARGET_INPUT_SIZE_TRAIN: [960, 480], INPUT_SCALES_TRAIN: [0.75, 1.75], INPUT_SIZE_TEST: [1280, 640]}
""")
OBSOLETE = table("""
SOLVER: {BASE_LR_D: 1.0e-4, BATCH_SIZE_VAL: 1, GAMMA: 0.1, WEIGHT_DECAY_BIAS: 0}
TCR: {SAMPLE_LIST: datasets/list.txt}
DATASETS: {VALIDATION: cityscapes_val}
""")


@pytest.fixture
def load(tmp_path):
    """load(yaml text, *options) → config."""

    def load_text(text="", *options):
        (tmp_path / "some.yaml").write_text(text, encoding="utf-8")
        return load_config(tmp_path / "some.yaml", options)

    return load_text


def test_the_defaults_are_the_releases_and_no_option_is_left_out_of_the_tables():
    assert typed({key: value for key, value in flat(cfg).items() if key in DEFAULTS}) == typed(DEFAULTS)
    assert flat(cfg).keys() == DEFAULTS.keys() | PUBLISHED.keys() | {"SEED"}
    assert type(cfg.SEED) is int


@pytest.mark.parametrize(
    ("name", "published"),
    [("deeplabv2_r101_dtst", PUBLISHED), ("deeplabv2_r101_dtst_synthia", PUBLISHED | SYNTHIA)],
)
def test_the_published_experiments(name, published):
    config = load_config(CONFIGS / f"{name}.yaml")
    expected = DEFAULTS | published | {"OUTPUT_DIR": f"results/{name}", "SEED": cfg.SEED}
    assert typed(flat(config)) == typed(expected)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_project_loads_and_writes_to_a_folder_of_its_name(path):
    assert Path(load_config(path).OUTPUT_DIR) == Path("results") / path.stem


def test_a_yaml_file_of_the_release_loads_with_its_obsolete_keys(load, capfd):
    tree = {"OUTPUT_DIR": "results/x", "resume": "G2C.pth"}
    for key, value in (PUBLISHED | OBSOLETE).items():
        section, name = key.split(".")
        tree.setdefault(section, {})[name] = list(value) if isinstance(value, tuple) else value
    config = flat(load(yaml.safe_dump(tree), "SOLVER.GAMMA", "0.1", "SOLVER.STOP_ITER", "7"))
    expected = PUBLISHED | {"OUTPUT_DIR": "results/x", "resume": "G2C.pth", "SOLVER.STOP_ITER": 7}
    assert {key: config[key] for key in expected} == expected
    assert not config.keys() & OBSOLETE.keys()
    assert capfd.readouterr() == ("", "")


def test_the_file_overwrites_the_defaults_and_the_command_line_the_file(load):
    config = load("SOLVER: {BATCH_SIZE: 3, MAX_ITER: 5}", "SOLVER.MAX_ITER", "6", "SOLVER.MAX_ITER", "7")
    assert (config.SOLVER.BATCH_SIZE, config.SOLVER.MAX_ITER, config.SOLVER.STOP_ITER) == (3, 7, 10000)


def test_loading_leaves_the_defaults_alone_and_gives_a_frozen_config(load):
    before = flat(cfg)
    config = load("SOLVER: {MAX_ITER: 5}\nTCR: {MIX_CLASSES: [pole]}")
    assert flat(cfg) == before
    with pytest.raises(AttributeError):
        config.SOLVER.MAX_ITER = 6


VALUES = [
    ("SOLVER.BASE_LR", "1", 1.0),
    ("SOLVER.BASE_LR", "2.5e-4", 2.5e-4),
    ("SOLVER.BASE_LR", "1e-4", 1e-4),  # text to yaml, which wants 1.0e-4
    ("SOLVER.MAX_ITER", "1e5", 100000),
    ("SOLVER.MAX_ITER", "62_500", 62500),
    ("SOLVER.AMP", "off", "off"),  # False to yaml
    ("SOLVER.AMP", "bf16", "bf16"),
    ("MODEL.FREEZE_BN", "true", True),
    ("MODEL.FREEZE_BN", "True", True),
    ("MODEL.FREEZE_BN", "on", True),
    ("TCR.PASTE", "false", False),
    ("TCR.PASTE", "no", False),
    ("INPUT.INPUT_SIZE_TEST", "(1280, 640)", (1280, 640)),
    ("INPUT.INPUT_SIZE_TEST", "[1280, 640]", (1280, 640)),
    ("INPUT.INPUT_SCALES_TRAIN", "(1, 1.5)", (1, 1.5)),
    ("MODEL.POS", "()", ()),
    ("TCR.MIX_CLASSES", "['pole', 'sign']", ("pole", "sign")),
    ("TCR.MIX_CLASSES", "[pole, sign]", ("pole", "sign")),
    ("OUTPUT_DIR", "2024", "2024"),
    ("DATASETS.TARGET_TRAIN", "folder:/some/where", "folder:/some/where"),
]


@pytest.mark.parametrize("place", ["yaml", "command line", "quoted in yaml"])
@pytest.mark.parametrize(("key", "written", "value"), VALUES)
def test_values_take_the_type_of_their_default(load, key, written, value, place):
    if place == "command line":
        config = load("", key, written)
    else:
        quoted = f'"{written}"' if "quoted" in place else written
        config = load(key.replace(".", ":\n  ") + f": {quoted}\n")
    found = flat(config)[key]
    assert (type(found), found) == (type(value), value)


REFUSED = {
    "SOLVER.MAX_ITER": ("1.5", "True"),
    "SOLVER.BASE_LR": ("True", "(1, 2)", ""),
    "TCR.PASTE": ("1", "0.0", "None"),
    "INPUT.INPUT_SIZE_TEST": ("512", "None"),
    "SOLVER.OPTIMIZER": ("Adam", "adamw", "1"),
    "SOLVER.HEAD_FACTOR": ("0", "-1"),
    "SOLVER.LAYER_DECAY": ("0", "1.1", "nan"),
    "SOLVER.WARMUP": ("-1", "0.5"),
    "MODEL.FREEZE_BN_PARAMETERS": ("1",),
    "MODEL.POS": ("{1, 2}",),
    "MODEL.CLASSES": ("road", "(1, 2)", "[road, road]", "('',)"),
    "MODEL.CLASS_COLOURS": ("5", "(1, 2, 3)", "((1, 2),)", "((1, 2, 256),)", "((1, 2, True),)"),
    "MODEL.CLASSES_OUT": ("5", "(-1, 0)", "(1, 1)", "(True, 2)", "(0.5,)"),
    "VIDEO.EVERY": ("-1", "0.5"),
    "VIDEO.MIN_CHANGE": ("-1",),
    "TEST.WINDOW": ("512", "(512,)", "(512, 24)", "(516, 512)", "(512.0, 512)", "(-512, 512)"),
    "TEST.STRIDE": ("8", "(8,)", "(7, 8)", "(True, 8)"),
}


@pytest.mark.parametrize(("key", "written"), [(key, value) for key, values in REFUSED.items() for value in values])
def test_values_of_another_type_are_refused_with_their_key(load, key, written):
    with pytest.raises(UserError, match=key):
        load("", key, written)


def test_windows_and_the_steps_between_them_fit_each_other(load):
    config = load("TEST: {WINDOW: [512, 256], STRIDE: [512, 100]}")
    assert (config.TEST.WINDOW, config.TEST.STRIDE) == ((512, 256), (512, 100))
    assert load("", "TEST.WINDOW", "(512, 256)").TEST.STRIDE == ()
    with pytest.raises(
        UserError, match=r"^TEST\.STRIDE \(512, 264\) is larger than TEST\.WINDOW \(512, 256\).*at most"
    ):
        load("TEST: {WINDOW: [512, 256], STRIDE: [512, 264]}")
    with pytest.raises(UserError, match=r"^TEST\.STRIDE is \(64, 64\), but there are no windows: give TEST\.WINDOW"):
        load("", "TEST.STRIDE", "(64, 64)")


def test_adamws_beta_is_below_1(load):
    assert load("SOLVER: {MOMENTUM: 1}").SOLVER.MOMENTUM == 1
    with pytest.raises(UserError, match=r"^SOLVER\.MOMENTUM must be below 1 with AdamW, .* not 1\.0$"):
        load("SOLVER: {MOMENTUM: 1, OPTIMIZER: AdamW}")


def test_an_empty_file_and_a_section_without_options_mean_the_defaults(load):
    expected = DEFAULTS | {"OUTPUT_DIR": "results/some"}
    for text in ("", "# nothing\n", "SOLVER:\n  # BASE_LR: 1\nTCR:\n"):
        found = flat(load(text))
        assert {key: found[key] for key in DEFAULTS} == expected


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        (("DATALOADER.NUM_WORKERS", "7"), True),
        (("DATALOADER.NUM_WORKERS", "8"), False),  # 2 batches ahead each: 16 is not below PASTE_LAG
        (("DATALOADER.NUM_WORKERS", "8", "TCR.PASTE_LAG", "17"), True),
        (("DATALOADER.NUM_WORKERS", "8", "TCR.MIX_SAMPLING", "uniform"), True),
        (("DATALOADER.NUM_WORKERS", "8", "TCR.PASTE", "False"), True),
        (("DATALOADER.NUM_WORKERS", "0", "TCR.PASTE_LAG", "1"), True),
        (("DATALOADER.NUM_WORKERS", "1", "TCR.PASTE_LAG", "2"), False),
    ],
)
def test_workers_must_not_run_ahead_of_the_paste_lag(load, options, allowed):
    config = load("", *options)  # which is no mistake where nothing is pasted: source training, evaluation
    if allowed:
        check_paste_lag(config)
        return
    with pytest.raises(UserError, match=r"NUM_WORKERS.*PASTE_LAG"):
        check_paste_lag(config)


def test_the_camvid_experiment_needs_no_gpu_and_names_its_paste_classes():
    config = load_config(CONFIGS / "camvid_day2dusk_dtst.yaml")
    assert (config.MODEL.NAME, config.MODEL.NUM_CLASSES, config.MODEL.FREEZE_BN) == ("deeplab_resnet18", 11, True)
    names = (config.DATASETS.SOURCE_TRAIN, config.DATASETS.TARGET_TRAIN, config.DATASETS.TEST)
    assert names == ("camvid_day_train", "camvid_dusk_train", "camvid_dusk_val")
    assert config.INPUT.INPUT_SIZE_TEST == (480, 360)
    assert config.TCR.MIX_CLASSES  # camvid has no list of its own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "DATASETS: {CUSTOM: {a: {labels: {2: car,\n 0x2: pole}}}}",
            r"DATASETS\.CUSTOM\.a\.labels\.0x2 stands in line 1 and",
        ),
        (
            "SOLVER: {BASE_LR: 0.1}\nSOLVER.BASE_LR: 0.2",
            r"SOLVER\.BASE_LR is given twice, so and as BASE_LR of SOLVER: join",
        ),
    ],
)
def test_keys_that_mean_the_same_are_twins(load, text, message):
    with pytest.raises(UserError, match=message):
        load(text)
