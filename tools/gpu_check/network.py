"""Networks for the checks: in double precision sums of another order differ by next to nothing."""

import torch
from torch import nn
from torchvision.models import resnet

from core.models.backbone import FeatureExtractor
from core.models.deeplab import AtrousClassifier, Segmentor

DAMPING = 0.25  # of what a residual block adds
SPREAD = 3.0  # standard deviation of the logits


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
def make_sensible(model: Segmentor) -> None:
    """Scale random weights in place so that activations keep their size through all blocks, and classes differ."""
    for block in model.modules():
        if isinstance(block, resnet.Bottleneck):
            block.bn3.weight.fill_(DAMPING)
        elif isinstance(block, resnet.BasicBlock):
            block.bn2.weight.fill_(DAMPING)
    noise = torch.randn(1, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    was_training = model.training
    spread = model.eval()(noise.to(next(model.parameters()).device)).std()
    model.train(was_training)
    for parameter in model.classifier.parameters():
        parameter.mul_(SPREAD / spread)
