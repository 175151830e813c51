"""The programs with a data set that the config describes."""

import numpy as np
from PIL import Image

from core.configs import load_config
from core.datasets.cityscapes import LABEL_IDS
from core.datasets.taxonomy import CITYSCAPES_19
from tests.helpers import same_weights
from train_TCR_DTU import main as adapt


def paint_labels(folder, out, write):
    """Cityscapes' label ids as pictures in its official colours, black where they are no class."""
    colours = np.zeros((256, 3), np.uint8)
    colours[list(LABEL_IDS.values())] = [CITYSCAPES_19.colours[name] for name in LABEL_IDS]
    for path in folder.rglob("*_gtFine_labelIds.png"):
        name = path.relative_to(folder).as_posix().removesuffix("_gtFine_labelIds.png")
        write(out / f"{name}.png", colours[np.asarray(Image.open(path))])


def test_cityscapes_described_by_the_config_adapts_and_evaluates_as_cityscapes_does(
    cityscapes_root, write_config, write_png
):
    files = {"images": "cityscapes/leftImg8bit", "labels": "cityscapes/gtFine"}
    town = {
        "classes": list(CITYSCAPES_19.names),
        "labels": {value: name for name, value in LABEL_IDS.items()},
        "ignore": "rest",
        "splits": {
            part: files | {"pattern": f"{part}/*_leftImg8bit.png", "label_pattern": f"{part}/*_gtFine_labelIds.png"}
            for part in ("train", "val")
        },
    }
    painted = town | {"palette": "cityscapes"}
    del painted["labels"], painted["ignore"]
    painted["splits"] = {"train": files | town["splits"]["train"], "val": files | {"labels": "painted"}}
    painted["splits"]["val"] |= {"pattern": "val/*_leftImg8bit.png", "label_pattern": "*.png"}
    paint_labels(cityscapes_root / "cityscapes/gtFine/val", cityscapes_root / "painted", write_png)
    scores = []
    for name in ("cityscapes", "town", "painted"):
        config = write_config(
            cityscapes_root,
            **{
                "DATASETS.CUSTOM": {"town": town, "painted": painted},
                "DATASETS.SOURCE_TRAIN": f"{name}_train",
                "SOLVER.STOP_ITER": 1,
            },
            **{"DATASETS.TARGET_TRAIN": f"{name}_train", "DATASETS.TEST": f"{name}_val"},
        )
        out = cityscapes_root / name
        assert adapt(["-cfg", str(config), "OUTPUT_DIR", str(out)]) == 0
        scores.append((out / "evaluation.csv").read_text())
        assert load_config(out / "config.yaml").DATASETS == load_config(config).DATASETS
    assert scores[0] == scores[1] == scores[2]
    for name in ("town", "painted"):
        assert same_weights(*(cityscapes_root / part / "model_iter000001.pth" for part in ("cityscapes", name)))
