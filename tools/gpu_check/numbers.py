"""Checks of numbers: what the device computes beside what the CPU does."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from core.configs import load_config
from core.datasets.catalog import find_target_images, find_taxonomy, find_test_images
from core.datasets.taxonomy import IGNORE
from core.evaluation.evaluator import Evaluator
from core.evaluation.predictor import Predictor
from core.models import build_model
from core.models.deeplab import resize_logits
from core.runs.resume import load_model
from core.selftraining.candidate_pass import CandidatePass
from core.selftraining.dynamic_teacher import entropy_score, snd_score
from core.selftraining.losses import negative_loss, positive_loss
from core.selftraining.pseudo_labels import (
    initial_running_confidence,
    select_pseudo_labels,
    update_running_confidence,
)
from core.selftraining.views import View, warp_to_view
from core.utils.devices import autocast, prepare_device
from tools.gpu_check.network import make_sensible
from tools.gpu_check.workplace import PUBLISHED, TINY, Findings, Workplace, words

CLASSES = 19
FULL, CROP = (768, 1536), (512, 1024)  # (height, width), published
PRECISIONS = {  # dtype, SOLVER.TF32, SOLVER.AMP, factor of the loss, largest relative error
    "float64": (torch.float64, False, "off", 1, 1e-10),
    "fp32": (torch.float32, False, "off", 1, 1e-4),
    "TF32": (torch.float32, True, "off", 1, 5e-3),
    "fp16": (torch.float32, True, "fp16", 1024, 5e-3),
    "bf16": (torch.float32, True, "bf16", 1, 2e-2),
}
TOLERANCE = 1e-5  # relative, of float32 that is computed in another order
RARE = 1e-6  # share of pixels whose label may differ


def network(bench: Workplace, found: Findings) -> None:
    """Logits and parameter gradients of a ResNet-101 in every precision, against float64 on the CPU."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, 97, 193, generator=generator)
    labels = torch.randint(CLASSES, (2, 13, 25), generator=generator)
    data = {"MODEL.WEIGHTS": "", "SOLVER.CUDNN_BENCHMARK": False}
    torch.manual_seed(0)
    model = build_model(load_config(PUBLISHED, words(data)))
    make_sensible(model, spread=1.0)

    def run(device: torch.device, dtype: torch.dtype, amp: str, factor: int) -> list[torch.Tensor]:
        """Logits of a network that learns and of one that does not, and gradients, float64 on the CPU."""
        student = copy.deepcopy(model).to(device, dtype)
        teacher = copy.deepcopy(student).requires_grad_(False)
        with autocast(device, amp):
            logits = [network(image.to(device, dtype)) for network in (student, teacher)]
        (factor * F.cross_entropy(logits[0], labels.to(device))).backward()
        gradients = [parameter.grad / factor for parameter in student.parameters()]
        return [tensor.detach().double().cpu() for tensor in (*logits, *gradients)]

    student, teacher, *gradients = run(torch.device("cpu"), torch.float64, "off", 1)
    for name, (dtype, tf32, amp, factor, limit) in PRECISIONS.items():
        options = {"MODEL.DEVICE": str(bench.device), "SOLVER.TF32": tf32, "SOLVER.AMP": amp}
        device = prepare_device(load_config(PUBLISHED, words(data | options)))
        learning, fixed, *others = run(device, dtype, amp, factor)
        found.within(f"{name} logits", relative_error([learning, fixed], [student, teacher]), limit)
        found.within(f"{name} gradients", relative_error(others, gradients), limit)
        worst = max(relative_error([a], [b]) for a, b in zip(others, gradients, strict=True))
        found.note(**{f"{name} worst parameter": worst})


def method(bench: Workplace, found: Findings) -> None:
    """Pseudo-labels, losses with their gradients, warp and scores at the published sizes, against the CPU."""
    prepare_device(bench.published())
    on_cpu, on_gpu = (method_results(device) for device in (torch.device("cpu"), bench.device))
    for name, value in on_cpu.items():
        if value.dtype == torch.int64:
            found.within(f"{name} that differ", float((on_gpu[name] != value).double().mean()), RARE)
        else:
            found.within(name, relative_error([on_gpu[name]], [value]), TOLERANCE)
    labelled = float((on_cpu["labels"] != IGNORE).double().mean())
    found.note(labelled=labelled)
    found.require(0.05 < labelled < 0.95, f"the case is a poor one: {100 * labelled:.0f} % of the pixels are labelled")
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        rounded = method_scores(bench.device)["snd"]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    found.within("snd with TF32 allowed", relative_error([rounded], [on_gpu["snd"]]), 1e-7)


