"""The step's losses, image by image, against those of the whole batch at once (method §4)."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.models.deeplab import resize_logits
from core.selftraining.losses import negative_loss_sum, positive_loss_sum
from core.selftraining.trainer import part_losses

CLASSES, SIZE, VIEW = 5, (6, 9), (24, 40)


def random_part(count, seed=1):
    """(logits, labels, negative pairs) of `count` images."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 10, (count, CLASSES, *SIZE)))
    labels = torch.from_numpy(rng.choice([0, 1, 2, 3, 4, 255], (count, *VIEW)))
    return logits, labels, torch.from_numpy(rng.random((count, CLASSES, *VIEW)) < 0.6)


@pytest.mark.parametrize("case", ["mixed", "all ignored", "no pair", "one image"])
def test_losses_and_their_gradient_are_those_of_the_whole_batch(case):
    logits, labels, pairs = random_part(1 if case == "one image" else 3)
    if case == "all ignored":
        labels.fill_(255)
    if case == "no pair":
        pairs.fill_(False)
    pixels, negatives = 1234, pairs.sum().clamp(min=1)
    losses, gradient = part_losses(logits, labels, pairs, pixels, negatives)
    plain = logits.clone().requires_grad_()
    large = resize_logits(plain, VIEW)
    expected = positive_loss_sum(large, labels) / pixels, negative_loss_sum(large, pairs) / negatives
    sum(expected).backward()
    assert losses.tolist() == pytest.approx([value.item() for value in expected], rel=1e-10)
    assert torch.allclose(gradient, plain.grad, rtol=1e-10, atol=1e-14)
    assert not logits.requires_grad


class LargestFloats(TorchDispatchMode):
    """Notes the most elements of any floating-point tensor that comes out of an operation."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.elements = max(self.elements, tensor.numel())
        return made


def test_no_full_size_map_of_more_than_one_image_is_made():
    logits, labels, pairs = random_part(4)
    with LargestFloats() as largest:
        part_losses(logits, labels, pairs, labels.numel(), pairs.sum())
    assert largest.elements == CLASSES * VIEW[0] * VIEW[1]
