"""Draw small sets of street scenes, by daylight and at dusk, in Cityscapes' layout, names and labelIds.

They need no download, and a ResNet-18 learns them on two CPU cores in minutes: enough to see every program of this
project at work. Others, by night, in fog or elsewhere, are drawn when they are named. The scenes of all sets follow one
grammar (`scenes`); what sets them apart is declared in `domains`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started by its path, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from core.programs.frame import Parser, run_program
from core.utils.environment import start_of
from core.utils.errors import UserError, as_shell
from tools.toy_domains.domains import DOMAINS
from tools.toy_domains.drawing import COUNTS, SIZE, draw_domains


def _size(text: str) -> tuple[int, int]:
    width, height = text.lower().split("x")
    return int(width), int(height)


def draw(args: argparse.Namespace) -> None:
    """Draw the domains, and say what was drawn."""
    counts = COUNTS
    if args.domains:
        if unknown := [name for name in args.domains if f"toy_{name}" not in DOMAINS]:
            known = ", ".join(name.removeprefix("toy_") for name in DOMAINS)
            raise UserError(f"--domains {unknown[0]}: no such domain; known are {known}")
        counts = {f"toy_{name}": DOMAINS[f"toy_{name}"].counts for name in args.domains}
    if args.images_per_split is not None:
        counts = {name: dict.fromkeys(splits, args.images_per_split) for name, splits in counts.items()}
    draw_domains(args.out, args.seed, counts, args.size)
    total = sum(sum(splits.values()) for splits in counts.values())
    print(f"{total} images with labels: {', '.join(str(args.out / name) for name in counts)}")
    if "toy_source" in counts:
        words = [*start_of("train_src.py"), "-cfg", "configs/toy_src.yaml", "DATASETS.ROOT", args.out]
        print(f"next, a source model: {as_shell(words)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    parser = Parser(__doc__.partition("\n")[0], "python -m tools.toy_domains datasets")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder in which toy_source and toy_target are made")
    names = "draw toy_NAME instead, one or more of: " + ", ".join(name.removeprefix("toy_") for name in DOMAINS)
    parser.add_argument("--domains", nargs="+", metavar="NAME", help=names)
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="another seed, other scenes (default 1)")
    counts = "images in each split (default: source 400 + 80, target 200 + 80, others 80 or 12 + 40)"
    parser.add_argument("--images-per-split", type=int, metavar="N", help=counts)
    parser.add_argument("--size", type=_size, default=SIZE, metavar="WxH", help="size in pixels (default 512x256)")
    return run_program(draw, parser, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
