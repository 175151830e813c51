"""Networks of the tests' own, for MODEL.NAME."""

from collections import OrderedDict

from torch import nn
from torchvision.models.resnet import conv1x1

from core.models.backbone import DilatedBasicBlock, FrozenBatchNorm, fold_frozen_norms
from core.models.deeplab import AtrousClassifier

TINY = "tests.networks:tiny"


def tiny(config):
    """The kinds of layers that deeplab_resnet18 has, under the same names, but few of them and of few channels.

    On images as small as the tests' it is the weights that cost time: a hundredth of them here.
    """
    norm = FrozenBatchNorm if config.MODEL.FREEZE_BN else nn.BatchNorm2d

    def stage(inputs, channels, stride, dilation):
        down = nn.Sequential(conv1x1(inputs, channels, stride), norm(channels))
        return nn.Sequential(DilatedBasicBlock(inputs, channels, stride, down, dilation=dilation, norm_layer=norm))

    backbone = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 7, 2, 3, bias=False),
            bn1=norm(16),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool2d(3, 2, 1),
            layer1=stage(16, 16, 1, 1),
            layer2=stage(16, 32, 2, 1),
            layer3=stage(32, 64, 1, 2),
        )
    )
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if config.MODEL.FREEZE_BN:
        fold_frozen_norms(backbone)
    return nn.Sequential(OrderedDict(backbone=backbone)), AtrousClassifier(64, config.MODEL.NUM_CLASSES)
