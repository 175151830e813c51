"""A checkpoint as a file that runs without this project: ONNX, TorchScript or torch.export, on any size and batch.

Input `image` is N×3×H×W: normalised float32 RGB, or with --normalise plain uint8 RGB. Output `logits` is N×C×H×W
float32, at the input's own size; the largest is the class. The file's metadata hold class names, colours, normalisation
and the size that the network is used to (INPUT.INPUT_SIZE_TEST). Before the file appears, it is read back and compared
with the model here at two sizes, in float32 on the CPU: no logit may differ by more than 1e-4 of the largest one.
"""

import argparse
import importlib.util
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

if not __package__:  # started by its path, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.configs import load_config
from core.datasets.catalog import find_taxonomy
from core.datasets.taxonomy import Taxonomy
from core.datasets.transforms import Normalise
from core.evaluation.predictor import evaluating
from core.models import log_dead_channels
from core.models.backbone import plain_copy
from core.programs.frame import config_parser, run_program
from core.runs.resume import find_checkpoint, new_model, with_known_size
from core.utils.checkpoints import load_checkpoint
from core.utils.errors import UserError
from core.utils.files import make_folder, replacing
from core.utils.logging import LOGGER, start_logging

EXAMPLE = (
    "python -m tools.export -cfg configs/camvid_day2dusk_dtst.yaml resume pretrain/camvid_day_r18.pth "
    "--format onnx --normalise -o camvid.onnx"
)
TOLERANCE = 1e-4  # of the largest logit
INPUT, OUTPUT, METADATA = "image", "logits", "metadata.json"
Runner = Callable[[torch.Tensor], torch.Tensor]
EXAMPLE_SHAPE = (2, 3, 96, 128)  # what the network is traced with; 1 would be taken for a constant


