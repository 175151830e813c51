"""Networks: shapes, dilation, frozen batch norm and its folding, the classifier (method §1)."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet

from core.configs import cfg
from core.models import build_classifier, build_feature_extractor, build_model, log_network
from core.models.backbone import FrozenBatchNorm
from core.runs.resume import load_model
from core.utils.checkpoints import save_checkpoint

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
DILATIONS = {1: (1, 1), 2: (1, 1), 3: (1, 2), 4: (2, 4)}  # of a stage's first block and its others
STRIDES = {1: 1, 2: 2, 3: 1, 4: 1}  # of a stage's first block
BN_KEYS = {"weight", "bias", "running_mean", "running_var"}


def make_config(name="resnet18", freeze=True, classes=19):
    config = cfg.clone()
    config.MODEL.NAME, config.MODEL.FREEZE_BN, config.MODEL.NUM_CLASSES = f"deeplab_{name}", freeze, classes
    return config


def randomise_norms(module, seed=0, dead=False):
    """Draw every batch norm's four vectors; `dead`: every eighth channel of each has no variance."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, FrozenBatchNorm | nn.BatchNorm2d):
            shape = m.running_var.shape
            with torch.no_grad():
                m.weight.copy_(0.5 + torch.rand(shape, generator=generator))
                m.bias.copy_(0.3 * torch.randn(shape, generator=generator))
                m.running_mean.copy_(0.3 * torch.randn(shape, generator=generator))
                m.running_var.copy_(0.5 + torch.rand(shape, generator=generator))
                if dead:
                    m.running_var[::8] = 0
    return module


def image(height, width, dtype=torch.float32, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=dtype)


# --- architecture


@pytest.mark.parametrize("name", BLOCKS)
def test_dilation_and_stride_of_every_convolution(name):
    extractor = build_feature_extractor(make_config(name))
    modules = dict(extractor.named_modules())
    deep = name in ("resnet50", "resnet101")
    seen = 0
    for stage, count in enumerate(BLOCKS[name], start=1):
        for block in range(count):
            dilation = DILATIONS[stage][block > 0]
            stride = STRIDES[stage] if block == 0 else 1
            convs = {"conv1": (1, 1, 1), "conv2": (3, dilation, stride), "conv3": (1, 1, 1)}
            if not deep:
                convs = {"conv1": (3, dilation, stride), "conv2": (3, dilation, 1)}
            if block == 0 and (stage > 1 or deep):
                convs["downsample.0"] = (1, 1, stride)
            for conv, (kernel, wanted_dilation, wanted_stride) in convs.items():
                module = modules[f"backbone.layer{stage}.{block}.{conv}"]
                assert module.kernel_size == (kernel, kernel)
                assert module.dilation == (wanted_dilation, wanted_dilation), (stage, block, conv)
                assert module.stride == (wanted_stride, wanted_stride), (stage, block, conv)
                assert module.padding == ((kernel // 2) * wanted_dilation,) * 2
                seen += 1
    convolutions = [m for m in modules.values() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == seen + 1  # and the first one
    assert not any(isinstance(m, nn.Linear | nn.AdaptiveAvgPool2d) for m in modules.values())


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 40), (71, 8), (1, 1)])
def test_features_have_stride_8_for_any_size(size):
    extractor = build_feature_extractor(make_config()).eval()
    with torch.no_grad():
        features = extractor(image(*size))
    assert features.shape == (1, 512, -(-size[0] // 8), -(-size[1] // 8))


@pytest.mark.parametrize(("name", "channels"), [("resnet34", 512), ("resnet50", 2048)])
@pytest.mark.parametrize("freeze", [True, False])
def test_other_networks_have_stride_8_too(name, channels, freeze):
    model = build_model(make_config(name, freeze, classes=16)).eval()
    with torch.no_grad():
        assert model.feature_extractor(image(41, 50)).shape == (1, channels, 6, 7)
        assert model(image(41, 50)).shape == (1, 16, 6, 7)
        assert model(image(41, 50), size=(41, 50)).shape == (1, 16, 41, 50)


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_bottleneck_networks_equal_torchvisions(name):
    """torchvision's own network with batch norm of epsilon 0 in eval mode."""
    extractor = randomise_norms(build_feature_extractor(make_config(name))).eval()
    theirs = getattr(resnet, name)(
        replace_stride_with_dilation=[False, True, True], norm_layer=partial(nn.BatchNorm2d, eps=0.0)
    ).eval()
    state = {key.removeprefix("backbone."): value for key, value in extractor.state_dict().items()}
    problems = theirs.load_state_dict(state, strict=False)
    assert problems.unexpected_keys == []
    assert {key for key in problems.missing_keys if not key.endswith("num_batches_tracked")} == {"fc.weight", "fc.bias"}
    theirs.avgpool, theirs.fc = nn.Identity(), nn.Identity()
    with torch.no_grad():
        ours = extractor(image(33, 41))
        expected = theirs(image(33, 41)).view_as(ours)
    assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-3 * expected.abs().max())


# --- frozen batch norm


def plain_norm(x, prefix, state):
    weight, bias, mean, var = (
        state[f"{prefix}.{key}"].view(1, -1, 1, 1) for key in ("weight", "bias", "running_mean", "running_var")
    )
    alive = var > 0
    scale = weight / torch.where(alive, var, 1).sqrt()
    return torch.where(alive, x * scale + (bias - mean * scale), bias.expand_as(x))


def plain_resnet18(x, state):
    """Features of a dilated ResNet-18, layer after layer."""

    def convolve(x, prefix, stride=1, dilation=1):
        weight = state[f"{prefix}.weight"]
        return F.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation)

    x = plain_norm(convolve(x, "backbone.conv1", 2), "backbone.bn1", state).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            prefix, dilation = f"backbone.layer{stage}.{block}", DILATIONS[stage][block]
            stride = STRIDES[stage] if block == 0 else 1
            out = plain_norm(convolve(x, f"{prefix}.conv1", stride, dilation), f"{prefix}.bn1", state).relu()
            out = plain_norm(convolve(out, f"{prefix}.conv2", 1, dilation), f"{prefix}.bn2", state)
            if f"{prefix}.downsample.0.weight" in state:
                x = plain_norm(convolve(x, f"{prefix}.downsample.0", stride), f"{prefix}.downsample.1", state)
            x = (out + x).relu()
    return x


