"""Checkpoints (method §1): the published format in all its variants, errors that name what is wrong, safe writing."""

import json
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

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
