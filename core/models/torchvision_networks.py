"""torchvision's DeepLabV3 (Chen et al., 2017) and FCN (Long et al., CVPR 2015), under its names for their weights.

Their batch norms have torchvision's epsilon; MODEL.FREEZE_BN holds them still.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from core.models.backbone import ARCHITECTURES, FeatureExtractor
from core.models.networks import CHANNELS, arguments


class DilatedResNet(FeatureExtractor):
    """torchvision's ResNet at stride 8, with its batch norms; DSU as MODEL.UNCERTAINTY and MODEL.POS say."""

    stride_and_multiple = 8, 1

    def pretrained(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights of a ResNet, or of a segmentation network on one, of torchvision, under this module's names."""
        return {f"backbone.{name.removeprefix('backbone.')}": tensor for name, tensor in state.items()}


def build_deeplabv3(cfg) -> tuple[DilatedResNet, DeepLabHead]:
    """deeplabv3_resnet50 or 101, without the auxiliary head, randomly initialised.

    Raises:
        UserError: MODEL.ARGS holds what is not known.
    """
    return _build(cfg, DeepLabHead)


def build_fcn(cfg) -> tuple[DilatedResNet, FCNHead]:
    """fcn_resnet50 or 101, likewise."""
    return _build(cfg, FCNHead)


def _build(cfg, head: type[nn.Module]) -> tuple[DilatedResNet, nn.Module]:
    channels, architecture = arguments(cfg)[CHANNELS], cfg.MODEL.NAME.partition("_")[2]
    block, _ = ARCHITECTURES[architecture]
    features = DilatedResNet(architecture, False, cfg.MODEL.UNCERTAINTY, cfg.MODEL.POS)
    return features, head(512 * block.expansion, channels)
