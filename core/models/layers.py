"""A network's layers by depth, and which of its parameters weight decay leaves alone: what optimisers ask of it."""

import re

from torch import nn

# a class of normalisation layers: LayerNorm, BatchNorm2d, RMSNorm, …, of any library
_NORM = re.compile(r"Norm(\d[dD])?$")
# a parameter that stands for a place or for a token of its own, as timm, transformers, torchvision and DINO name them
_EMBEDDING = re.compile(
    r"pos_embed|position_embed|position_bias|class_embed|(cls|class|mask|dist|reg(ister)?|storage)_tokens?\b"
)


def layers_of(network: nn.Module) -> list[nn.Module]:
    """The layers of a feature extractor, from its input on; what comes before the first of them is its stem.

    They are what its method `layers()` gives, where it has one. Else they are found by its structure: stages side by
    side (ResNet's layer1 … layer4), or the blocks that a Sequential or ModuleList holds (of a transformer, say).
    """
    if callable(own := getattr(network, "layers", None)) and not isinstance(own, nn.Module):
        return list(own())
    children = _children(network)
    if len(children) > 1 and _holds_blocks(network):
        return children
    stages = [child for child in children if _holds_blocks(child)]
    others = [child for child in children if child not in stages]
    largest = max(others, key=_size, default=None)
    # what holds most of the parameters is the backbone, whatever a head beside it is made of
    if largest is not None and _size(largest) > sum(map(_size, stages)) and (found := layers_of(largest)):
        return found
    if len(stages) > 1:
        return stages
    blocks = _children(stages[0]) if stages else []
    return (layers_of(blocks[0]) or blocks) if len(blocks) == 1 else blocks  # one may be a wrapper's only part


def layer_numbers(network: nn.Module) -> tuple[dict[int, int], int]:
    """The layer of every parameter, by its id: 0 in the stem, 1 … n in :func:`layers_of`; and that of the head, n + 1.

    As BEiT counts them (Bao et al., ICLR 2022): embeddings are the stem's, and what follows the last layer is the
    head's. What stands between two layers, a norm, say, is the earlier one's.
    """
    layers = layers_of(network)
    numbers = {id(p): number for number, layer in enumerate(layers, 1) for p in layer.parameters()}
    found, number, top = {}, 0, len(layers) + 1
    left = len(numbers)
    for parameter in network.parameters():  # in the order in which the modules were defined
        if id(parameter) in numbers:
            number, left = numbers[id(parameter)], left - 1
        found[id(parameter)] = number if id(parameter) in numbers or left else top
    return found, top


def undecayed(model: nn.Module) -> set[int]:
    """The ids of the parameters that weight decay would do harm: those of norms, position embeddings and tokens.

    As SegFormer and BEiT are trained; the biases of other layers decay, as SegFormer's do.
    """
    norms = [module for module in model.modules() if _NORM.search(type(module).__name__)]
    found = {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}
    return found | {id(parameter) for name, parameter in model.named_parameters() if _EMBEDDING.search(name)}


def _children(module: nn.Module) -> list[nn.Module]:
    """Those with parameters."""
    return [child for child in module.children() if _size(child)]


def _holds_blocks(module: nn.Module) -> bool:
    """Whether it is a Sequential or ModuleList of modules of one class, which have parts themselves."""
    children = _children(module)
    whole = isinstance(module, nn.Sequential | nn.ModuleList) and len({type(child) for child in children}) == 1
    return whole and all(_children(child) for child in children)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
