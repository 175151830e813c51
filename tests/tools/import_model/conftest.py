"""Fixtures of the importer's tests."""

import pytest
import torch
from torchvision.models import resnet

from core.configs.defaults import cfg as defaults
from core.models import backbone, build_model
from core.utils.checkpoints import load_checkpoint, read_about
from tests.tools.import_model.references import DEPTHS, Caffe, randomise
from tools.import_model import __main__ as program


@pytest.fixture(autouse=True, scope="module")
def few_blocks():
    """Our ResNets with as many blocks as those of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("resnet101", "caffe_resnet101", "v1c_resnet101"):
            patch.setitem(backbone.ARCHITECTURES, name, (resnet.Bottleneck, DEPTHS))
        yield


def _given(content, folder):
    path = folder / "given.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    return path


@pytest.fixture
def imported(tmp_path, capsys):
    """imported(content, *options) → (the checkpoint that the program makes of a file with that content, its log)."""

    def run(content, *options):
        out = tmp_path / "out.pth"
        assert program.main([str(_given(content, tmp_path)), "-o", str(out), *options]) == 0, capsys.readouterr().err
        return out, capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def reference():
    """A network of ADVENT's kind."""
    torch.manual_seed(0)
    return randomise(Caffe("layer5"))


@pytest.fixture(scope="module")
def checkpoint(reference, few_blocks, tmp_path_factory):
    """What it is imported as."""
    folder = tmp_path_factory.mktemp("imported")
    assert program.main([str(_given(reference.state_dict(), folder)), "-o", str(folder / "out.pth")]) == 0
    return folder / "out.pth"


@pytest.fixture
def refused(tmp_path, capsys):
    """refused(content, *options) → the program's one line on a file with that content."""

    def run(content, *options):
        assert program.main([str(_given(content, tmp_path)), "-o", str(tmp_path / "out.pth"), *options]) == 1
        assert not (tmp_path / "out.pth").exists()
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture(scope="module")
def network(few_blocks):
    """network(checkpoint, freeze=True) → the network that a checkpoint says it is, with its weights, in float64.

    The next one of its kind is the same object.
    """
    built = {}

    def load(checkpoint, freeze=True):
        about = read_about(checkpoint)
        options = {"NAME": about["network"], "NUM_CLASSES": len(about["classes"]), "FREEZE_BN": freeze}
        config = defaults.changed({f"MODEL.{key}": value for key, value in options.items()})
        if str(options) not in built:
            built[str(options)] = build_model(config).double().eval()
        load_checkpoint(built[str(options)], checkpoint)
        return built[str(options)]

    return load
