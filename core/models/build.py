"""Networks from a config."""

import importlib

import torch
from torch import nn

from core.models.backbone import ARCHITECTURES, FeatureExtractor, FrozenBatchNorm
from core.models.deeplab import AtrousClassifier, Segmentor
from core.utils.errors import UserError
from core.utils.logging import LOGGER


def build_feature_extractor(cfg) -> FeatureExtractor:
    """The ResNet of MODEL.NAME at stride 8, with DSU where MODEL.UNCERTAINTY is above 0, randomly initialised."""
    return FeatureExtractor(_architecture(cfg), cfg.MODEL.FREEZE_BN, cfg.MODEL.UNCERTAINTY, cfg.MODEL.POS)


def build_classifier(cfg) -> AtrousClassifier:
    """The classifier that fits MODEL.NAME's last stage, with MODEL.NUM_CLASSES classes."""
    block, _ = ARCHITECTURES[_architecture(cfg)]
    return AtrousClassifier(512 * block.expansion, cfg.MODEL.NUM_CLASSES)


def build_model(cfg) -> Segmentor:
    """Both, as one module in channels-last layout, on the CPU, randomly initialised.

    Raises:
        UserError: MODEL.NAME is `module:function`, and that is not a function that gives two modules.
    """
    if ":" in cfg.MODEL.NAME:
        model = Segmentor(*_build_own_network(cfg), still_norms=cfg.MODEL.FREEZE_BN)
    else:
        model = Segmentor(build_feature_extractor(cfg), build_classifier(cfg))
    return model.to(memory_format=torch.channels_last)


def log_dead_channels(model: Segmentor) -> None:
    """One line that counts the channels of frozen batch norms without variance, if there are any."""
    dead = sum(module.dead_channels() for module in model.modules() if isinstance(module, FrozenBatchNorm))
    if dead:
        LOGGER.info("%d channels of frozen batch norms have no variance: their output is their bias", dead)


def _build_own_network(cfg) -> tuple[nn.Module, nn.Module]:
    """What the user's function that MODEL.NAME names makes of the config."""
    module, _, function = cfg.MODEL.NAME.partition(":")
    try:
        build = getattr(importlib.import_module(module), function, None)
    except (ImportError, ValueError, TypeError) as error:  # the latter two for names such as `.x` and none at all
        raise UserError(
            f"MODEL.NAME {cfg.MODEL.NAME}: {error}; it must be module:function, importable from here"
        ) from None
    if not callable(build):
        raise UserError(f"MODEL.NAME {cfg.MODEL.NAME}: {module} has no such function; it must be module:function")
    parts = build(cfg)
    if not (isinstance(parts, tuple) and len(parts) == 2 and all(isinstance(part, nn.Module) for part in parts)):
        raise UserError(f"MODEL.NAME {cfg.MODEL.NAME} must return (feature extractor, classifier), two nn.Modules")
    return parts


def _architecture(cfg) -> str:
    return cfg.MODEL.NAME.removeprefix("deeplab_")
