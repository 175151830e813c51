"""A checkpoint as a file that runs without this project: ONNX, TorchScript or torch.export, on any size and batch.

Input `image` is N×3×H×W: normalised float32 RGB, or with --normalise plain uint8 RGB. The output, at the input's own
size, is named as --output says: `logits` or `softmax`, N×C×H×W float32, or `labels`, N×H×W uint8, the class of the
largest. With --fixed-size it takes one image of INPUT.INPUT_SIZE_TEST alone: for networks of one's own whose way
depends on the size, and for runtimes that want it so. The file's metadata hold class names, colours, normalisation
and the size that the network is used to (INPUT.INPUT_SIZE_TEST). Before the file appears, it is read back and compared
with the model here at two sizes (or that one), on the CPU, the model in float32: no value may differ by more than 1e-4
of the largest one (with --half 1e-2), and no label may be a class whose logit lies further than twice that below the
winner's.
"""

import argparse
import importlib.util
import io
import json
import logging
import os
import shlex
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
from core.models import log_network
from core.models.backbone import plain_copy
from core.programs.frame import config_parser, path_argument, run_program
from core.runs.known import known_bands, with_known
from core.runs.resume import find_checkpoint, new_model
from core.utils.checkpoints import load_checkpoint
from core.utils.errors import UserError
from core.utils.files import make_folder, replacing
from core.utils.logging import LOGGER, start_logging

EXAMPLE = (
    "python -m tools.export -cfg configs/camvid_day2dusk_dtst.yaml resume pretrain/camvid_day_r18.pth "
    "--format onnx --normalise -o camvid.onnx"
)
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2  # of the largest value; float16 itself was seen to cost up to 2e-3
INPUT, METADATA = "image", "metadata.json"
LABELS = "labels"
OUTPUTS = {  # from logits, N×C×H×W float32; and their layout and dtype
    "logits": (lambda logits: logits, "N×C×H×W", "float32"),
    "softmax": (lambda logits: logits.softmax(1), "N×C×H×W", "float32"),
    # by way of float32, as TensorRT has uint8 at a network's ends only, and makes it of floats
    LABELS: (lambda logits: logits.argmax(1).float().to(torch.uint8), "N×H×W", "uint8"),
}
Runner = Callable[[torch.Tensor], torch.Tensor]
EXAMPLE_SHAPE = (2, 3, 96, 128)  # what the network is traced with; 1 would be taken for a constant


