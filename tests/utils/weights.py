"""What tests of checkpoints share: small models whose every tensor is random, and the files that hold them."""

from collections import OrderedDict

import torch
from torch import nn

from core.configs import cfg
from core.models import build_model
from core.models.backbone import FrozenBatchNorm
from core.models.deeplab import AtrousClassifier, Segmentor

PARTS = ("feature_extractor", "classifier")


def make_config(name="resnet18", freeze=True, classes=19):
    config = cfg.clone()
    config.MODEL.NAME, config.MODEL.FREEZE_BN, config.MODEL.NUM_CLASSES = f"deeplab_{name}", freeze, classes
    return config


def make_model(name="resnet18", seed=0, **options):
    """A model whose every tensor is random, and whose activations stay of one size."""
    torch.manual_seed(seed)
    return randomised(build_model(make_config(name, **options)))


def make_tiny(seed=0):
    """The same with one convolution in the place of the ResNet, where the size does not matter."""
    torch.manual_seed(seed)
    layers = OrderedDict(conv1=nn.Conv2d(3, 8, 8, stride=8, bias=False), bn1=FrozenBatchNorm(8), relu=nn.ReLU())
    extractor = nn.Sequential(OrderedDict(backbone=nn.Sequential(layers)))
    return randomised(Segmentor(extractor, AtrousClassifier(8, 19)))


def randomised(model):
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, FrozenBatchNorm | nn.BatchNorm2d):
                norm.weight.uniform_(0.3, 0.6)
                norm.bias.normal_(0, 0.1)
                norm.running_mean.normal_(0, 0.1)
                norm.running_var.uniform_(0.5, 1.5)
    return model.eval()


def blank(model):
    """The same model, nothing of its values left."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(1)
    return model


def published(model, prefix="", tracked=False, half=False):
    """The dict that the published files hold, made by hand."""
    content = {"iteration": 20000}
    for part in PARTS:
        state = {}
        for key, value in getattr(model, part).state_dict().items():
            state[prefix + key] = value.half() if half and value.is_floating_point() else value.clone()
            if tracked and key.endswith("running_var"):
                state[prefix + key.replace("running_var", "num_batches_tracked")] = torch.tensor(20000)
        content[part] = state
    return content


def logits(model, size=(33, 49)):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return model(torch.randn(1, 3, *size, generator=generator))
