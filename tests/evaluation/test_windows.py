"""Sliding windows (TEST.WINDOW): what the network sees of large images, and the one map that is made of it."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from core.configs import cfg
from core.datasets.catalog import ImageSet
from core.evaluation.evaluator import Evaluator
from core.evaluation.predictor import Predictor
from core.evaluation.windows import Layout, windowed_logits
from core.models import build_model
from core.programs.ranking import measure
from core.utils.errors import UserError
from tests.conftest import tiny_options
from tests.helpers import changed

C = 5
SIZES = ((61, 130), (64, 64), (20, 150), (33, 40), (200, 66))  # (h, w), of a window of 64×48 (w, h)


class Cells(nn.Module):
    """Logits of the mean colour of stride×stride cells, which see nothing beyond; with `reach` 1, of 3×3 cells."""

    def __init__(self, stride=8, reach=0, ceil=True):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.stride, self.reach, self.ceil, self.seen = stride, reach, ceil, []
        self.weight = 4 * torch.randn(C, 3, 2 * reach + 1, 2 * reach + 1, generator=generator)

    def forward(self, image):
        self.seen.append(tuple(image.shape))
        pooled = F.avg_pool2d(image.float(), self.stride, ceil_mode=self.ceil)
        return F.conv2d(pooled, self.weight.to(pooled), padding=self.reach)


def picture(size, seed=0):
    """H×W×3 uint8, smooth, with a little noise."""
    rng = np.random.default_rng([seed, *size])
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    return (smooth + rng.integers(-9, 10, smooth.shape)).clip(0, 255).astype(np.uint8)


def as_tensor(image):
    """1×3×H×W float32 in 0 … 1."""
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 255


@pytest.fixture
def images(tmp_path):
    """Unlabelled images of SIZES."""
    paths = tuple(tmp_path / f"{number}.png" for number in range(len(SIZES)))
    for path, size in zip(paths, SIZES, strict=True):
        Image.fromarray(picture(size)).save(path)
    return ImageSet("folder:pictures", paths, tuple(path.name for path in paths))


def predictor(batch_size=1, **options):
    options = {"TEST__WINDOW": (64, 48), "INPUT__PIXEL_MEAN": (0.0,) * 3, "INPUT__PIXEL_STD": (1.0,) * 3} | options
    config = changed(cfg, DATALOADER__NUM_WORKERS=0, TEST__BATCH_SIZE=batch_size, **options)
    return Predictor(config, torch.device("cpu"))


def predictions(images, model, predictor, **averaging):
    found = {}
    Evaluator(images, C, predictor, **averaging).run(model, lambda index, labels: found.update({index: labels}))
    return [found[index] for index in range(len(images))]


# --- where they lie --------------------------------------------------------------------------------------------------


def test_every_pixel_is_covered_by_windows_of_bounded_size_and_number():
    rng = np.random.default_rng(0)
    for _ in range(300):
        stride = int(rng.choice([4, 8, 16]))
        window = tuple(stride * int(n) for n in rng.integers(32 // stride, 100 // stride, 2))
        step = tuple(stride * int(rng.integers(1, length // stride + 1)) for length in window)
        size = tuple(int(n) for n in rng.integers(1, 300, 2))
        times, rows, columns = np.zeros(size, int), set(), set()
        for y, x in Layout(size, window, step, stride).starts():
            part = times[y : y + window[0], x : x + window[1]]
            part += 1
            assert y % stride == x % stride == 0
            assert all(seen > min(n, most) - stride for seen, n, most in zip(part.shape, size, window, strict=True))
            rows.add(y)
            columns.add(x)
        assert times.min() >= 1
        most = [1 + -(-max(n - length, 0) // one) for n, length, one in zip(size, window, step, strict=True)]
        assert (len(rows), len(columns)) <= (most[0] + 1, most[1] + 1)
        assert times.max() <= (window[0] // step[0] + 2) * (window[1] // step[1] + 2)


@pytest.mark.parametrize(
    ("size", "starts"),
    [
        ((512, 1024), [(0, 0)]),
        ((300, 200), [(0, 0)]),
        ((1024, 2048), [(y, x) for y in (0, 336, 512) for x in (0, 680, 1024)]),
        ((513, 1024), [(0, 0), (8, 0)]),  # the last row of pixels has a point of its own
        ((1000, 1300), [(y, x) for y in (0, 336, 488) for x in (0, 280)]),  # 276 is between two points
    ],
)
def test_the_last_window_is_shifted_back_inside(size, starts):
    assert Layout(size, (512, 1024), (336, 680), 8).starts() == starts


# --- one map of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [*SIZES, (144, 192), (145, 199), (1, 70)])
@pytest.mark.parametrize("stride", [4, 8, 16])
def test_a_network_that_sees_single_cells_cannot_tell_windows_from_the_whole(size, stride):
    image, network = as_tensor(picture(size)), Cells(stride)
    found, layout = windowed_logits(network, image, (48, 64), (32, 43))
    assert max(shape[2] for shape in network.seen) <= 48
    assert max(shape[3] for shape in network.seen) <= 64
    assert len(network.seen) == len(layout.starts())
    whole = network(image)
    assert found.shape == whole.shape
    assert torch.allclose(found, whole, atol=1e-5)


@pytest.mark.parametrize("size", [(61, 130), (200, 66), (20, 150)])
def test_overlapping_windows_are_averaged_point_by_point(size):
    """The network sees its neighbours, and nothing beyond a window's border: worked out by plain loops."""
    image, network = as_tensor(picture(size)), Cells(reach=1)
    found, _ = windowed_logits(network, image, (48, 64), (32, 40))
    sums, counts = np.zeros((C, -(-size[0] // 8), -(-size[1] // 8))), np.zeros((-(-size[0] // 8), -(-size[1] // 8)))
    begins = [[0] if length <= most else None for length, most in zip(size, (48, 64), strict=True)]
    for axis, (length, most, step) in enumerate(zip(size, (48, 64), (32, 40), strict=True)):
        if begins[axis] is None:
            last = next(at for at in range(0, length, 8) if at + most >= length)
            begins[axis] = [*range(0, last, step), last]
    for y in begins[0]:
        for x in begins[1]:
            logits = network(image[:, :, y : y + 48, x : x + 64])[0].numpy()
            for row in range(logits.shape[1]):
                for column in range(logits.shape[2]):
                    sums[:, y // 8 + row, x // 8 + column] += logits[:, row, column]
                    counts[y // 8 + row, x // 8 + column] += 1
    assert counts.min() == 1
    assert counts.max() >= 2
    assert found[0].numpy() == pytest.approx(sums / counts, abs=1e-5)
    other = (found - network(image)).abs().amax(1)[0] > 1e-4
    assert 0 < other.float().mean() < 0.9  # at seams it differs from the whole image, and not elsewhere


def test_of_one_window_there_is_the_plain_forward_bit_for_bit():
    """Of a real network, through the predictor, mirrored, too."""
    torch.manual_seed(0)
    model = build_model(tiny_options()).eval()
    for size in SIZES:
        view = torch.from_numpy(picture(size)).permute(2, 0, 1)[None]
        windowed, plain = predictor(TEST__WINDOW=(256, 256)), predictor(TEST__WINDOW=())
        with torch.inference_mode():
            found, expected = (one.maps(model, [view], flip=True) for one in (windowed, plain))
            for (logits, mirrored), (plainly, also) in zip(found, expected, strict=True):
                assert mirrored == also
                assert torch.equal(logits[0], plainly[0]), size
            ours, theirs = (one.read(maps, [size], True)[0]() for one, maps in ((windowed, found), (plain, expected)))
            assert (ours[0] == theirs[0]).all()
            assert (ours[1] == theirs[1]).all()


def test_networks_that_leave_the_last_pixels_out_do_so_with_windows():
    """Patches of 16 without padding, as of a vision transformer."""
    image, network = as_tensor(picture((100, 217))), Cells(16, ceil=False)
    found, _ = windowed_logits(network, image, (48, 64), (32, 48))
    assert found.shape[-2:] == (6, 13)
    assert torch.allclose(found, network(image), atol=1e-5)


@pytest.mark.parametrize("size", [(61, 130), (64, 64), (200, 66), (63, 191), (144, 192), (1, 70)])
def test_points_may_lie_just_below_and_beside_a_window(size):
    """As of networks whose pooling rounds up: the outer ones are where the next window begins."""
    ramp = sum(torch.meshgrid(*map(torch.arange, size), indexing="ij")).expand(1, 3, -1, -1).float()

    def network(image):
        return F.pad(image, (0, 2, 0, 2), mode="replicate")[..., ::8, ::8]

    found, _ = windowed_logits(network, ramp, (48, 64), (32, 43))
    whole = network(ramp)
    assert found.shape == whole.shape
    assert (found - whole).abs().max() <= 1  # a pixel to each side is half of it away, and the next point 8


@pytest.mark.parametrize(
    ("stride", "window", "size", "points"),
    [
        (16, (48, 72), (64, 100), "5×3 points in 72×48 pixels"),
        (32, (64, 72), (64, 100), "3×2 points in 72×64 pixels"),  # which 24 would explain along one axis
        (32, (240, 360), (480, 640), "12×8 points in 360×240 pixels"),  # and 30 along both
        (32, (96, 72), (64, 100), "3×2 points in 72×64 pixels"),
    ],
)
def test_a_window_that_is_no_multiple_of_the_stride_is_one_line(stride, window, size, points):
    network = Cells(stride)
    message = rf"^TEST\.WINDOW {window[1]}×{window[0]}: the network has {points}, .* in multiples of the network's$"
    with pytest.raises(UserError, match=message):
        windowed_logits(network, as_tensor(picture(size)), window, (32, 32))
    fitting, _ = windowed_logits(network, as_tensor(picture(size)), (64, 64), (32, 32))
    assert torch.allclose(fitting, network(as_tensor(picture(size))), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "window", "fitting", "words"),
    [
        (
            "dinov2_vits",
            (64, 64),
            (112, 56),
            "stride is 14: give width and height in multiples of 56",
        ),  # 5 points: not of 16
        ("dinov2_vits", (32, 32), (56, 56), "stride is 14: give width and height in multiples of 56"),
        (
            "dinov3_vits",
            (56, 56),
            (64, 48),
            "stride is 16: give width and height in multiples of 16",
        ),  # 4 points: not of 14
    ],
)
def test_a_network_that_pads_its_images_is_asked_for_its_stride(name, window, fitting, words):
    """Its points would tell another one, and windows would lie elsewhere."""
    args = {"depth": 1, "dim": 16, "heads": 2}
    model = build_model(tiny_options(NAME=name, FREEZE_BN=False).changed({"MODEL.ARGS": args})).eval()
    view = torch.from_numpy(picture((61, 130))).permute(2, 0, 1)[None]
    with torch.inference_mode(), pytest.raises(UserError, match=rf"^TEST\.WINDOW {window[0]}×{window[1]}: .*{words}$"):
        predictor(TEST__WINDOW=window).maps(model, [view], flip=False)
    with torch.inference_mode():
        ((maps, _),) = predictor(TEST__WINDOW=fitting, TEST__STRIDE=fitting).maps(model, [view], flip=False)
        whole = model(predictor(TEST__WINDOW=()).prepare(view))[0]
    assert maps[0].shape == whole.shape
    assert (maps[0] - whole).abs().mean() < 0.1 * whole.std()  # its attention sees a little less


# --- predictions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("averaging", [{}, {"flip": True}, {"flip": True, "multi_scale": True}])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_predictions_of_a_network_that_sees_single_cells_are_those_of_whole_images(images, averaging, batch_size):
    """Images larger and smaller than the window, of sizes that differ within a batch."""
    model, whole = Cells(), Cells()
    found = predictions(images, model, predictor(batch_size), **averaging)
    expected = predictions(images, whole, predictor(TEST__WINDOW=(400, 400)), **averaging)
    assert [labels.shape for labels in found] == list(SIZES)
    assert len({*np.concatenate([labels.ravel() for labels in expected]).tolist()}) > 2
    for labels, own in zip(found, expected, strict=True):
        assert (labels == own).mean() > 0.9995  # the order of a sum may settle a tie
    assert max(shape[2] for shape in model.seen) <= 48 < max(shape[2] for shape in whole.seen)
    assert max(shape[3] for shape in model.seen) <= 64
    assert max(shape[0] for shape in model.seen) <= batch_size
    if averaging.get("multi_scale"):
        scaled = {tuple(max(round(scale * n), 1) for n in size) for scale in (0.7, 1.0, 1.3) for size in SIZES}
        assert {shape[2:] for shape in whole.seen} == scaled


@pytest.mark.parametrize("corners", [True, False])
def test_the_network_sees_images_at_their_own_size(images, corners):
    model = Cells()
    (labels, *_) = predictions(images, model, predictor(TEST__WINDOW=(152, 64), MODEL__ALIGN_CORNERS=corners))
    assert model.seen[:2] == [(1, 3, 61, 130), (1, 3, 64, 64)]
    logits = model(as_tensor(picture(SIZES[0])))
    own = F.interpolate(logits, size=SIZES[0], mode="bilinear", align_corners=corners)[0].argmax(0)
    assert (labels == own.numpy()).mean() > 0.9995


def test_alike_images_of_a_batch_go_through_window_by_window(tmp_path):
    """Three images of 9 windows: 9 forwards of 3, and never more in memory than a batch of windows."""
    paths = tuple(tmp_path / f"{number}.png" for number in range(3))
    for number, path in enumerate(paths):
        Image.fromarray(picture((144, 192), number)).save(path)
    images, model = ImageSet("folder:pictures", paths, tuple(path.name for path in paths)), Cells(reach=1)
    found = predictions(images, model, predictor(3, TEST__STRIDE=(64, 48)))
    assert model.seen == [(3, 3, 48, 64)] * 9
    for labels, single in zip(found, predictions(images, model, predictor(1, TEST__STRIDE=(64, 48))), strict=True):
        assert (labels == single).all()


def test_the_ranking_of_checkpoints_looks_at_resized_views_as_before(images):
    found = []
    for window in ((64, 48), ()):
        model = Cells()
        found.append(measure(model, images, predictor(2, INPUT__INPUT_SIZE_TEST=(104, 80), TEST__WINDOW=window)))
        assert {shape[2:] for shape in model.seen} == {(80, 104)}
    assert found[0][0] == found[1][0]


def test_windows_are_told_once_and_nothing_is_told_without(images, log_lines):
    predictions(images, Cells(), predictor(2))
    predictions(images, Cells(), predictor(TEST__WINDOW=()))
    assert [line for line in log_lines if "window" in line] == ["windows: 64×48 every 40×32; 6 of a 130×61 image"]
