"""Networks compiled by torch, in place: parameters, buffers, checkpoints and copies are what they were."""

import torch
from torch import nn

from core.utils.errors import UserError


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

    A copy of a compiled network is not compiled. From the ninth variant on, a network runs as it did before.
    """
    for network in networks:
        network.compile(dynamic=False)  # few sizes occur, and what is made for one of them is faster