def method_results(device: torch.device) -> dict[str, torch.Tensor]:
    """By name, on the CPU. Labels come from the same probabilities on both devices: no rounding makes others."""
    generator = torch.Generator().manual_seed(2)
    teacher, student = (
        3 * F.interpolate(torch.randn(2, CLASSES, 12, 24, generator=generator), scale_factor=8, mode="bicubic")
        for _ in range(2)
    )
    views = [View((900, 1800), (150, 311), CROP, True), View((480, 960), (-32, -64), CROP, False)]
    maps = resize_logits(teacher, FULL)
    valid = torch.stack([view.valid() for view in views]).to(device)
    warped = warp_to_view(maps.to(device), views)
    probs = warp_to_view(maps, views).softmax(dim=1).to(device)
    running_conf = update_running_confidence(
        initial_running_confidence(CLASSES, device=device), maps.softmax(dim=1).to(device)
    )
    labels = select_pseudo_labels(probs, running_conf)
    logits = resize_logits(student.to(device), CROP).detach().requires_grad_()
    positive, negative = positive_loss(logits, labels), negative_loss(logits, probs, valid)
    (positive + negative).backward()
    results = {"warp": warped, "running confidence": running_conf, "labels": labels, "positive loss": positive}
    results |= {"negative loss": negative, "gradient": logits.grad, **method_scores(device)}
    return {name: value.detach().cpu() for name, value in results.items()}


def method_scores(device: torch.device) -> dict[str, torch.Tensor]:
    """SND and ENT of made probabilities, on the CPU."""
    generator = torch.Generator().manual_seed(3)
    probs = (3 * torch.randn(FULL[0] * FULL[1] // 64, CLASSES, generator=generator)).softmax(dim=1).to(device)
    points = torch.randperm(len(probs), generator=generator)[:100].to(device)
    return {"snd": snd_score(probs, points).cpu(), "ent": entropy_score(probs).cpu()}


def passes(bench: Workplace, found: Findings) -> None:
    """Two candidate passes and an evaluation by one network in double precision, against the CPU."""
    on_cpu, on_gpu = (pass_results(bench, device) for device in ("cpu", str(bench.device)))
    for name in ("first labels", "first candidates", "later labels", "later candidates", "predictions"):
        pairs = list(zip(on_gpu[name], on_cpu[name], strict=True))
        differing = sum(int((a != b).sum()) for a, b in pairs) / sum(a.size for a, _ in pairs)
        found.within(f"{name} that differ", differing, RARE)
    for name in ("first thresholds", "later thresholds", "mIoU"):
        found.within(name, float(np.abs(on_gpu[name] - on_cpu[name]).max()), TOLERANCE)
    classes = len(np.unique(np.concatenate([labels.ravel() for labels in on_cpu["first labels"]])))
    found.note(classes=classes)
    found.require(classes > 2, f"the case is a poor one: it has {classes} classes")


def pass_results(bench: Workplace, device: str) -> dict[str, Sequence[np.ndarray] | np.ndarray]:
    """What the passes and the evaluation give on a device."""
    config = bench.small(MODEL__NAME=TINY, MODEL__DEVICE=device, DATASETS__TEST="toy_target_val", TEST__BATCH_SIZE=2)
    device = prepare_device(config)
    taxonomy, images = find_taxonomy(config), find_target_images(config)
    predictor, model = Predictor(config, device), load_model(config, device)
    candidate_pass = CandidatePass(images, len(taxonomy), predictor, bench.folder / f"passes_{device.type}")
    generation, results = None, {}
    for name in ("first", "later"):
        generation = candidate_pass.run(model, 0, generation)
        results[f"{name} labels"] = [generation.labels(n) for n in range(len(images))]
        results[f"{name} candidates"] = [generation.candidate_labels(n) for n in range(len(images))]
        results[f"{name} thresholds"] = np.array(generation.thresholds)
        with torch.no_grad():  # another network for the next pass
            for parameter in model.parameters():
                parameter.mul_(1.2)
    predictions = results["predictions"] = []
    evaluator = Evaluator(find_test_images(config), len(taxonomy), predictor)
    scores = evaluator.run(model, save=lambda _, prediction: predictions.append(np.array(prediction)))
    results["mIoU"] = np.array(scores.mean_iou)
    return results


def relative_error(found: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """L2 norm of the difference over that of the reference; infinite where something is not finite."""
    found, reference = (torch.cat([t.double().flatten() for t in tensors]) for tensors in (found, reference))
    error = float((found - reference).norm() / reference.norm().clamp(min=1e-300))
    return error if np.isfinite(error) else float("inf")
