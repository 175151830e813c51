"""Networks for the checks: in double precision sums of another order differ by next to nothing."""

import torch
from torch import nn
from torchvision.models import resnet

from core.models.backbone import FeatureExtractor, FrozenBatchNorm
from core.models.deeplab import AtrousClassifier, Segmentor

DAMPING = 0.25  # of what a residual block adds
BIAS = 1.0  # of the other norms


class _Doubled(nn.Sequential):
    """Takes what the programs give, single precision."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image.double())


def build(config) -> tuple[nn.Module, nn.Module]:
    """MODEL.NAME tools.gpu_check.network:build, two small convolutions."""
    torch.manual_seed(5)
    classifier = nn.Conv2d(8, config.MODEL.NUM_CLASSES, 1)
    with torch.no_grad():
        classifier.weight.mul_(6)
    return _Doubled(nn.Conv2d(3, 8, 8, stride=8), nn.Tanh()).double(), classifier.double()


def build_resnet18(config) -> tuple[nn.Module, nn.Module]:
    """MODEL.NAME tools.gpu_check.network:build_resnet18."""
    torch.manual_seed(5)
    features, classifier = FeatureExtractor("resnet18", freeze_bn=True), AtrousClassifier(512, config.MODEL.NUM_CLASSES)
    make_sensible(Segmentor(features, classifier))
    return _Doubled(features).double(), classifier.double()


@torch.no_grad()
def make_sensible(model: Segmentor, spread: float = 3.0) -> None:
    """Scale random weights in place so that activations keep their size through all blocks, and classes differ.

    Biases keep most of them off the kink of the ReLU, where the least error makes another gradient.

    Args:
        model: with the paper's backbone, its norms frozen.
        spread: standard deviation of the logits.
    """
    model.feature_extractor.backbone.bn1.bias.fill_(BIAS)
    for block in model.modules():
        if isinstance(block, resnet.Bottleneck | resnet.BasicBlock):
            *inner, last = (norm for norm in block.children() if isinstance(norm, FrozenBatchNorm))
            last.weight.fill_(DAMPING)
            for norm in inner:
                norm.bias.fill_(BIAS)
    noise = torch.randn(1, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    was_training = model.training
    found = model.eval()(noise.to(next(model.parameters()).device)).std()
    model.train(was_training)
    for parameter in model.classifier.parameters():
        parameter.mul_(spread / found)
