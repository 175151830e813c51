"""Evaluate a checkpoint, or every checkpoint of a folder, on DATASETS.TEST, and save its predictions.

The scores go to the terminal and to OUTPUT_DIR/test_<data set>.csv.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence

from core.evaluation.testing import evaluate_checkpoints
from core.utils.program import config_parser, run_program


def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit code."""
    parser = config_parser(
        __doc__,
        "python test.py -cfg configs/deeplabv2_r101_dtst.yaml resume results/dtst/model_iter020000.pth",
    )
    parser.add_argument(
        "--saveres",
        action="store_true",
        help="save predictions as colour-palette PNGs under OUTPUT_DIR/inference/<data set>/",
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image's prediction")
    parser.add_argument("--multi-scale", action="store_true", help="average over 0.7, 1.0 and 1.3 times the size")

    def body(args: Namespace) -> None:
        evaluate_checkpoints(args.config_file, args.options, args.saveres, args.flip, args.multi_scale)

    return run_program(body, parser, argv, parallel=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
