"""DeepLabV2 (Chen et al., TPAMI 2018) on a stride-8 ResNet."""

from collections.abc import Mapping
from functools import reduce
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

RATES = (6, 12, 18, 24)
INITIAL_STD = 0.01


class AtrousClassifier(nn.Module):
    """Sum of four 3×3 convolutions with dilation 6, 12, 18 and 24; no softmax.

    Args:
        in_channels: of the feature map.
        num_classes: C.
    """

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(in_channels, num_classes, kernel_size=3, padding=rate, dilation=rate) for rate in RATES
        )
        for conv in self.conv2d_list:
            nn.init.normal_(conv.weight, std=INITIAL_STD)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """B×in_channels×h×w → B×C×h×w logits."""
        return reduce(torch.add, (conv(features) for conv in self.conv2d_list))


class Segmentor(nn.Module):
    """A feature extractor and a classifier; any pair with matching channels will do.

    Args:
        still_norms: hold every batch norm in them as it is: its statistics do not move,
        still_parameters: and its parameters do not learn.

    Attributes:
        about: what checkpoints say of it beside its weights (core.utils.checkpoints: NETWORK, CLASSES, …).
        align_corners: of the bilinear resize of its logits (MODEL.ALIGN_CORNERS).
        stride: pixels from one point of its output to the next; 0: as its points tell.
    """

    about: Mapping[str, Any] = MappingProxyType({})
    align_corners = True
    stride = 0

    def __init__(
        self,
        feature_extractor: nn.Module,
        classifier: nn.Module,
        still_norms: bool = False,
        still_parameters: bool = True,
    ):
        super().__init__()
        self.feature_extractor, self.classifier, self.still_norms = feature_extractor, classifier, still_norms
        if still_norms and still_parameters:
            for norm in batch_norms(self):
                norm.requires_grad_(False)

    def train(self, mode: bool = True) -> "Segmentor":
        """As of every module, but for batch norms that are held still: they stay in eval mode."""
        super().train(mode)
        if self.still_norms:
            for norm in batch_norms(self):
                norm.eval()
        return self

    def forward(self, image: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Logits of a batch.

        Args:
            image: B×3×H×W, normalised.
            size: (h, w) to upsample to, bilinearly, as `align_corners` says; None: stay at stride 8.
        Returns:
            B×C×h×w, in float32 at least, whatever precision the networks ran in.
        """
        logits = self.logits(image)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        return logits if size is None else resize_logits(logits, size, self.align_corners)

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """B×3×H×W, normalised → B×C×h×w, in whatever precision the networks run in."""
        return self.classifier(self.feature_extractor(image))

    @property
    def head(self) -> nn.Module:
        """What learns at the classifier's rate."""
        return self.classifier


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """torch's batch norms in a network, which move with what they see."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms in a network that are built as fixed maps, torchvision's kind: they have no parameters."""
    return [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]


def resize_logits(logits: torch.Tensor, size: tuple[int, int], align_corners: bool = True) -> torch.Tensor:
    """Bilinear resize of B×C×h×w to `size` (H, W), as every logit map is resized.

    Args:
        align_corners: True: the corners' points lie in the corners' pixels, as in the method; False: points and pixels
            are squares that cover the same image, as in networks that were trained so (MODEL.ALIGN_CORNERS).
    """
    # from contiguous maps the resize is 3 times as fast on a CPU, and so is what follows it
    return F.interpolate(logits.contiguous(), size=size, mode="bilinear", align_corners=align_corners)
