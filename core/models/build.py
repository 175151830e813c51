"""Networks from a config, and compiled by torch."""

import torch
from torch import nn

from core.models.backbone import ARCHITECTURES, FeatureExtractor, FrozenBatchNorm
from core.models.deeplab import AtrousClassifier, Segmentor, batch_norms, frozen_norms
from core.models.dsu import DSU
from core.models.networks import NAMED
from core.models.own_network import OwnNetwork, build_own_network
from core.utils.errors import UserError
from core.utils.logging import LOGGER


def build_feature_extractor(cfg) -> FeatureExtractor:
    """The ResNet of MODEL.NAME at stride 8, with DSU where MODEL.UNCERTAINTY is above 0, randomly initialised."""
    folded = cfg.MODEL.FREEZE_BN and cfg.MODEL.FREEZE_BN_PARAMETERS  # what learns is no constant of a convolution
    return FeatureExtractor(_architecture(cfg), folded, cfg.MODEL.UNCERTAINTY, cfg.MODEL.POS)


def build_classifier(cfg) -> AtrousClassifier:
    """The classifier that fits MODEL.NAME's last stage, with MODEL.NUM_CLASSES classes."""
    block, _ = ARCHITECTURES[_architecture(cfg)]
    return AtrousClassifier(512 * block.expansion, cfg.MODEL.NUM_CLASSES)


def build_model(cfg) -> Segmentor:
    """Both, as one module in channels-last layout, on the CPU, randomly initialised.

    A network of one's own, or one of :data:`NAMED`, is tried on a small image.

    Raises:
        UserError: MODEL.NAME is `module:function`, and that is not a function that gives a network for these classes;
            options or packages that a network by name does not have.
    """
    name = cfg.MODEL.NAME
    if ":" in name or name in NAMED:
        model = build_own_network(cfg).to(memory_format=torch.channels_last)
        model.align_corners = cfg.MODEL.ALIGN_CORNERS
        if name in NAMED and cfg.MODEL.UNCERTAINTY and not any(isinstance(module, DSU) for module in model.modules()):
            raise UserError(f"MODEL.UNCERTAINTY (DSU) is for ResNets, not {name}: set it to 0")
        model.fit(cfg.MODEL.NUM_CLASSES, cfg.INPUT.INPUT_SIZE_TEST)
        return model
    for option in ("CLASSES_OUT", "ARGS"):
        if cfg.MODEL[option]:
            raise UserError(f"MODEL.{option} is for networks of your own and others by name, not for {name}")
    still = cfg.MODEL.FREEZE_BN, cfg.MODEL.FREEZE_BN_PARAMETERS
    model = Segmentor(build_feature_extractor(cfg), build_classifier(cfg), *still)
    model.align_corners = cfg.MODEL.ALIGN_CORNERS
    return model.to(memory_format=torch.channels_last)


def log_network(model: Segmentor) -> None:
    """Log what is peculiar to a network: of frozen batch norms, channels without variance; of others, their form."""
    dead = sum(module.dead_channels() for module in model.modules() if isinstance(module, FrozenBatchNorm))
    if dead:
        LOGGER.info("%d channels of frozen batch norms have no variance: their output is their bias", dead)
    if isinstance(model, OwnNetwork):
        sides = f"; images are padded to multiples of {model.multiple}, its output is cropped again"
        LOGGER.info("%s: stride %d%s", model.name, model.stride, sides if model.multiple > 1 else "")


def describe_norms(model: Segmentor) -> str:
    """What becomes of a network's batch norms in training, for the log."""
    frozen, norms = len(frozen_norms(model)), batch_norms(model)
    still, moving = (frozen + len(norms), 0) if model.still_norms else (frozen, len(norms))
    words = []
    if still:
        learn = model.still_norms and any(norm.weight is not None and norm.weight.requires_grad for norm in norms)
        whose = "its" if still == 1 else "their"
        words.append(f"{_counted(still)} held still" + (f"; {whose} parameters learn" if learn else ""))
    if moving:
        words.append(f"{_counted(moving)} trained, by the statistics of every batch (MODEL.FREEZE_BN False)")
    return ", ".join(words) or "no batch norms"


def _counted(norms: int) -> str:
    return "1 batch norm is" if norms == 1 else f"{norms} batch norms are"


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


def _architecture(cfg) -> str:
    return cfg.MODEL.NAME.removeprefix("deeplab_")
