"""DSU against the formula in numpy, and its place in the network."""

import numpy as np
import pytest
import torch

from core.configs import cfg
from core.models import build_feature_extractor, build_model
from core.models.dsu import DSU, perturb_statistics

POSITIONS = range(6)


@pytest.fixture
def maps():
    """4×3×5×7 feature maps whose channels and samples differ in mean and spread."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(4, 3, 1, 1, generator=generator) * 3 + 0.2
    return torch.randn(4, 3, 5, 7, generator=generator) * scale + 5 * scale


def perturbed_by_hand(x, noise_mean, noise_std):
    """Method §1, DSU, in loops over samples and channels; unbiased variances throughout."""
    x = x.astype(np.float64)
    batch, channels = x.shape[:2]
    mean, std = np.empty((batch, channels)), np.empty((batch, channels))
    for b in range(batch):
        for c in range(channels):
            pixels = x[b, c].ravel()
            mean[b, c] = pixels.sum() / pixels.size
            std[b, c] = np.sqrt(((pixels - mean[b, c]) ** 2).sum() / (pixels.size - 1) + 1e-6)
    out = np.empty_like(x)
    for c in range(channels):
        spread_mean = np.sqrt(((mean[:, c] - mean[:, c].mean()) ** 2).sum() / (batch - 1) + 1e-6)
        spread_std = np.sqrt(((std[:, c] - std[:, c].mean()) ** 2).sum() / (batch - 1) + 1e-6)
        for b in range(batch):
            beta = mean[b, c] + noise_mean[b, c] * spread_mean
            gamma = std[b, c] + noise_std[b, c] * spread_std
            out[b, c] = (x[b, c] - mean[b, c]) / std[b, c] * gamma + beta
    return out


def test_the_formula(maps, monkeypatch):
    noises = [torch.randn(4, 3, 1, 1, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    given = iter(noises)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: next(given))
    expected = perturbed_by_hand(maps.numpy(), *(noise[..., 0, 0].numpy() for noise in noises))
    np.testing.assert_allclose(perturb_statistics(maps).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_noise_is_normal_and_independent_of_the_pixels(maps):
    """Over many draws mean and spread of a map scatter about their own values with the batch's spread."""
    torch.manual_seed(0)
    draws = torch.stack([perturb_statistics(maps) for _ in range(4000)])[:, 0, 0]
    means = draws.mean(dim=(-2, -1))
    own = maps.mean(dim=(2, 3))
    spread = own[:, 0].std()
    assert means.mean().item() == pytest.approx(own[0, 0].item(), abs=4 * spread.item() / 4000**0.5)
    assert means.std().item() == pytest.approx(spread.item(), rel=0.05)
    stds = draws.std(dim=(-2, -1), keepdim=True)
    shape = ((draws - means[:, None, None]) / stds)[stds.flatten() > 0.1].abs()  # a negative γ mirrors the map
    expected = ((maps[0, 0] - maps[0, 0].mean()) / maps[0, 0].std()).abs()
    assert torch.allclose(shape, expected.expand_as(shape), atol=1e-3)  # but nothing else changes


def test_gradients_flow_through_the_statistics(maps):
    x = maps.double()[:2, :1, :2, :2].clone().requires_grad_()

    def fixed_noise(values):
        torch.manual_seed(3)
        return perturb_statistics(values)

    assert torch.autograd.gradcheck(fixed_noise, x)


def test_identity_in_eval_mode_and_with_probability_0(maps):
    assert DSU(1.0).eval()(maps) is maps
    assert DSU(0.0).train()(maps) is maps


def test_the_coin_falls_once_per_batch_with_the_given_probability(maps):
    torch.manual_seed(0)
    layer = DSU(0.3).train()
    acted = [layer(maps) is not maps for _ in range(3000)]
    assert np.mean(acted) == pytest.approx(0.3, abs=4 * (0.21 / 3000) ** 0.5)


@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (4, 3, 1, 1)])
def test_without_a_variance_nothing_happens_and_nothing_is_nan(shape):
    x = torch.randn(shape)
    assert torch.equal(DSU(1.0).train()(x), x)


def test_constant_maps_stay_finite_forward_and_backward():
    x = torch.ones(2, 3, 4, 4, requires_grad=True)
    out = DSU(1.0).train()(x)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


def test_half_precision_keeps_its_type(maps):
    out = DSU(1.0).train()(maps.bfloat16())
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


# --- in the network --------------------------------------------------------------------------------------------------


def options(positions, probability=1.0, freeze_bn=True):
    config = cfg.clone()
    config.MODEL.NAME, config.MODEL.FREEZE_BN = "deeplab_resnet18", freeze_bn
    config.MODEL.UNCERTAINTY, config.MODEL.POS = probability, tuple(positions)
    return config


@pytest.mark.parametrize("freeze_bn", [True, False])
@pytest.mark.parametrize("position", POSITIONS)
def test_each_position_is_where_the_method_puts_it_and_acts_in_training_alone(position, freeze_bn):
    """What reaches DSU is the output of that very layer: position 0 comes before bn1."""
    torch.manual_seed(0)
    network = build_feature_extractor(options([position], freeze_bn=freeze_bn))
    (dsu,) = [module for module in network.modules() if isinstance(module, DSU)]
    seen, produced = [], []
    dsu.register_forward_hook(lambda _, given, __: seen.extend(given))
    layer = ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4")[position]
    getattr(network.backbone, layer).register_forward_hook(lambda *call: produced.append(call[-1]))
    image = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        network.train()
        assert not torch.allclose(network(image), network(image), atol=1e-3)
        dsu.probability = 0.0
        assert torch.equal(network(image), network(image))
        dsu.probability = 1.0
        assert torch.equal(network.eval()(image), network(image))
    assert len(seen) == len(produced) == 6
    assert all(given is output for given, output in zip(seen, produced, strict=True))
    if position == 0:
        raw = torch.nn.functional.conv2d(image, network.backbone.conv1.weight, stride=2, padding=3)
        assert torch.allclose(seen[0], raw, atol=1e-5)


def test_checkpoint_keys_do_not_know_of_dsu():
    assert build_model(options(POSITIONS)).state_dict().keys() == build_model(options([])).state_dict().keys()


def test_off_by_probability_0_leaves_no_layer():
    network = build_feature_extractor(options(POSITIONS, probability=0.0))
    assert not [module for module in network.modules() if isinstance(module, DSU)]


def test_every_position_at_once_trains(maps):
    torch.manual_seed(0)
    model = build_model(options(POSITIONS, freeze_bn=False)).train()
    model(torch.randn(2, 3, 32, 48)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