class Deployed(nn.Module):
    """From an image to what is predicted at its own size.

    Args:
        model: a plain copy.
        normalise: applied first; None: the input is normalised already.
        output: one of OUTPUTS.
        half: the model computes in float16; what goes in and comes out does not.
    """

    def __init__(self, model: nn.Module, normalise: Normalise | None, output: str = "logits", half: bool = False):
        super().__init__()
        self.model, self._normalise = model.half() if half else model, normalise
        self._half, (self._finish, *_) = half, OUTPUTS[output]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        prepared = image if self._normalise is None else self._normalise(image.float())
        logits = self.model(prepared.half() if self._half else prepared, image.shape[-2:])
        return self._finish(logits)


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        ending: of its files.
        packages: that it needs beside torch.
        write: write(network, example, metadata, fixed, opset) → the file's bytes; the metadata name its output. The
            example's shape is the only one if `fixed`; `opset` is ONNX's (None: as torch has it).
        read: read(path) → what runs the file, a function of the input tensor.
    """

    ending: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, torch.Tensor, dict, bool, int | None], bytes]
    read: Callable[[Path], Runner]


def _write_onnx(network: nn.Module, example: torch.Tensor, metadata: dict, fixed: bool, opset: int | None) -> bytes:
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        dynamic_shapes=None if fixed else ({0: "batch", 2: "height", 3: "width"},),
        input_names=[INPUT],
        output_names=[metadata["output"]["name"]],
        opset_version=opset,
        verbose=False,
    )
    found = program.model.opset_imports[""]
    if opset not in (None, found):  # torch leaves it where it cannot convert
        raise UserError(f"--opset {opset}: torch {torch.__version__} makes opset {found} of this network; give that")
    for key, value in metadata.items():
        program.model.metadata_props[key] = json.dumps(value, ensure_ascii=False)
    return program.model_proto.SerializeToString()


def _read_onnx(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {INPUT: image.numpy()})[0])


def _write_torchscript(network: nn.Module, example: torch.Tensor, metadata: dict, *_: object) -> bytes:
    buffer = io.BytesIO()
    script = torch.jit.trace(network, (example,), check_trace=False)  # what follows is the stricter check
    torch.jit.save(script, buffer, _extra_files={METADATA: json.dumps(metadata, ensure_ascii=False)})
    return buffer.getvalue()


def _write_torch_export(network: nn.Module, example: torch.Tensor, metadata: dict, fixed: bool, _: object) -> bytes:
    dynamic = torch.export.Dim.DYNAMIC
    shapes = None if fixed else ({0: dynamic, 2: dynamic, 3: dynamic},)
    program = torch.export.export(network, (example,), dynamic_shapes=shapes)
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


def describe(
    config, taxonomy: Taxonomy, checkpoint: Path, normalised_inside: bool, output: str = "logits", half: bool = False
) -> dict:
    """The metadata of an exported file: plain values for JSON."""
    options, (_, layout, dtype) = config.INPUT, OUTPUTS[output]
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
            **_of_other_images(config, checkpoint),
        },
        "output": {"name": output, "layout": layout, "dtype": dtype},
        "computes_in": "float16" if half else "float32",
        "model": config.MODEL.NAME,
        "checkpoint": checkpoint.name,
    }


def _of_other_images(config, checkpoint: Path) -> dict:
    """Of a model for 16-bit images or bands: the values that become 0 and 255, and which are red, green, blue."""
    found = {"values_of_0_and_255": list(config.INPUT.DEPTH_RANGE), "bands": list(known_bands(checkpoint))}
    return {key: value for key, value in found.items() if value}


@torch.inference_mode()
def check(
    run: Runner,
    model: nn.Module,
    normalise: Normalise,
    inside: bool,
    shapes: Sequence[tuple[int, ...]],
    output: str = "logits",
    tolerance: float = TOLERANCE,
    way: str = "",
) -> None:
    """Feed an exported file and the model, as it was before, with the same noise of every shape.

    Args:
        inside: the file normalises its input itself.
        output: one of OUTPUTS, which the file gives.
        tolerance: of the largest value.
        way: what to do where the file does not take a shape, for messages.
    Raises:
        UserError: their outputs differ, or the file does not take a shape.
    """
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        prepared = normalise(image)
        try:
            with evaluating(model):
                logits = model(prepared, shape[-2:])
            found = run(image if inside else prepared)
        except Exception as error:  # whatever a network, or a runtime, makes of a size that it does not take
            raise UserError(f"the network or its file fails for {shape}: {_reason(error)}{way}") from error
        expected = OUTPUTS[output][0](logits)
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            here, there = (f"{tuple(one.shape)} {one.dtype}" for one in (expected, found))
            raise UserError(f"the exported file gives {there} for {shape}, not {here}{way}")
        agrees, told = (_compare_labels if output == LABELS else _compare_values)(found, expected, logits, tolerance)
        batch, _, height, width = shape
        result = f"{batch} × {width}×{height}: {output} {told} of {batch * width * height} pixels"
        if not agrees:
            raise UserError(f"the exported file is not the model ({result}): nothing was written{way}")
        LOGGER.info("checked: %s", result)


def _compare_values(found: torch.Tensor, expected: torch.Tensor, _: torch.Tensor, tolerance: float) -> tuple[bool, str]:
    """Whether N×C×H×W values agree, and in words how well."""
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    pixels = int((found.argmax(1) != expected.argmax(1)).sum())
    told = f"up to {largest:.3g} differ by at most {difference:.2g} ({difference / largest:.1g} of that), the class in"
    return difference <= tolerance * largest, f"{told} {pixels}"  # not where it is NaN


def _compare_labels(
    found: torch.Tensor, expected: torch.Tensor, logits: torch.Tensor, tolerance: float
) -> tuple[bool, str]:
    """Whether N×H×W labels are as good as the expected ones: both logits of what differs may be off by `tolerance`."""
    given = logits.gather(1, found.long().clamp(max=logits.shape[1] - 1)[:, None])[:, 0]
    behind, largest = float((logits.amax(1) - given).max()), float(logits.abs().max())
    agree = behind <= 2 * tolerance * largest and int(found.max()) < logits.shape[1]
    told = f"lie at most {behind:.2g} below the largest logits ({behind / largest:.1g} of their largest), and differ in"
    return agree, f"{told} {int((found != expected).sum())}"


def export(args: argparse.Namespace) -> None:
    """Load, export, compare, and only then put the file in its place."""
    start_logging()
    form = FORMATS[args.format]
    missing = [name for name in form.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format {args.format} needs more packages: pip install {' '.join(missing)}")
    if args.opset is not None and args.format != "onnx":
        raise UserError(f"--opset is of ONNX files, not of --format {args.format}: leave it out")
    config = load_config(args.config_file, args.options)
    checkpoint = find_checkpoint(config)
    config = with_known(config, checkpoint)
    taxonomy = find_taxonomy(config)
    path = Path(args.out or Path(config.OUTPUT_DIR) / f"{checkpoint.stem}{form.ending}")
    if os.path.lexists(path) and not args.overwrite:
        raise UserError(f"{path} is already there: choose another -o, or give --overwrite")
    model = new_model(config)
    load_checkpoint(model, checkpoint)
    LOGGER.info("checkpoint: %s", checkpoint)
    log_network(model)
    make_folder(path.parent, "the folder of -o" if args.out else "OUTPUT_DIR")
    normalise = Normalise(config.INPUT)
    network = Deployed(plain_copy(model), normalise if args.normalise else None, args.output, args.half)
    metadata = describe(config, taxonomy, checkpoint, args.normalise, args.output, args.half)
    width, height = config.INPUT.INPUT_SIZE_TEST
    shapes = [(1, 3, height, width), (2, 3, max(height * 2 // 3, 16) | 1, max(width // 2, 16) | 1)]  # one odd
    way = f"; --fixed-size tries it for images of {width}×{height} alone"
    if args.fixed_size:
        way = ""
        del shapes[1]
        metadata["input"]["shape"] = list(shapes[0])
    example = torch.zeros(shapes[0] if args.fixed_size else EXAMPLE_SHAPE, dtype=torch.uint8)
    example = example if args.normalise else normalise(example)
    with _quiet(), replacing(path) as temporary:
        try:
            with torch.no_grad():
                data = form.write(network, example, metadata, args.fixed_size, args.opset)
        except UserError:
            raise
        except Exception as error:  # whatever an exporter makes of a network of one's own
            what = f"--format {args.format} cannot hold MODEL.NAME {config.MODEL.NAME}: {_reason(error)}{way}"
            raise UserError(what) from error
        temporary.write_bytes(data)
        tolerance = HALF_TOLERANCE if args.half else TOLERANCE
        check(form.read(temporary), model, normalise, args.normalise, shapes, args.output, tolerance, way)
    LOGGER.info(
        "wrote %s (%s in %s, %.1f MB): %s of %d classes",
        shlex.quote(str(path)), args.format, metadata["computes_in"], len(data) / 1e6, args.output, len(taxonomy),
    )  # fmt: skip


def _reason(error: Exception) -> str:
    """The first line of what an exporter says, and the next one where that only announces it."""
    lines = [line.strip() for line in str(error.__cause__ or error).split("\n") if line.strip()]
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])[:200]


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
    parser = config_parser(__doc__, EXAMPLE, needed=False)
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="default: onnx")
    parser.add_argument("--normalise", action="store_true", help="put the normalisation inside: uint8 RGB in")
    gives = "what it gives (default: logits; argmax is labels)"
    known = {"argmax": LABELS}
    parser.add_argument(
        "--output", type=lambda name: known.get(name, name), choices=tuple(OUTPUTS), default="logits", help=gives
    )
    parser.add_argument("--half", action="store_true", help="compute in float16: half the size; logits stay float32")
    fixed = "batch 1, and INPUT.INPUT_SIZE_TEST as the only size"
    parser.add_argument("--fixed-size", action="store_true", help=fixed)
    parser.add_argument("--opset", type=int, metavar="N", help="of the ONNX file (default: torch's)")
    out = "default: OUTPUT_DIR/<checkpoint> with the format's ending"
    parser.add_argument("-o", "--out", type=path_argument, metavar="FILE", help=out)
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    return run_program(export, parser, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
