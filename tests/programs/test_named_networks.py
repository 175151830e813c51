"""Networks by name, tiny ones with random weights, through every program: trained, adapted, gone on with, exported."""

import pytest
import torch

from core.models import backbone
from tests.helpers import SHORT, SOURCE, read_checkpoint, same_weights
from tools.export import main as export
from train_src import main as train
from train_TCR_DTU import main as adapt

DINO = {"depth": 2, "dim": 24, "heads": 2, "drop_path": 0.4}
KINDS = {  # MODEL.NAME and ARGS
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
    return make_cityscapes(folder, train=4, val=1)


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
    options |= {"SOLVER.BASE_LR": 1e-3, "SOLVER.CHECKPOINT_PERIOD": 5, "MODEL.FREEZE_BN": False}
    words = ["-cfg", str(write_config(tmp_path, **options | SOURCE))]
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
    assert export(words) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert printed.out.count("checked: ") == 2  # against the network itself, one of the sizes odd
