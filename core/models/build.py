"""Networks from a config, and compiled by torch."""

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


def check_compiler(device: torch.device) -> None:
    """Compile something small for the device.

    Raises:
        UserError: that does not work here.
    """
    try:
        torch.compile(torch.relu)(torch.ones(1, device=device))
    except Exception as error:  # of many kinds, by what is missing: a C++ compiler, Triton, Python's headers, …
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"MODEL.COMPILE: nothing can be compiled for {device} here ({reason}); "
            "install what is missing (on the CPU a C++ compiler), or set MODEL.COMPILE False"
        ) from None


def compile_networks(*networks: nn.Module) -> None:
    """Have every network compile itself when it is first called: once per size of its input, mode and precision.

    Parameters, buffers and checkpoints are what they were; a copy is not compiled. From the ninth variant on, a network
    runs as it did before.
    """
    for network in networks:
        network.compile(dynamic=False)  # few sizes occur, and what is made for one of them is faster


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
