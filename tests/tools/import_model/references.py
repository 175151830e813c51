"""The networks that other programs train, each built here from its own layers: names, geometry, and what of a head is
used. Stages have few blocks (DEPTHS); widths are the real ones, as heads are told by them.
"""

import torch
from torch import nn

DEPTHS = (1, 1, 2, 1)
RATES = (6, 12, 18, 24)
WIDTH = 64


class Block(nn.Module):
    """A bottleneck; `caffe`: its stride stands in the 1×1 convolution."""

    def __init__(self, inner, width, stride, dilation, caffe):
        super().__init__()
        outer, first, second = 4 * width, *((stride, 1) if caffe else (1, stride))
        self.conv1 = nn.Conv2d(inner, width, 1, stride=first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=second, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        if stride > 1 or inner != outer:
            self.downsample = nn.Sequential(
                nn.Conv2d(inner, outer, 1, stride=stride, bias=False), nn.BatchNorm2d(outer)
            )

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu()))
        return (y + (self.downsample(x) if hasattr(self, "downsample") else x)).relu()


class ResNet(nn.Module):
    """At stride 8. Caffe's pools with its sizes rounded up, and dilates the first block of a stage as the others."""

    def __init__(self, caffe=False, stem=False):
        super().__init__()
        if stem:
            layers, inner = [], 3
            for outer, stride in ((32, 2), (32, 1), (64, 1)):
                conv = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
                layers, inner = [*layers, conv, nn.BatchNorm2d(outer), nn.ReLU()], outer
            self.stem = nn.Sequential(*layers)
        else:
            self.conv1, self.bn1 = nn.Conv2d(3, WIDTH, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(WIDTH)
        self.ceil, inner = caffe, WIDTH
        for stage, (depth, stride, dilation) in enumerate(zip(DEPTHS, (1, 2, 1, 1), (1, 1, 2, 4), strict=True), 1):
            width, blocks = WIDTH * 2 ** (stage - 1), []
            for number in range(depth):
                own = dilation if caffe or number else max(dilation // 2, 1)
                blocks.append(Block(inner, width, 1 if number else stride, own, caffe))
                inner = 4 * width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))

    def stages(self, x):
        """What layer3 and layer4 give."""
        x = self.stem(x) if hasattr(self, "stem") else self.bn1(self.conv1(x)).relu()
        x = nn.functional.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=self.ceil)
        third = self.layer3(self.layer2(self.layer1(x)))
        return third, self.layer4(third)


class Branches(nn.Module):
    """A head of four branches, of which so many are added up; the others are as they were drawn."""

    def __init__(self, channels, classes, used=4, rates=RATES):
        super().__init__()
        self.used = used
        self.conv2d_list = nn.ModuleList(nn.Conv2d(channels, classes, 3, padding=rate, dilation=rate) for rate in rates)
        for conv in self.conv2d_list[used:]:
            nn.init.normal_(conv.weight, std=0.01)

    def forward(self, x):
        return sum(conv(x) for conv in self.conv2d_list[: self.used])


class Caffe(ResNet):
    """AdaptSegNet's and ADVENT's: heads as layer5 and layer6, of which one is the main one, on layer4."""

    def __init__(self, main, auxiliary="", used=4, classes=19):
        super().__init__(caffe=True)
        if auxiliary:
            setattr(self, auxiliary, Branches(1024, classes, used))
        setattr(self, main, Branches(2048, classes, used))
        self.main = main

    def forward(self, x):
        return getattr(self, self.main)(self.stages(x)[1])


class Sac(nn.Module):
    """SAC: two of them, and buffers of its training."""

    def __init__(self):
        super().__init__()
        self.backbone, self.slow_net = nn.Module(), nn.Module()
        self.backbone.model, self.slow_net.model = Caffe("layer5"), Caffe("layer5")
        self.register_buffer("running_conf", torch.rand(19))
        self.register_buffer("slow_init", torch.ones(1))

    def forward(self, x):
        return self.backbone.model(x)


class Mmseg(nn.Module):
    """DAFormer's DeepLabV2 in OpenMMLab's words."""

    def __init__(self, branches=4):
        super().__init__()
        self.backbone, self.decode_head, self.auxiliary_head = ResNet(stem=True), nn.Module(), nn.Module()
        self.decode_head.aspp_modules = nn.ModuleList()
        for rate in RATES[:branches]:
            module = nn.Module()
            module.conv = nn.Conv2d(2048, 19, 3, padding=rate, dilation=rate)
            self.decode_head.aspp_modules.append(module)
        self.auxiliary_head.conv_seg = nn.Conv2d(8, 19, 1)

    def forward(self, x):
        features = self.backbone.stages(x)[1]
        return sum(module.conv(features) for module in self.decode_head.aspp_modules)


class Cma(nn.Module):
    """CMA's DeepLabV2, beside which its training keeps others."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = ResNet(stem=True), Branches(2048, 19)
        self.m_head, self.alignment_backbone = Branches(8, 19), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.head(self.backbone.stages(x)[1])


def randomise(network, seed=0):
    """Weights and statistics by which every layer counts, small variances among them, so that their epsilon does."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.data.uniform_(low, high, generator=generator)

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.2, 0.6), (module.bias, -0.3, 0.3)):
                uniform(tensor, low, high)
            uniform(module.running_mean, -0.3, 0.3)
            uniform(module.running_var, -8, 0)
            module.running_var.exp_()
    return network.eval().requires_grad_(False)
