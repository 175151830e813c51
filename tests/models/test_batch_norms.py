"""MODEL.FREEZE_BN and FREEZE_BN_PARAMETERS mean the same for every network, and are said with the count."""

import pytest
import torch
from torch import nn

from core.configs import cfg
from core.configs.choices import Choices
from core.models import build_model, describe_norms
from core.models.backbone import FrozenBatchNorm
from core.models.deeplab import Segmentor
from core.sourcetraining.trainer import SourceTrainer
from core.utils.errors import UserError
from tests.helpers import changed

NORMS = 20  # of a ResNet-18


def network(freeze=True, parameters=True):
    options = {"MODEL__NAME": "deeplab_resnet18", "MODEL__NUM_CLASSES": 2}
    return build_model(changed(cfg, **options, MODEL__FREEZE_BN=freeze, MODEL__FREEZE_BN_PARAMETERS=parameters))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (network(), "20 batch norms are held still"),
        (network(parameters=False), "20 batch norms are held still; their parameters learn"),
        (network(False), "20 batch norms are trained, by the statistics of every batch (MODEL.FREEZE_BN False)"),
        (Segmentor(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), nn.Conv2d(4, 2, 1), True), "no batch norms"),
        (Segmentor(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), True), "1 batch norm is held still"),
        (Segmentor(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 2, 1), True, False), "1 batch norm is held still"),
        (
            Segmentor(nn.BatchNorm2d(3), FrozenBatchNorm(3)),
            "1 batch norm is held still, 1 batch norm is trained, by the statistics of every batch "
            "(MODEL.FREEZE_BN False)",
        ),
    ],
)
def test_the_log_says_how_many_there_are_and_what_becomes_of_them(model, words):
    assert describe_norms(model) == words


def test_norms_whose_parameters_learn_compute_what_frozen_ones_do():
    """But for torch's epsilon; and their statistics stay where they are in training."""
    frozen, learning = network(), network(parameters=False)
    state = frozen.state_dict()
    learning.load_state_dict(state, strict=False)
    norms = [module for module in learning.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == NORMS
    assert all(norm.weight.requires_grad and norm.bias.requires_grad for norm in norms)
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    learning.train()
    assert torch.allclose(learning(image), frozen(image), rtol=1e-3, atol=1e-3)
    learning(image).sum().backward()
    assert all(norm.weight.grad.abs().sum() > 0 for norm in norms)
    moved = [key for key, value in state.items() if not torch.equal(learning.state_dict()[key], value)]
    assert moved == []


def test_frozen_norms_want_weights_but_where_there_are_none():
    """From random weights; a network without batch norm is not told of them."""
    choices = Choices(changed(cfg, MODEL__FREEZE_BN=True))
    with pytest.raises(UserError, match=r"^MODEL\.FREEZE_BN True needs weights to start from"):
        SourceTrainer.settle(choices, network(), None, None)
    SourceTrainer.settle(choices, Segmentor(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), None, None)
