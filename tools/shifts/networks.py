"""A network of another family than the ResNets, for shifts that ask whether a config is good for those alone."""

from torch import nn
from torchvision.models import mobilenet_v3_large

from core.models.deeplab import AtrousClassifier


def mobilenet(cfg) -> tuple[nn.Module, nn.Module]:
    """MobileNetV3-Large at stride 16, randomly initialised, and a classifier.

    Its batch norms hold still where MODEL.FREEZE_BN says so, as those of any network of one's own.
    """
    features = mobilenet_v3_large(weights=None, dilated=True).features
    return features, AtrousClassifier(features[-1].out_channels, cfg.MODEL.NUM_CLASSES)
