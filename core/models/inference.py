"""A trained model in the plain form that other programs run."""

import copy

from torch import nn

from core.models.backbone import FoldedConv2d, FrozenBatchNorm


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose frozen batch norms are gone: each is part of the weights of the convolution before it.

    Its outputs are those of the model, in float32.
    """
    model = copy.deepcopy(model).float().eval()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FoldedConv2d):
                setattr(parent, name, child.plain())
            elif isinstance(child, FrozenBatchNorm) and child.folded:
                setattr(parent, name, nn.Identity())
    return model.requires_grad_(False)
