"""What a panel shows of a step is what the step learnt from, and the batch stays as it was."""

import numpy as np
import torch

from core.datasets.taxonomy import IGNORE
from core.runs.panels import adaptation_tiles
from core.selftraining.samples import Batch
from core.selftraining.views import View

HEIGHT, WIDTH = 48, 72
# of a full view of 96×144, made half as large again: its left half, from the top to two thirds
VIEW = View((144, 216), (0, 0), (96, 108), False)


def make_batch():
    """Two samples in the loader's layout (channels last); a paste is in the second one only."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randint(1, 250, (2, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    dropped, valid = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool), torch.ones(2, HEIGHT, WIDTH, dtype=torch.bool)
    dropped[:, :4, :4] = True
    valid[:, :, -2:] = False
    pasted = torch.full((2, HEIGHT, WIDTH), IGNORE, dtype=torch.uint8)
    pasted[1, 8:10, 10:15] = 4
    full = torch.full((2, 3, 2 * HEIGHT, 2 * WIDTH), 100, dtype=torch.uint8)
    return Batch(full, student, dropped, pasted, valid, (VIEW, VIEW._replace(flip=True)), ("first.png", "second.png"))


def test_the_tiles_are_the_tensors_of_the_first_image_with_a_paste():
    batch = make_batch()
    before = batch.student.clone()
    generator = torch.Generator().manual_seed(1)
    teacher = torch.randint(0, 5, (2, HEIGHT, WIDTH), generator=generator)
    teacher[:, 0] = IGNORE
    labels = torch.where(batch.pasted != IGNORE, batch.pasted.long(), teacher)
    confidence = torch.rand(2, HEIGHT, WIDTH, generator=generator)
    logits = torch.zeros(2, 5, 2, 3)
    logits[1, 3] = 1
    title, tiles = adaptation_tiles(batch, teacher, confidence, labels, logits)
    assert title == f"{100 * (labels[1] != IGNORE).float().mean():.0f} % labelled · second.png"
    frame, view, prediction, by_teacher, learnt, sure = (content for _, content in tiles)
    assert (by_teacher == teacher[1].numpy()).all()
    assert (learnt == labels[1].numpy()).all()
    assert (prediction == 3).all()
    assert (sure[:, :-2] == confidence[1, :, :-2].numpy()).all()
    assert (sure[:, -2:] == 0).all()
    assert {content.shape[:2] for _, content in tiles} == {(HEIGHT, WIDTH)}
    assert [content.dtype for _, content in tiles] == [np.uint8] * 5 + [np.float32]
    expected = batch.student[1].permute(1, 2, 0).numpy().copy()
    expected[:4, :4] = np.where(np.add.outer(range(4), range(4)) < 4, 90, 165)[..., None]
    expected[7:11, 9:16] = 255  # a line one pixel wide
    expected[8:10, 10:15] = before[1].permute(1, 2, 0)[8:10, 10:15].numpy()
    assert (view == expected).all()
    assert ["mirrored" in caption for caption, _ in tiles] == [True] + [False] * 5
    box = np.argwhere((frame > 150).all(-1))
    assert np.abs(box.min(axis=0)).max() <= 1  # a white line around the left half of the upper two thirds
    assert np.abs(box.max(axis=0) - (HEIGHT * 2 / 3, WIDTH / 2)).max() <= 1
    assert (frame[4:28, 4:32] == 100).all()
    assert (frame[36:, 40:] == 100).all()
    assert torch.equal(batch.student, before)


def test_without_a_paste_the_first_image_is_shown():
    batch = make_batch()
    batch.pasted.fill_(IGNORE)
    labels = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.int64)
    title, _ = adaptation_tiles(batch, labels, torch.ones(2, HEIGHT, WIDTH), labels, torch.zeros(2, 5, 2, 3))
    assert title == "100 % labelled · first.png"
