"""torchvision's ResNet at output stride 8, with frozen batch norm folded into the convolutions."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d

from core.models.dsu import DSU


class Remembered:
    """What was made of some tensors, until one of them is another or has changed."""

    def __init__(self):
        self._tensors, self._state, self._value = (), None, None

    def of(self, make: Callable[[], Any], *tensors: torch.Tensor, dtype: torch.dtype | None = None) -> Any:
        """`make()`, which depends on `tensors` and `dtype` alone and takes no gradient, or what it gave before.

        A change by way of `.data` is not seen; torch's optimisers, the EMA and load_state_dict make none.
        """
        try:
            state = [dtype, *map(id, tensors), *[t._version for t in tensors], *[t.data_ptr() for t in tensors]]
        except RuntimeError:  # made in inference mode, they do not tell when they change
            return make()
        if state != self._state:
            with torch.inference_mode(False), torch.no_grad():  # a training step may be the next to use it
                self._tensors, self._state, self._value = tensors, state, make()
        return self._value

    def __reduce__(self) -> tuple:
        return Remembered, ()  # the tensors of a copy, or of what is read from a pickle, are others


class FrozenBatchNorm(FrozenBatchNorm2d):
    """Batch norm as the fixed map y = x·w/√var + (b − mean·w/√var), without an epsilon; where var is 0, y = b.

    Once `folded` is set, the convolution before it applies the map and this module passes its input on.
    """

    folded = False

    def __init__(self, num_features: int):
        super().__init__(num_features, eps=0.0)
        self._map = Remembered()

    def scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The C scales and C shifts of the map."""
        if torch.compiler.is_compiling():
            return self._scale_and_shift()
        return self._map.of(self._scale_and_shift, *self._buffers.values())

    def _scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        alive = self.running_var > 0
        scale = torch.where(alive, self.weight * torch.where(alive, self.running_var, 1).rsqrt(), 0)
        return scale, torch.where(alive, self.bias - self.running_mean * scale, self.bias)

    def dead_channels(self) -> int:
        """How many channels have no variance, and so a constant output."""
        return int((self.running_var <= 0).sum())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.folded:
            return x
        scale, shift = (vector.to(x.dtype).view(-1, 1, 1) for vector in self.scale_and_shift())
        return x * scale + shift


class FoldedConv2d(nn.Conv2d):
    """A convolution that applies the frozen batch norm behind it through its weight and bias.

    This saves a pass over the activations, forward and backward; the weight still gets its exact gradient. On a GPU,
    where launches count, a weight that learns nothing is folded only when it has changed.
    """

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm):
        super().__init__(*_arguments(conv), bias=False, device="meta")
        self.weight = conv.weight
        self._norm = [norm]  # in a list, so that its buffers keep their one place in the module tree
        self._whole = Remembered()
        norm.folded = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_cuda or torch.compiler.is_compiling():
            return self._conv_forward(x, *self._folded())
        half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        weight, shift = self._folded() if self.weight.requires_grad else self._folded_once(half or self.weight.dtype)
        if half is None or torch.is_grad_enabled() or not self._pointwise or len(x) == 1:
            return self._conv_forward(x, weight, shift)
        # a matrix product, to which cuBLAS adds the shift on its way; cuDNN leaves that to a pass of its own, and for
        # these convolutions, whose outputs are the largest, such passes took a sixth of a bf16 step on an H100. What
        # the host does more for it is hidden behind several images, but not behind one
        rows = F.linear(x.permute(0, 2, 3, 1).flatten(0, 2), weight.flatten(1), shift)
        return rows.unflatten(0, (len(x), *x.shape[2:])).permute(0, 3, 1, 2)

    @property
    def _pointwise(self) -> bool:
        return self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1

    def _folded_once(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and shift in `dtype`, made anew only when something has changed."""
        scale, _ = self._norm[0].scale_and_shift()
        return self._whole.of(lambda: tuple(t.to(dtype) for t in self._folded()), self.weight, scale, dtype=dtype)

    def plain(self) -> nn.Conv2d:
        """The convolution that does the same with a weight and bias of its own."""
        conv = nn.Conv2d(*_arguments(self), device="meta")
        conv.weight, conv.bias = (nn.Parameter(tensor.detach().clone()) for tensor in self._folded())
        return conv

    def _folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        scale, shift = self._norm[0].scale_and_shift()
        return self.weight * scale.view(-1, 1, 1, 1), shift


def _arguments(conv: nn.Conv2d) -> tuple:
    """Those of another convolution of its kind."""
    return conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups


def fold_frozen_norms(module: nn.Module) -> None:
    """Replace, in place, every convolution that a frozen batch norm follows; names and state dict stay the same."""
    for parent in list(module.modules()):
        previous = (None, None)
        for name, child in list(parent.named_children()):
            if isinstance(child, FrozenBatchNorm) and isinstance(previous[1], nn.Conv2d):
                setattr(parent, previous[0], FoldedConv2d(previous[1], child))
            previous = (name, child)


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode, as other programs run it: frozen batch norms are part of the weights of the convolutions.

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


class DilatedBasicBlock(resnet.BasicBlock):
    """torchvision's BasicBlock with both 3×3 convolutions dilated (its own refuses dilation)."""

    def __init__(
        self, inplanes, planes, stride=1, downsample=None, groups=1, base_width=64, dilation=1, norm_layer=None
    ):
        super().__init__(inplanes, planes, stride, downsample, groups, base_width, 1, norm_layer)
        self.conv1 = resnet.conv3x3(inplanes, planes, stride, dilation=dilation)
        self.conv2 = resnet.conv3x3(planes, planes, dilation=dilation)


ARCHITECTURES = {
    "resnet18": (DilatedBasicBlock, (2, 2, 2, 2)),
    "resnet34": (DilatedBasicBlock, (3, 4, 6, 3)),
    "resnet50": (resnet.Bottleneck, (3, 4, 6, 3)),
    "resnet101": (resnet.Bottleneck, (3, 4, 23, 3)),
    "caffe_resnet101": (resnet.Bottleneck, (3, 4, 23, 3)),
    "v1c_resnet101": (resnet.Bottleneck, (3, 4, 23, 3)),
}
CAFFE, V1C = "caffe_", "v1c_"  # how architectures begin that are torchvision's but for :func:`_as_caffe`, _deep_stem

# the layers after which DSU may act, by the numbers that MODEL.POS gives them
DSU_POSITIONS = ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4")


def _as_caffe(network: resnet.ResNet) -> None:
    """Make of torchvision's ResNet, in place, the one that the first DeepLabV2 models in torch have from Caffe.

    A bottleneck's stride stands in its first 1×1 convolution; the pooling rounds sizes up, which adds a point to an
    even number of rows; and the first block of a dilated stage has the dilation of the others.
    """
    network.maxpool.ceil_mode = True
    for stage, dilation in ((network.layer2, 1), (network.layer3, 2), (network.layer4, 4)):
        for block in stage:
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)