@pytest.mark.parametrize("dead", [False, True])
def test_folded_network_equals_the_plain_one_in_values_and_gradients(dead):
    extractor = randomise_norms(build_feature_extractor(make_config()), dead=dead).double().train()
    state = {key: value.detach().clone() for key, value in extractor.state_dict().items()}
    names = [name for name, _ in extractor.named_parameters()]
    for name in names:
        state[name].requires_grad_()
    x = image(33, 49, torch.float64, batch=2)
    expected, found = plain_resnet18(x, state), extractor(x)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert (expected > 0).float().mean() > 0.1
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad((expected * weights).sum(), [state[name] for name in names])
    (found * weights).sum().backward()
    for name, gradient in zip(names, wanted, strict=True):
        ours = extractor.get_parameter(name).grad
        assert gradient.abs().max() > 0
        assert torch.allclose(ours, gradient, rtol=1e-8, atol=1e-10 * gradient.abs().max().item()), name


def test_frozen_norm_has_no_epsilon():
    norm = FrozenBatchNorm(3).double()
    vectors = {"weight": [2.0, 1.0, -1.0], "bias": [0.5, 0.0, 1.0]}
    vectors |= {"running_mean": [1.0, -1e-4, 3.0], "running_var": [4.0, 1e-8, 0.25]}
    norm.load_state_dict({key: torch.tensor(values, dtype=torch.float64) for key, values in vectors.items()})
    x = torch.tensor([3.0, 1e-4, 1.0], dtype=torch.float64).view(1, 3, 1, 1)
    # (3 − 1)·2/2 + 0.5; (1e-4 + 1e-4)/1e-4; (1 − 3)·(−1)/0.5 + 1
    assert norm(x).flatten().tolist() == pytest.approx([2.5, 2.0, 5.0], rel=1e-9)


def test_a_channel_without_variance_gives_its_bias():
    norm = FrozenBatchNorm(3)
    norm.bias.copy_(torch.tensor([0.5, -2.0, 1.0]))
    norm.running_mean.copy_(torch.tensor([9.0, 9.0, 0.0]))
    norm.running_var.copy_(torch.tensor([0.0, 0.0, 1.0]))
    found = norm(torch.randn(2, 3, 4, 4))
    assert (found[:, 0] == 0.5).all()
    assert (found[:, 1] == -2).all()
    assert torch.isfinite(found).all()
    assert norm.dead_channels() == 2


def test_dead_channels_are_counted_in_one_log_line(tmp_path, log_lines):
    model = build_model(make_config())
    model.feature_extractor.get_buffer("backbone.bn1.running_var")[:3] = 0
    # too small for half precision: rounded away
    model.feature_extractor.get_buffer("backbone.layer4.1.bn2.running_var")[5] = 1e-9
    save_checkpoint(model.half(), tmp_path / "source.pth", 7)
    config = make_config()
    config.resume = str(tmp_path / "source.pth")
    loaded = load_model(config, torch.device("cpu")).eval()
    log_network(loaded)
    (line,) = log_lines
    assert line.startswith("4 channels")
    with torch.no_grad():
        assert torch.isfinite(loaded(image(16, 16))).all()


