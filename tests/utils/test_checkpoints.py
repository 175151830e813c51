"""Checkpoints (method §1): the published format in all its variants, errors that name what is wrong, safe writing."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from core.models.backbone import FrozenBatchNorm
from core.models.deeplab import Segmentor
from core.models.own_network import OwnNetwork
from core.runs.resume import load_model
from core.utils.checkpoints import load_checkpoint, load_imagenet_weights, save_checkpoint
from core.utils.errors import UserError
from tests.utils.weights import PARTS, blank, logits, make_config, make_model, make_tiny, published

SHAPES = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "checkpoint_shapes.json"
VARIANTS = {
    "plain": {},
    "module": {"prefix": "module."},
    "tracked": {"tracked": True},
    "half": {"half": True},
    "all": {"prefix": "module.", "tracked": True, "half": True},
}


def check_variant(source, target, options, folder):
    """Load a published file, save, load again: the same logits all the way; leaves no file behind."""
    first, second = folder / "published.pth", folder / "ours.pth"
    try:
        torch.save(published(source, **options), first)
        assert load_checkpoint(blank(target), first) == 20000
        assert {tensor.dtype for tensor in target.parameters()} == {torch.float32}
        before = logits(target)
        expected = logits(source)
        tolerance = 0.05 if options.get("half") else 1e-6
        assert (before - expected).abs().max() <= tolerance * expected.abs().max()
        save_checkpoint(target, second, 77)
        assert load_checkpoint(blank(target), second) == 77
        assert torch.equal(logits(target), before)
    finally:
        first.unlink(missing_ok=True)  # of a ResNet-101, half a gigabyte in all
        second.unlink(missing_ok=True)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_of_the_published_format_loads(tmp_path, options):
    check_variant(make_tiny(seed=1), make_tiny(seed=2), options, tmp_path)


def test_resnet101_has_the_published_keys_and_shapes_and_loads(tmp_path):
    source = make_model("resnet101", seed=1)
    assert logits(source).std() > 1e-3
    check_variant(source, make_model("resnet101", seed=2), VARIANTS["all"], tmp_path)
    if not SHAPES.exists():
        pytest.skip("the list of the published keys lies outside of this repository")
    wanted = json.loads(SHAPES.read_text(encoding="utf-8"))
    for part in PARTS:
        found = {key: list(value.shape) for key, value in getattr(source, part).state_dict().items()}
        assert found == wanted[part]


def test_saved_file_is_the_published_format(tmp_path):
    model = make_model()
    save_checkpoint(model, tmp_path / "a.pth", 1234)
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert set(content) >= {"iteration", *PARTS}
    assert (type(content["iteration"]), content["iteration"]) == (int, 1234)
    keys = content["feature_extractor"].keys()
    assert {"backbone.conv1.weight", "backbone.bn1.running_var", "backbone.layer4.1.conv2.weight"} <= keys
    assert content["classifier"].keys() == {f"conv2d_list.{k}.{kind}" for k in range(4) for kind in ("weight", "bias")}
    assert not any(key.endswith("num_batches_tracked") or key.startswith("module.") for key in keys)
    for part in PARTS:
        for key, value in content[part].items():
            assert torch.equal(value, getattr(model, part).state_dict()[key])
            assert value.dtype == torch.float32
            assert value.is_contiguous()
            assert not value.requires_grad


def test_unfrozen_batch_norm_survives_and_loads_into_a_frozen_one(tmp_path):
    trained = make_model(seed=1, freeze=False)
    save_checkpoint(trained, tmp_path / "a.pth", 5)
    again = blank(make_model(seed=2, freeze=False))
    load_checkpoint(again, tmp_path / "a.pth")
    assert torch.equal(logits(again), logits(trained))
    frozen = blank(make_model(seed=3))
    load_checkpoint(frozen, tmp_path / "a.pth")
    # epsilon apart (1e-5 of variances of about 1), the two are the same
    assert torch.allclose(logits(frozen), logits(trained), rtol=1e-2, atol=1e-3)
    save_checkpoint(frozen, tmp_path / "b.pth", 5)
    load_checkpoint(again, tmp_path / "b.pth")  # back again, without the counters


@pytest.mark.parametrize("second", [FrozenBatchNorm, nn.BatchNorm2d])
@pytest.mark.parametrize("first", [FrozenBatchNorm, nn.BatchNorm2d])
def test_an_epsilon_in_the_variances_is_there_once_whatever_norms_read_and_write_them(tmp_path, first, second):
    path, about = tmp_path / "imported.pth", {"bn_eps": 1e-5}
    variance = torch.tensor([1e-6, 0.3])
    state = {"0.running_var": variance + 1e-5, **{f"0.{name}": torch.ones(2) for name in ("weight", "bias")}}
    state["0.running_mean"] = torch.ones(2)
    torch.save({"about": about, "feature_extractor": state, "classifier": {}}, path)
    image = torch.randn(1, 2, 3, 3)
    expected = (image - 1) / (variance + 1e-5).sqrt().view(-1, 1, 1) + 1
    for norm in (first, second):
        model = Segmentor(nn.Sequential(norm(2)), nn.Sequential()).eval()
        model.about = about
        load_checkpoint(model, path)
        torch.testing.assert_close(model(image), expected)
        save_checkpoint(model, path, 1)


@pytest.mark.parametrize("iteration", [None, "later", torch.tensor(3)])
def test_a_file_with_other_keys_or_without_a_number_of_iterations_loads(tmp_path, iteration):
    model = make_tiny(seed=1)
    content = published(model) | {"iteration": iteration, "optimizer": {"state": {}}, "running_conf": torch.zeros(19)}
    if iteration is None:
        del content["iteration"]
    torch.save(content, tmp_path / "a.pth")
    target = blank(make_tiny())
    assert load_checkpoint(target, tmp_path / "a.pth") in (0, 3)
    assert torch.equal(logits(target), logits(model))


# --- states that others have saved


class Net(nn.Module):
    """A network whose names begin with what a wrapper might have put there, or do not."""

    def __init__(self, name, head=True):
        super().__init__()
        body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.add_module(name, body)
        if head:
            self.classifier = nn.Conv2d(4, 2, 1)


def own(module, *more):
    return OwnNetwork(module, *(more or (None,)), "mine:build")


def with_prefix(state, prefix):
    return {prefix + key: value for key, value in state.items()}


WRAPPED = {
    "as it is": lambda state: state,
    "DataParallel": lambda state: with_prefix(state, "module."),
    "compiled": lambda state: {"model": with_prefix(state, "_orig_mod."), "epoch": 3},
    "compiled and parallel": lambda state: {"state_dict": with_prefix(state, "module._orig_mod.")},
    "Lightning": lambda state: {
        "pytorch-lightning_version": "2.5", "state_dict": with_prefix(state, "net."), "optimizer_states": [], "epoch": 1
    },
    "engine": lambda state: {"iteration": 7, "module": with_prefix(state, "model."), "optimizer": {"state": {}}},
    "without counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "half": lambda state: {key: value.half() for key, value in state.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", ["body", "module", "net", "model"])
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_state_that_fits_loads_into_one_module(tmp_path, wrapped, name):
    """Also where all names of the network itself begin with a prefix that wrappers have."""
    for head in (True, False):
        source, target = Net(name, head), own(Net(name, head))
        before = source.state_dict()
        torch.save(WRAPPED[wrapped](before), tmp_path / "a.pth")
        assert load_checkpoint(blank(target), tmp_path / "a.pth") == (7 if wrapped == "engine" else 0)
        found = target.feature_extractor.state_dict()
        tolerance = 1e-3 if wrapped == "half" else 0
        assert all(torch.allclose(found[k], v, atol=tolerance) for k, v in before.items() if v.is_floating_point())


def test_a_state_of_the_inner_network_loads_into_its_wrapper(tmp_path):
    source = Net("net", head=False)
    torch.save(source.net.state_dict(), tmp_path / "a.pth")
    target = own(Net("net", head=False))
    load_checkpoint(blank(target), tmp_path / "a.pth")
    assert torch.equal(target.feature_extractor.net[0].weight, source.net[0].weight)


def test_a_state_of_the_whole_loads_into_a_pair_and_into_the_published_networks(tmp_path):
    pair = own(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    for source, target in ((pair, own(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))), (make_tiny(seed=1), make_tiny(seed=2))):
        torch.save(with_prefix(source.state_dict(), "module."), tmp_path / "a.pth")
        load_checkpoint(blank(target), tmp_path / "a.pth")
        assert all(map(torch.equal, source.parameters(), target.parameters()))


def test_compiled_parts_of_the_published_format_load(tmp_path):
    source, target = make_tiny(seed=1), make_tiny(seed=2)
    torch.save(published(source, prefix="_orig_mod."), tmp_path / "a.pth")
    load_checkpoint(blank(target), tmp_path / "a.pth")
    assert torch.equal(logits(source), logits(target))


def test_a_state_that_does_not_fit_is_told_by_its_names(tmp_path):
    target = own(Net("net"))
    state = Net("net").state_dict() | {"aux.weight": torch.zeros(1), "classifier.bias": torch.zeros(3)}
    del state["net.0.bias"]
    for content in (state, {"state_dict": with_prefix(state, "module.")}):
        torch.save(content, tmp_path / "a.pth")
        before = [parameter.clone() for parameter in target.parameters()]
        with pytest.raises(UserError, match=r"a\.pth does not fit the model: ") as caught:
            load_checkpoint(target, tmp_path / "a.pth")
        told = ("missing: net.0.bias", "unexpected: aux.weight", "classifier.bias is 3 in the file, 2 in the model")
        assert [words for words in told if words not in str(caught.value)] == []
        assert all(map(torch.equal, before, target.parameters()))


def test_what_holds_no_state_of_the_network_is_refused(tmp_path):
    around = {"epoch": 3}
    around["model"] = around  # itself
    other = {"state_dict": {"other.weight": torch.zeros(2)}}
    for content in (around, other, {"state_dict": {}}, {"model": {"net.0.weight": "text"}}, {}):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(UserError, match=r"a\.pth is not a segmentation checkpoint: it lacks"):
            load_checkpoint(own(Net("net")), tmp_path / "a.pth")


def test_a_state_with_numbers_that_are_none_is_refused(tmp_path):
    state = Net("net").state_dict()
    state["net.0.weight"][0] = torch.nan
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth is ruined: net\.0\.weight has 3 of its 12 numbers NaN"):
        load_checkpoint(own(Net("net")), tmp_path / "a.pth")


# --- where the weights of a run come from


def test_imagenet_weights_load_without_their_last_layer(tmp_path):
    torch.manual_seed(3)
    network = resnet18()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    model = make_model()
    load_imagenet_weights(model.feature_extractor, tmp_path / "resnet18.pth")
    state = model.feature_extractor.state_dict()
    assert all(
        torch.equal(state[f"backbone.{key}"], value)
        for key, value in network.state_dict().items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    )
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS .*resnet18\.pth"):
        load_imagenet_weights(make_model("resnet34").feature_extractor, tmp_path / "resnet18.pth")
    state = network.state_dict()
    state["fc.bias"][0] = float("nan")  # which is not used
    torch.save(state, tmp_path / "resnet18.pth")
    load_imagenet_weights(model.feature_extractor, tmp_path / "resnet18.pth")
    state["layer1.0.bn1.weight"][0] = float("inf")
    torch.save(state, tmp_path / "resnet18.pth")
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS .*resnet18\.pth is ruined: backbone\.layer1\.0\.bn1\.weight"):
        load_imagenet_weights(model.feature_extractor, tmp_path / "resnet18.pth")


def test_resume_needs_no_imagenet_weights(tmp_path):
    source = make_model(seed=4)
    save_checkpoint(source, tmp_path / "source.pth", 9)
    config = make_config()
    config.MODEL.WEIGHTS, config.resume = str(tmp_path / "absent.pth"), str(tmp_path / "source.pth")
    model = load_model(config, torch.device("cpu")).eval()
    assert torch.equal(logits(model), logits(source))
    config.resume = ""
    with pytest.raises(UserError, match=r"absent\.pth"):
        load_model(config, torch.device("cpu"))
    config.MODEL.WEIGHTS = ""
    first, second = (load_model(config, torch.device("cpu")).eval() for _ in range(2))
    assert torch.equal(logits(first), logits(second))  # random, but of SEED


def test_names_of_classes_travel_with_the_weights_and_are_compared(tmp_path, log_lines):
    first, second = make_model(), make_model()
    names = ["road", "car", *map(str, range(17))]
    first.about = {"classes": names}
    save_checkpoint(first, tmp_path / "a.pth", 3)
    assert torch.load(tmp_path / "a.pth", weights_only=True)["about"] == {"classes": names}
    assert load_checkpoint(second, tmp_path / "a.pth") == 3  # it has no names
    second.about = first.about
    assert load_checkpoint(second, tmp_path / "a.pth") == 3
    second.about = {"classes": ["Road", "CAR", *names[2:]]}
    assert load_checkpoint(second, tmp_path / "a.pth") == 3
    assert log_lines == []
    second.about = {"classes": ["car", "road", *names[2:]]}
    with pytest.raises(UserError, match=r"a\.pth has its classes in another order: class 0 is 'road' there, 'car' in"):
        load_checkpoint(second, tmp_path / "a.pth")
    second.about = {"classes": ["road", "automobile", *names[2:]]}  # in other words, perhaps
    assert load_checkpoint(second, tmp_path / "a.pth") == 3
    assert log_lines == [
        f"{tmp_path / 'a.pth'} names its classes otherwise: class 1 is 'car' there, 'automobile' in the config"
    ]
    for about in ({"classes": ["road"]}, {"classes": "road"}, {}, [], None):  # nothing to be compared
        content = torch.load(tmp_path / "a.pth", weights_only=True) | {"about": about}
        torch.save(content, tmp_path / "b.pth")
        assert load_checkpoint(second, tmp_path / "b.pth") == 3
