"""What a network of one's own may give and take, tried when it is built."""

import inspect
import sys
from collections import OrderedDict, namedtuple
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from core.configs import cfg
from core.models import build_model, own_network
from core.models.own_network import MULTIPLES, STRIDES
from core.runs.solver import Solver
from core.utils.errors import UserError

CLASSES = 5
Pair = namedtuple("Pair", "loss logits")


@pytest.fixture
def built(monkeypatch):
    """built(function, **options) → build_model of MODEL.NAME own_outputs:build, which is the function."""

    def build(function, **options):
        module = ModuleType("own_outputs")
        module.build = function
        monkeypatch.setitem(sys.modules, "own_outputs", module)
        options = {f"MODEL.{key}": value for key, value in options.items()}
        return build_model(cfg.changed({"MODEL.NUM_CLASSES": CLASSES, "MODEL.NAME": "own_outputs:build"} | options))

    return build


class Wrapped(nn.Module):
    """A network, and what is made of its output."""

    def __init__(self, finish=lambda logits: logits, channels=CLASSES, stride=4):
        super().__init__()
        self.body = nn.Conv2d(3, channels, 2 * stride - 1, stride=stride, padding=stride - 1)
        self.finish = finish

    def forward(self, image):
        return self.finish(self.body(image))


class Demanding(Wrapped):
    """Refuses what is not in multiples."""

    def __init__(self, multiple):
        super().__init__()
        self.multiple, self.seen = multiple, None

    def forward(self, image):
        if any(side % self.multiple for side in image.shape[-2:]):
            raise RuntimeError(f"sides must be multiples of {self.multiple}")
        self.seen = image
        return super().forward(image)