def test_frozen_norms_are_buffers_that_training_leaves_alone():
    extractor = randomise_norms(build_feature_extractor(make_config())).train()
    names = {name for name, _ in extractor.named_parameters()}
    assert len(names) == 20  # the convolutions of a ResNet-18
    assert all(extractor.get_parameter(name).dim() == 4 for name in names)
    keys = set(extractor.state_dict())
    norms = [name for name, m in extractor.named_modules() if isinstance(m, FrozenBatchNorm)]
    assert len(norms) == 20
    assert keys - names == {f"{name}.{key}" for name in norms for key in BN_KEYS}
    before = copy.deepcopy(dict(extractor.named_buffers()))
    optimizer = torch.optim.SGD(extractor.parameters(), lr=0.1, weight_decay=5e-4)
    extractor(image(24, 24, batch=2)).sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in extractor.named_buffers())


def test_without_freezing_batch_norm_is_trained():
    extractor = build_feature_extractor(make_config(freeze=False)).train()
    assert "backbone.bn1.weight" in dict(extractor.named_parameters())
    before = extractor.get_buffer("backbone.bn1.running_mean").clone()
    extractor(image(24, 24, batch=2))
    assert not torch.equal(extractor.get_buffer("backbone.bn1.running_mean"), before)
    assert not any(isinstance(m, FrozenBatchNorm) for m in extractor.modules())


def test_a_copy_of_a_folded_model_is_independent():
    model = randomise_norms(build_model(make_config())).eval()
    twin = copy.deepcopy(model)
    x = image(24, 32)
    with torch.no_grad():
        before = model(x)
        assert torch.equal(twin(x), before)
        for buffer in twin.buffers():
            buffer.mul_(1.1)
        changed = twin(x)
        assert not torch.allclose(changed, before)  # the copy's convolutions read the copy's norms
        assert torch.equal(model(x), before)
        for buffer in model.buffers():
            buffer.mul_(1.1)
        assert torch.equal(model(x), changed)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(model(x), changed)


def test_a_state_loaded_after_folding_takes_effect():
    first, second = (randomise_norms(build_model(make_config()), seed).eval() for seed in (1, 2))
    x = image(24, 32)
    with torch.no_grad():
        assert not torch.allclose(first(x), second(x))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(x), second(x))
        assert first.double()(x.double()).dtype == torch.float64


# --- classifier and whole model


def test_classifier_weights_are_normal_with_standard_deviation_001():
    torch.manual_seed(0)
    classifier = build_classifier(make_config("resnet101"))
    assert [tuple(conv.weight.shape) for conv in classifier.conv2d_list] == [(19, 2048, 3, 3)] * 4
    for conv in classifier.conv2d_list:
        weight = conv.weight.detach().flatten()
        assert weight.std().item() == pytest.approx(0.01, rel=0.01)
        assert abs(weight.mean().item()) < 1e-4
        assert (weight.abs() < 0.01).float().mean().item() == pytest.approx(0.6827, abs=0.01)  # a normal's share
        assert conv.bias is not None


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_classifier_fits_its_network(name, channels):
    classifier = build_classifier(make_config(name, classes=11))
    assert {conv.in_channels for conv in classifier.conv2d_list} == {channels}
    assert {conv.out_channels for conv in classifier.conv2d_list} == {11}


def test_classifier_sums_four_dilated_convolutions():
    classifier = build_classifier(make_config()).double()
    features = torch.randn(2, 512, 9, 13, dtype=torch.float64)
    expected = 0
    for k, rate in enumerate((6, 12, 18, 24)):
        weight, bias = (classifier.state_dict()[f"conv2d_list.{k}.{key}"] for key in ("weight", "bias"))
        expected = expected + F.conv2d(features, weight, bias, padding=rate, dilation=rate)
    with torch.no_grad():
        assert torch.allclose(classifier(features), expected, rtol=1e-9, atol=1e-12)


def test_size_upsamples_with_aligned_corners():
    model = build_model(make_config()).eval()
    with torch.no_grad():
        small, large = model(image(40, 56)), model(image(40, 56), size=(37, 61))
    assert small.shape == (1, 19, 5, 7)
    for y in (0, 20, 36):
        for x in (0, 33, 60):
            row, column = y * 4 / 36, x * 6 / 60
            r, c = min(int(row), 3), min(int(column), 5)
            v, u = row - r, column - c
            upper = small[..., r, c] * (1 - u) + small[..., r, c + 1] * u
            lower = small[..., r + 1, c] * (1 - u) + small[..., r + 1, c + 1] * u
            assert torch.allclose(large[..., y, x], upper * (1 - v) + lower * v, rtol=1e-3, atol=1e-5)


def test_logits_are_no_probabilities():
    model = build_model(make_config()).eval()
    with torch.no_grad():
        logits = model(image(24, 24))
    assert (logits < 0).any()
    assert not torch.allclose(logits.sum(1), torch.ones(1, 3, 3))


def test_autocast_gives_float32_logits():
    model = build_model(make_config()).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = model(image(24, 24))
    with torch.no_grad():
        full = model(image(24, 24))
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert torch.allclose(half, full, rtol=0.1, atol=0.1 * full.abs().max().item())
