"""Carrying full-view logits into a student view, against resizing, cropping and flipping written out."""

import numpy as np
import pytest
import torch

from core.datasets.transforms import resize
from core.selftraining.views import View, warp_to_view


def interpolation(source, target, corners):
    """The target×source weights: pixel i lies at i * (source - 1) / (target - 1), or where its middle does."""
    weights = np.zeros((target, source))
    for i in range(target):
        if corners:
            position = i * (source - 1) / (target - 1) if target > 1 else 0.0
        else:
            position = min(max((i + 0.5) * source / target - 0.5, 0), source - 1)
        left = min(int(position), source - 1)
        weights[i, left] += 1 - (position - left)
        weights[i, min(left + 1, source - 1)] += position - left
    return weights


def warp_by_loops(image, view, corners=True):
    """The warped C×H×W image and the mask of the pixels that come from inside it."""
    rows, columns = (interpolation(*sizes, corners) for sizes in zip(image.shape[1:], view.scaled_size, strict=True))
    resized = rows @ image @ columns.T
    out, inside = np.zeros((len(image), *view.crop_size)), np.zeros(view.crop_size, dtype=bool)
    for i, j in np.ndindex(*view.crop_size):
        y, x = i + view.top_left[0], j + view.top_left[1]
        if 0 <= y < view.scaled_size[0] and 0 <= x < view.scaled_size[1]:
            column = view.crop_size[1] - 1 - j if view.flip else j
            out[:, i, column], inside[i, column] = resized[:, y, x], True
    return out, inside


def logits_of(batch, *size):
    return 5 + torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


VIEWS = {
    "enlarged": View(scaled_size=(15, 22), top_left=(3, 5), crop_size=(8, 12), flip=False),
    "reduced": View(scaled_size=(7, 9), top_left=(1, 2), crop_size=(5, 6), flip=False),
    "flipped": View(scaled_size=(13, 17), top_left=(2, 1), crop_size=(7, 9), flip=True),
    "last row and column": View(scaled_size=(11, 13), top_left=(3, 4), crop_size=(8, 9), flip=False),
    "padded all round": View(scaled_size=(5, 6), top_left=(-2, -3), crop_size=(9, 13), flip=False),
    "padded, flipped": View(scaled_size=(6, 5), top_left=(-1, -3), crop_size=(9, 9), flip=True),
    "padded in height": View(scaled_size=(6, 20), top_left=(0, 4), crop_size=(9, 9), flip=True),
    "padded in width": View(scaled_size=(20, 6), top_left=(4, -2), crop_size=(9, 9), flip=True),
}


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("size", [(9, 13), (8, 16), (1, 5)])
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_and_its_mask_equal_plain_loops(name, size, corners):
    view, logits = VIEWS[name], logits_of(1, *size)
    expected, inside = warp_by_loops(logits[0].numpy(), view, corners)
    found = warp_to_view(logits, [view], **({} if corners else {"align_corners": False}))
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-9)
    assert torch.equal(view.valid(), torch.from_numpy(inside))


def test_views_of_one_batch_are_independent_and_in_order():
    names = "padded in width", "padded, flipped", "padded in height", "padded, flipped"
    views, logits = [VIEWS[name] for name in names], logits_of(4, 7, 11)
    expected = [warp_by_loops(logits[i].numpy(), view)[0] for i, view in enumerate(views)]
    np.testing.assert_allclose(warp_to_view(logits, views).numpy(), np.stack(expected), rtol=0, atol=1e-9)


def test_the_identity_view_changes_nothing():
    logits = logits_of(2, 7, 9).float()
    view = View(scaled_size=(7, 9), top_left=(0, 0), crop_size=(7, 9), flip=False)
    torch.testing.assert_close(warp_to_view(logits, [view, view]), logits)
    assert view.valid().all()


def test_negative_origin_gives_exact_zeros_outside_and_the_flip_moves_them():
    view = View(scaled_size=(2, 3), top_left=(-1, -2), crop_size=(3, 5), flip=True)
    expected = torch.tensor([[0, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]])
    assert torch.equal(warp_to_view(torch.ones(1, 1, 2, 3), [view])[0, 0], expected.float())
    assert torch.equal(view.valid(), expected.bool())


@pytest.mark.parametrize("name", VIEWS)
def test_nothing_but_what_is_needed_shows_in_a_view(name):
    view = VIEWS[name]
    for size in ((9, 13), (40, 61)):
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        part = image.new_full(image.shape, 77)
        region = (..., *view.needed(size))
        part[region] = image[region]
        shown, expected = (view.crop(resize(whole, view.scaled_size, "bicubic")) for whole in (part, image))
        assert torch.equal(shown, expected)


def test_what_is_needed_is_not_much_more_than_what_is_shown():
    view = View(scaled_size=(1000, 2000), top_left=(100, 200), crop_size=(300, 400), flip=False)
    assert view.needed((500, 1000)) == (slice(47, 203), slice(97, 303))