def _deep_stem(norm: type[nn.Module]) -> tuple[nn.Sequential, nn.Conv2d]:
    """ResNet-v1c's three 3×3 convolutions in the place of the 7×7 one (He et al., CVPR 2019: ResNet-C).

    Returns:
        the first two with what follows them, and the third one.
    """
    half = 32
    first, second, third = (
        nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
        for inner, outer, stride in ((3, half, 2), (half, half, 1), (half, 2 * half, 1))
    )
    for conv in (first, second, third):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
    layers = first, norm(half), nn.ReLU(inplace=True), second, norm(half), nn.ReLU(inplace=True)
    return nn.Sequential(*layers), third


class FeatureExtractor(nn.Module):
    """ResNet without pooling and classifier; its layers are the children of `backbone`, under torchvision's names.

    ResNet-v1c has a child `stem` before them, and a 3×3 convolution `conv1`.

    Args:
        architecture: a key of :data:`ARCHITECTURES`.
        freeze_bn: use :class:`FrozenBatchNorm`, folded, instead of batch norm.
        uncertainty: probability of DSU at each of `positions`, in training; 0: none.
        positions: indices into :data:`DSU_POSITIONS`.
    """

    def __init__(self, architecture: str, freeze_bn: bool, uncertainty: float = 0.0, positions: Sequence[int] = ()):
        super().__init__()
        block, depths = ARCHITECTURES[architecture]
        norm = FrozenBatchNorm if freeze_bn else nn.BatchNorm2d
        network = resnet.ResNet(block, list(depths), norm_layer=norm, replace_stride_with_dilation=[False, True, True])
        if architecture.startswith(CAFFE):
            _as_caffe(network)
        perturbed = {DSU_POSITIONS[position] for position in positions} if uncertainty > 0 else set()
        layers = OrderedDict()
        if architecture.startswith(V1C):
            layers["stem"], network.conv1 = _deep_stem(norm)
        for name, layer in network.named_children():
            if name in ("avgpool", "fc"):
                continue
            layers[name] = layer
            if name in perturbed:  # a module without state: the checkpoint's keys stay the same
                layers[f"dsu_{name}"] = DSU(uncertainty)
        self.backbone = nn.Sequential(layers)
        if freeze_bn:
            fold_frozen_norms(self.backbone)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """B×3×H×W normalised image → B×512×⌈H/8⌉×⌈W/8⌉ features of layer4 (2048 channels for ResNet-50 and 101).

        A caffe one gives ⌊(H+1)/8⌋+1 points: where H is a multiple of 8, the last one lies just below the image.
        """
        return self.backbone(image)