class UNet(nn.Module):
    """Two levels with skip connections, which fit only where sides are multiples of 4."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, CLASSES, 1)

    def forward(self, image):
        high = self.first(image)
        low = F.max_pool2d(self.second(F.max_pool2d(high, 2)), 2)
        return self.last(torch.cat([high, F.interpolate(low, scale_factor=4.0)], 1))


IMAGE = torch.randn(2, 3, 45, 61, generator=torch.Generator().manual_seed(1))
PACKED = {
    "tensor": lambda logits: logits,
    "torchvision": lambda logits: OrderedDict(out=logits, aux=logits[:, :1]),
    "transformers": lambda logits: OrderedDict(loss=None, logits=logits, hidden_states=()),
    "object": lambda logits: SimpleNamespace(logits=logits),
    "named tuple": lambda logits: Pair(None, logits),
    "tuple": lambda logits: (logits, logits.mean()),
    "list of tuples": lambda logits: [(logits, None), None],
    "bfloat16": lambda logits: logits.bfloat16(),
}


@pytest.mark.parametrize("name", PACKED)
def test_outputs_are_unpacked(built, name):
    model = built(lambda _: Wrapped(PACKED[name]))
    found, expected = model(IMAGE), model.feature_extractor.body(IMAGE)
    assert found.dtype == torch.float32
    assert found.shape == (2, CLASSES, 12, 16)
    assert torch.allclose(found, expected, atol=0.02 if name == "bfloat16" else 0)
    assert (model.stride, model.multiple) == (4, 1)


def test_a_pair_may_hand_over_whatever_it_likes(built):
    class Last(nn.Module):
        def forward(self, given):
            return {"out": given["features"][:, :CLASSES]}

    model = built(lambda _: (Wrapped(lambda x: {"features": x}, CLASSES + 2, stride=8), Last()))
    assert model(IMAGE).shape == (2, CLASSES, 6, 8)
    assert model(IMAGE, (45, 61)).shape == (2, CLASSES, 45, 61)


@pytest.mark.parametrize("multiple", MULTIPLES)
def test_sizes_that_must_be_multiples_are_padded_and_cropped(built, multiple):
    model = built(lambda _: Demanding(multiple))
    assert (model.multiple, model.stride) == (multiple, 4)
    logits = model(IMAGE)
    assert logits.shape == (2, CLASSES, 12, 16)
    below, right = -45 % multiple, -61 % multiple
    padded = F.pad(IMAGE, (0, right, 0, below), mode="replicate")
    assert torch.equal(model.feature_extractor.seen, padded)
    assert torch.equal(logits, model.feature_extractor.body(padded)[..., :12, :16])
    whole = model(IMAGE[..., :1, :1].expand(-1, -1, multiple, 2 * multiple))  # nothing to pad
    assert model.feature_extractor.seen.shape[-2:] == (multiple, 2 * multiple)
    assert whole.shape[-2:] == (-(-multiple // 4), -(-2 * multiple // 4))


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("multiple", [1, 2, 4, 8, 14, 32])
@pytest.mark.parametrize("up", [False, True])
def test_every_stride_is_told_whether_points_round_down_or_up(built, stride, multiple, up):
    class Pooled(Demanding):
        def forward(self, image):
            return F.avg_pool2d(super().forward(image), stride, ceil_mode=up)

    network = Pooled(multiple)
    network.body = nn.Conv2d(3, CLASSES, 1)
    model = built(lambda _: network)
    assert (model.stride, model.multiple) == (stride, multiple)


def test_skip_connections_that_fit_only_some_sizes(built):
    model = built(lambda _: UNet())
    assert (model.multiple, model.stride) == (4, 1)
    assert model(IMAGE).shape == (2, CLASSES, 45, 61)


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("multiple", [32, 64])
def test_one_that_pads_inside_but_does_not_crop(built, multiple, stride):
    """Where a point lies does not depend on the size of the image."""

    class Padding(Wrapped):
        def forward(self, image):
            return super().forward(F.pad(image, (0, -image.shape[-1] % multiple, 0, -image.shape[-2] % multiple)))

    model = built(lambda _: Padding(stride=stride))
    assert model.stride == stride
    assert model(IMAGE).shape[-2:] == (-(-45 // stride), -(-61 // stride))


def test_one_of_a_single_size(built):
    class Fixed(Wrapped):
        def forward(self, image):
            if image.shape[-2:] != (512, 1024):
                raise ValueError("only 1024×512")
            return super().forward(image)

    assert tuple(cfg.INPUT.INPUT_SIZE_TEST) == (1024, 512)
    model = built(lambda _: Fixed(stride=16))
    assert (model.multiple, model.stride) == (1, 16)


REFUSED = {
    "more channels": (Wrapped(channels=6), "gives 6 channels", "CLASSES_OUT", "[1, 2, 3, …]"),
    "fewer channels": (Wrapped(channels=1), "gives 1 channels", "NUM_CLASSES is 5"),
    "softmax": (Wrapped(lambda x: x.softmax(1)), "probabilities (a softmax", "not logits"),
    "sigmoid": (Wrapped(lambda x: {"out": x.sigmoid()}), "probabilities (a sigmoid"),
    "flat": (Wrapped(lambda x: x.flatten(1)), "its output for one image is 1×", "float32", "B×C×h×w"),
    "labels": (Wrapped(lambda x: x.argmax(1, keepdim=True)), "int64", "B×C×h×w"),
    "squeezed": (Wrapped(lambda x: x.squeeze(0)), "its output for one image is 5×", "B×C×h×w"),
    "other keys": (Wrapped(lambda x: {"pred": x, "aux": x}), "a dict with pred, aux", "out or logits"),
    "nothing": (Wrapped(lambda x: None), "a NoneType that holds no tensor"),
    "no stride": (nn.Conv2d(3, CLASSES, 3), "points for", "no stride", "padding"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(built, name):
    network, *words = REFUSED[name]
    with pytest.raises(UserError) as caught:
        built(lambda _: network)
    assert str(caught.value).startswith("MODEL.NAME own_outputs:build: ")
    assert [word for word in words if word not in str(caught.value)] == []


def test_logits_that_happen_to_lie_between_0_and_1(built):
    network = Wrapped()
    with torch.no_grad():
        network.body.weight.mul_(1e-3)
        network.body.bias.fill_(0.5)
    assert 0 < network(IMAGE).min() < network(IMAGE).max() < 1
    assert built(lambda _: network).stride == 4


def test_log_probabilities_and_a_head_of_zeros_are_logits(built):
    assert built(lambda _: Wrapped(lambda x: x.log_softmax(1))).stride == 4
    network = Wrapped()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    assert built(lambda _: network).stride == 4


@pytest.mark.parametrize("channels", [(1, 2, 3, 4, 5), (6, 0, 3, 2, 5)])
def test_channels_of_the_classes(built, channels):
    model = built(lambda _: Wrapped(channels=7), CLASSES_OUT=channels)
    assert torch.equal(model(IMAGE), model.feature_extractor.body(IMAGE)[:, list(channels)])
    assert {key.split(".")[-1] for key in model.state_dict()} == {"weight", "bias"}  # as without it


@pytest.mark.parametrize(
    ("channels", "words"), [((0, 1), "names 2 channels"), ((0, 1, 2, 3, 7), "names channel 7, but own_outputs:build")]
)
def test_channels_that_are_not_there(built, channels, words):
    with pytest.raises(UserError, match=f"MODEL.CLASSES_OUT {words}"):
        built(lambda _: Wrapped(channels=7), CLASSES_OUT=channels)


def test_channels_are_for_own_networks():
    with pytest.raises(UserError, match=r"CLASSES_OUT is for networks of your own"):
        build_model(cfg.changed({"MODEL.CLASSES_OUT": tuple(range(19))}))


def failing(_):
    return torch.zeros(3).view(2)  # an error that torch raises


def test_an_error_in_build_has_its_place(built):
    line = inspect.getsourcelines(failing)[1] + 1
    with pytest.raises(UserError) as caught:
        built(failing)
    assert f"build(cfg) fails: RuntimeError: shape '[2]' is invalid for input of size 3, at {__file__}:{line}" in str(
        caught.value
    )


class Broken(Wrapped):
    def forward(self, image):
        return super().forward(image.view(-1))


def test_an_error_in_forward_has_its_place(built):
    line = inspect.getsourcelines(Broken)[1] + 2
    with pytest.raises(UserError) as caught:
        built(lambda _: Broken())
    assert "a forward of a 3×512×1024 image fails: " in str(caught.value)
    assert str(caught.value).endswith(f"at {__file__}:{line}")


def test_an_error_in_a_library_behind_a_link_has_the_users_place(tmp_path, monkeypatch):
    """As where .venv is a link."""
    for folder, name, text in (
        ("packages", "their_library", "def fail():\n    raise ValueError('deep inside')\n"),
        ("own", "own_user", "import their_library\n\n\ndef build(cfg):\n    their_library.fail()\n"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text(text)
    (tmp_path / "linked").symlink_to(tmp_path / "packages")
    for folder in ("linked", "own"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    monkeypatch.setattr(own_network, "_LIBRARIES", (str((tmp_path / "packages").resolve()),))
    with pytest.raises(UserError, match=r"ValueError: deep inside, at .*own/own_user\.py:5$"):
        build_model(cfg.changed({"MODEL.NAME": "own_user:build"}))


def test_an_error_at_import_has_its_place(tmp_path, monkeypatch):
    (tmp_path / "own_mistake.py").write_text("import torch\n\n\ndepth = deph + 1\n")
    (tmp_path / "own_typo.py").write_text("import torch\ndef build(cfg:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, line, words in (("own_mistake", 4, "'deph' is not defined"), ("own_typo", 2, "SyntaxError")):
        with pytest.raises(UserError) as caught:
            build_model(cfg.changed({"MODEL.NAME": f"{name}:build"}))
        assert words in str(caught.value)
        assert f"at {tmp_path / name}.py:{line};" in str(caught.value)


def test_a_network_is_what_it_was_after_it_was_tried(built):
    """Statistics, modes, gradients, random numbers."""
    network = nn.Sequential(nn.Conv2d(3, CLASSES, 1), nn.BatchNorm2d(CLASSES), nn.Dropout(0.5))
    network[2].eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    model = built(lambda _: network)
    assert torch.equal(torch.rand(2), expected)
    assert [module.training for module in network] == [True, True, False]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert model.feature_extractor is network
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_network_of_torchvision_is_one_module(built):
    """Its `classifier` learns at ten times the rate, each of its parameters in one group."""
    model = built(lambda c: deeplabv3_mobilenet_v3_large(weights_backbone=None, num_classes=c.MODEL.NUM_CLASSES))
    assert (model.stride, model.multiple) == (1, 1)  # it resizes itself
    assert len(model.classifier.state_dict()) == 0
    groups = Solver(model, cfg.SOLVER).optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {group["lr_factor"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}
    assert {name.split(".")[1] for name in found[1]} == {"backbone"}
    assert {name.split(".")[1] for name in found[10]} == {"classifier"}
    assert found[1] | found[10] == set(names.values())


def test_a_module_without_a_classifier_learns_at_one_rate(built):
    model = built(lambda _: Wrapped())
    solver = Solver(model, cfg.SOLVER)
    assert [(group["lr_factor"], len(group["params"])) for group in solver.optimizer.param_groups] == [(1, 2)]
    solver.backward(model(IMAGE).square().mean())
    assert solver.speed() > 0


class Mixed(nn.Module):
    """A batch norm on the image's mean, one on the map; an unused head, a frozen layer, dropout; multiples of 32."""

    def __init__(self):
        super().__init__()
        self.body, self.frozen = nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.norm, self.pooled, self.drop = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Dropout2d(0.5)
        self.classifier, self.aux = nn.Conv2d(4, CLASSES, 1), nn.Conv2d(4, CLASSES, 1)

    def forward(self, image):
        if image.shape[-1] % 32 or image.shape[-2] % 32:
            raise ValueError("multiples of 32, please")
        x = self.norm(self.frozen(self.body(image)))
        x = self.drop(x + self.pooled(x.mean((2, 3), keepdim=True)))
        return self.classifier(x), self.aux(x)


def test_parameters_without_part_in_the_output(built):
    model = built(lambda _: Mixed(), CLASSES_OUT=(4, 3, 2, 1, 0))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert model.idle_parameters() == ["feature_extractor.aux.weight", "feature_extractor.aux.bias"]
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert built(lambda _: UNet()).idle_parameters() == []


def test_batch_norms_that_see_one_value(built):
    assert built(lambda _: Mixed()).pooled_norms == ("feature_extractor.pooled",)
    model = built(lambda _: deeplabv3_mobilenet_v3_large(weights_backbone=None, num_classes=CLASSES))
    assert model.pooled_norms == ("feature_extractor.classifier.0.convs.4.2",)
    assert not any(module._forward_pre_hooks for module in model.modules())
