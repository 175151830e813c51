"""A tiny network in double precision, in which sums of another order differ by next to nothing."""

import os
import time

import torch
from torch import nn

from core.models.dsu import DSU

SECONDS = "TEST_SECONDS"  # environment variable: what a forward without gradient takes


class Doubled(nn.Sequential):
    """Takes what the programs give, single precision."""

    def forward(self, image):
        return super().forward(image.double())


class Slow(nn.Module):
    """Takes its time, as a large network does, in passes and evaluations."""

    def forward(self, x):
        if not torch.is_grad_enabled():
            time.sleep(float(os.environ.get(SECONDS, 0)))
        return x


def build(config):
    """MODEL.NAME tests.distributed.double_network:build; with DSU where MODEL.UNCERTAINTY says so."""
    torch.manual_seed(5)
    layers = [nn.Conv2d(3, 8, 8, stride=8), nn.Tanh(), Slow()]
    if config.MODEL.UNCERTAINTY > 0:
        layers.insert(1, DSU(config.MODEL.UNCERTAINTY))
    classifier = nn.Conv2d(8, config.MODEL.NUM_CLASSES, 1)
    with torch.no_grad():
        classifier.weight.mul_(6)
    return Doubled(*layers).double(), classifier.double()


class WithAuxiliary(nn.Module):
    """Has a head whose output nobody uses, as networks do that were trained with a further loss."""

    def __init__(self, config):
        super().__init__()
        self.body, self.classifier = build(config)
        self.aux = nn.Conv2d(8, 3, 1).double()

    def forward(self, image):
        features = self.body(image)
        return {"out": self.classifier(features), "aux": self.aux(features)}


def with_auxiliary(config):
    """MODEL.NAME tests.distributed.double_network:with_auxiliary."""
    torch.manual_seed(6)
    return WithAuxiliary(config)
