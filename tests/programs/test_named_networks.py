"""Networks by name, tiny ones with random weights, through every program: trained, adapted, gone on with, exported."""

import pytest
import torch

from core.configs import load_config
from core.models import backbone, build_model
from core.utils.checkpoints import save_checkpoint
from tests.helpers import SHORT, SOURCE, read_checkpoint, same_weights
from tools.export import main as export
from train_src import main as train
from train_TCR_DTU import main as adapt

DINO = {"depth": 2, "dim": 24, "heads": 2, "drop_path": 0.4}
MIX = {"depths": [1, 1, 1, 1], "widths": [8, 8, 10, 16], "width": 6, "drop_path": 0.4}
KINDS = {  # MODEL.NAME and ARGS
    "segformer": ("segformer_b2", MIX),
    "daformer": ("daformer_b5", MIX),
    "deeplabv3": ("deeplabv3_resnet50", {}),
    "fcn": ("fcn_resnet101", {}),
    "dinov2": ("dinov2_vits", DINO),
    "dinov2 dpt": ("dinov2_vitb", DINO | {"head": "dpt", "depth": 4, "width": 8, "freeze": True}),
    "dinov3": ("dinov3_vits", DINO),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory, make_cityscapes, make_gta5):
    """DATASETS.ROOT: GTA5 to train on, Cityscapes to adapt to."""
    folder = tmp_path_factory.mktemp("named_root")
    make_gta5(folder, 3)
    return make_cityscapes(folder, train=2, val=1)


def tensors_of(state):
    """All of them, wherever in a state."""
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return [state] if isinstance(state, torch.Tensor) else [tensor for part in inner for tensor in tensors_of(part)]


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_adapts_goes_on_exactly_and_is_exported(root, tmp_path, write_config, monkeypatch, capfd, kind):
    """Exactly: despite dropout and drop path."""
    for name in ("resnet50", "resnet101"):  # of fewer blocks, and of 512 channels at the end
        monkeypatch.setitem(backbone.ARCHITECTURES, name, (backbone.DilatedBasicBlock, (1, 1, 1, 1)))
    name, args = KINDS[kind]
    options = SHORT | {"MODEL.NAME": name, "MODEL.ARGS": args, "DATASETS.ROOT": str(root), "VIS.TENSORBOARD": False}
    options |= {
        "INPUT.TARGET_INPUT_SIZE_TRAIN": (48, 32),
        "TCR.UPDATE_FREQUENCY": 99,
        "DTU.Query_START": 9,
        "SOLVER.BASE_LR": 1e-3,
        "SOLVER.CHECKPOINT_PERIOD": 5,
        "MODEL.FREEZE_BN": False,
    }
    words = ["-cfg", str(write_config(tmp_path, **options | SOURCE | {"INPUT.SOURCE_INPUT_SIZE_TRAIN": (48, 32)}))]
    assert train([*words, "OUTPUT_DIR", str(tmp_path / "source"), "SOLVER.STOP_ITER", "1"]) == 0
    source, out = tmp_path / "source/model_iter000001.pth", tmp_path / "out"
    words = ["-cfg", str(write_config(tmp_path, **options | {"resume": str(source), "SOLVER.STOP_ITER": 10}))]
    assert adapt(words) == 0
    assert not same_weights(out / "model_iter000010.pth", source)
    whole = read_checkpoint(out / "state/iter000010.pth")
    (out / "state/iter000010.pth").unlink()
    assert adapt([*words, "resume", "auto"]) == 0
    again = read_checkpoint(out / "state/iter000010.pth")
    for part in ("student", "teacher", "solver"):
        assert all(torch.equal(*pair) for pair in zip(tensors_of(whole[part]), tensors_of(again[part]), strict=True))

    words += ["resume", str(out / "model_iter000010.pth"), "-o", str(tmp_path / "model.onnx")]
    assert export([*words, "--fixed-size"]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert printed.out.count("checked: ") == 1  # against the network itself


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_exported_for_any_size(tmp_path, write_config, capfd, kind):
    """torch takes its time over sizes that it does not know."""
    name, args = KINDS[kind]
    options = {"MODEL.NAME": name, "MODEL.ARGS": args, "resume": str(tmp_path / "random.pth")}
    config = write_config(tmp_path, **options)
    torch.manual_seed(0)
    save_checkpoint(build_model(load_config(config)), tmp_path / "random.pth", 0)
    assert export(["-cfg", str(config), "-o", str(tmp_path / "model.onnx")]) == 0
    assert capfd.readouterr().out.count("checked: ") == 2