class Deployed(nn.Module):
    """From an image to logits at its own size.

    Args:
        model: a plain copy.
        normalise: applied first; None: the input is normalised already.
    """

    def __init__(self, model: nn.Module, normalise: Normalise | None):
        super().__init__()
        self.model, self._normalise = model, normalise

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        prepared = image if self._normalise is None else self._normalise(image)
        return self.model(prepared, image.shape[-2:])


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        ending: of its files.
        packages: that it needs beside torch.
        write: write(network, example, metadata) → the file's bytes.
        read: read(path) → what runs the file, a function of the input tensor.
    """

    ending: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, torch.Tensor, dict], bytes]
    read: Callable[[Path], Runner]


def _write_onnx(network: nn.Module, example: torch.Tensor, metadata: dict) -> bytes:
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
    )
    for key, value in metadata.items():
        program.model.metadata_props[key] = json.dumps(value, ensure_ascii=False)
    return program.model_proto.SerializeToString()


def _read_onnx(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {INPUT: image.numpy()})[0])


def _write_torchscript(network: nn.Module, example: torch.Tensor, metadata: dict) -> bytes:
    buffer = io.BytesIO()
    script = torch.jit.trace(network, (example,), check_trace=False)  # what follows is the stricter check
    torch.jit.save(script, buffer, _extra_files={METADATA: json.dumps(metadata, ensure_ascii=False)})
    return buffer.getvalue()


def _write_torch_export(network: nn.Module, example: torch.Tensor, metadata: dict) -> bytes:
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(network, (example,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata, ensure_ascii=False)})
    return buffer.getvalue()


def _read_torch_export(path: Path) -> Runner:
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _read_onnx),
    "torchscript": Format(".pt", (), _write_torchscript, lambda path: torch.jit.load(str(path), "cpu")),
    "torch.export": Format(".pt2", (), _write_torch_export, _read_torch_export),
}


def describe(config, taxonomy: Taxonomy, checkpoint: Path, normalised_inside: bool) -> dict:
    """The metadata of an exported file: plain values for JSON."""
    options = config.INPUT
    return {
        "classes": list(taxonomy.names),
        "colours": taxonomy.palette()[: len(taxonomy)].tolist(),
        "input": {
            "name": INPUT,
            "dtype": "uint8" if normalised_inside else "float32",
            "layout": "N×3×H×W, RGB" if normalised_inside or not options.TO_BGR255 else "N×3×H×W, BGR",
            "normalised_inside": normalised_inside,
            "range": 255 if options.TO_BGR255 else 1,  # that of the values before mean and standard deviation
            "mean": list(options.PIXEL_MEAN),
            "std": list(options.PIXEL_STD),
            "usual_size": list(options.INPUT_SIZE_TEST),  # (width, height)
        },
        "output": {"name": OUTPUT, "layout": "N×C×H×W"},
        "model": config.MODEL.NAME,
        "checkpoint": checkpoint.name,
    }


@torch.inference_mode()
def check(run: Runner, model: nn.Module, normalise: Normalise, inside: bool, shapes: Sequence[tuple[int, ...]]) -> None:
    """Feed an exported file and the model, as it was before, with the same noise of every shape.

    Args:
        inside: the file normalises its input itself.
    Raises:
        UserError: their outputs differ.
    """
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        prepared = normalise(image)
        with evaluating(model):
            expected = model(prepared, shape[-2:])
        found = run(image if inside else prepared)
        if found.shape != expected.shape:
            raise UserError(f"the exported file gives {tuple(found.shape)} for {shape}, not {tuple(expected.shape)}")
        difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
        pixels, (batch, _, height, width) = int((found.argmax(1) != expected.argmax(1)).sum()), shape
        result = (
            f"{batch} × {width}×{height}: logits up to {largest:.3g} differ by at most {difference:.2g} "
            f"({difference / largest:.1g} of that), the class in {pixels} of {batch * width * height} pixels"
        )
        if not difference <= TOLERANCE * largest:  # or NaN
            raise UserError(f"the exported file is not the model ({result}): nothing was written")
        LOGGER.info("checked: %s", result)


def export(args: argparse.Namespace) -> None:
    """Load, export, compare, and only then put the file in its place."""
    start_logging()
    form = FORMATS[args.format]
    missing = [name for name in form.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format {args.format} needs more packages: pip install {' '.join(missing)}")
    config = load_config(args.config_file, args.options)
    checkpoint, taxonomy = find_checkpoint(config), find_taxonomy(config)
    config = with_known_size(config, checkpoint)
    path = Path(args.out or Path(config.OUTPUT_DIR) / f"{checkpoint.stem}{form.ending}")
    if os.path.lexists(path) and not args.overwrite:
        raise UserError(f"{path} is already there: choose another -o, or give --overwrite")
    model = new_model(config)
    load_checkpoint(model, checkpoint)
    log_dead_channels(model)
    make_folder(path.parent, "the folder of -o" if args.out else "OUTPUT_DIR")
    normalise = Normalise(config.INPUT)
    network = Deployed(plain_copy(model), normalise if args.normalise else None)
    example = torch.zeros(EXAMPLE_SHAPE, dtype=torch.uint8)
    example = example if args.normalise else normalise(example)
    width, height = config.INPUT.INPUT_SIZE_TEST
    shapes = (1, 3, height, width), (2, 3, max(height * 2 // 3, 16) | 1, max(width // 2, 16) | 1)  # one odd
    with _quiet(), replacing(path) as temporary:
        try:
            with torch.no_grad():
                data = form.write(network, example, describe(config, taxonomy, checkpoint, args.normalise))
        except Exception as error:  # whatever an exporter makes of a network of one's own
            reason = str(error.__cause__ or error).strip().split("\n")[0][:200]
            raise UserError(f"--format {args.format} cannot hold MODEL.NAME {config.MODEL.NAME}: {reason}") from error
        temporary.write_bytes(data)
        check(form.read(temporary), model, normalise, args.normalise, shapes)
    LOGGER.info("wrote %s (%s, %.1f MB, %d classes)", path, args.format, len(data) / 1e6, len(taxonomy))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings and log lines, which are about themselves, and the code that they print."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    parser = config_parser(__doc__, EXAMPLE)
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="default: onnx")
    parser.add_argument("--normalise", action="store_true", help="put the normalisation inside: uint8 RGB in")
    parser.add_argument("-o", "--out", metavar="FILE", help="default: OUTPUT_DIR/<checkpoint> with the format's ending")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    return run_program(export, parser, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
