"""What every stage of a run costs beside its own limit, measured in one process on data that it makes.

A stage and its limit are timed in turns, and their medians compared. Nothing passes or fails here.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

if not __package__:  # started by its path, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from core.configs import load_config
from core.programs.frame import Parser, run_program
from core.utils.devices import describe_device
from core.utils.errors import UserError
from tools.benchmark import stages
from tools.benchmark.bench import HEADER, Bench
from tools.benchmark.data import photograph

CONFIG = "configs/deeplabv2_r101_dtst.yaml"
IMAGES = 4
STAGES = {
    "samples": stages.bench_samples,
    "step": stages.bench_step,
    "networks": stages.bench_networks,
    "sweeps": stages.bench_sweeps,
    "start": stages.bench_start,
}


def run(args: argparse.Namespace) -> None:
    """Make the data and measure what was asked for."""
    wanted = args.stages.split(",")
    if unknown := [stage for stage in wanted if stage not in STAGES]:
        raise UserError(f"--stages {','.join(unknown)}: no such stage; there are {', '.join(STAGES)}")
    with tempfile.TemporaryDirectory(prefix="dtst-benchmark-") as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for number in range(IMAGES):
            Image.fromarray(photograph(number, stages.IMAGE_SIZE)).save(folder / f"images/{number}.png")
        options = ["SOLVER.BATCH_SIZE", "1", "DATALOADER.NUM_WORKERS", "0", *args.options]
        options += ["MODEL.DEVICE", args.device, "DATASETS.TARGET_TRAIN", f"folder:{folder / 'images'}"]
        config = load_config(args.config, [*options, "resume", "", "MODEL.WEIGHTS", ""])
        bench = Bench(config, folder, args.repeats)
        device = describe_device(bench.device, args.device)
        print(f"{device}, torch {torch.__version__}, batch {config.SOLVER.BATCH_SIZE}")
        print(HEADER)
        for stage in wanted:
            STAGES[stage](bench)
        if args.json:
            rows = [asdict(row) | {"ratio": row.ratio} for row in bench.rows]
            args.json.write_text(json.dumps(rows, indent=1) + "\n")


def main(argv: Sequence[str]) -> int:
    """Measure and print a table; returns the exit code."""
    parser = Parser(__doc__, f"python -m tools.benchmark --config {CONFIG} --json benchmark.json")
    parser.add_argument("--config", default=CONFIG, help="default %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--repeats", type=int, default=5, help="of every measurement (default %(default)s)")
    parser.add_argument("--stages", default=",".join(STAGES), help="some of %(default)s")
    parser.add_argument("--json", type=Path, help="write the table to this file, too")
    parser.add_argument("options", nargs="*", metavar="KEY VALUE", help="any option of the config")
    return run_program(run, parser, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
