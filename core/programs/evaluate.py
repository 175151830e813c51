"""Evaluate a checkpoint, or every checkpoint of a folder, on DATASETS.TEST, and save its predictions; or order them
without labels, or select among them by a few.

The scores go to the terminal and to OUTPUT_DIR/test_<data set>.csv, the confusion matrix to confusion_<data set>.csv
and .png beside it.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence

from core.configs import load_config
from core.programs.frame import config_parser, path_argument, run_program
from core.programs.ranking import rank_checkpoints
from core.programs.selection import select_checkpoint
from core.programs.testing import evaluate_checkpoints
from core.runs.farewell import log_report
from core.runs.resume import run_folder
from core.utils import distributed
from core.utils.devices import device_errors
from core.utils.errors import UserError
from core.utils.logging import start_logging

ALONE = ("--rank-without-labels", "--saveres", "--save-label-ids", "--flip", "--multi-scale")  # not with --select-with


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with these arguments, by default the process's own; returns its exit code."""
    parser = config_parser(
        __doc__,
        "python test.py -cfg configs/deeplabv2_r101_dtst.yaml resume results/dtst/model_iter020000.pth",
        needed=False,
    )
    parser.add_argument(
        "--saveres",
        action="store_true",
        help="save predictions as colour-palette PNGs under OUTPUT_DIR/inference/<data set>/",
    )
    parser.add_argument(
        "--save-label-ids",
        type=path_argument,
        metavar="DIR",
        help="save predictions as PNGs of the label values of DATASETS.TEST (Cityscapes' labelIds) in DIR, by the "
        "names and numbers that its test server wants, where it has one",
    )
    parser.add_argument(
        "--rank-without-labels",
        action="store_true",
        help="order the checkpoints of a folder by what can be seen without any label; writes OUTPUT_DIR/ranking_*.csv",
    )
    parser.add_argument(
        "--select-with",
        metavar="DATA_SET",
        help="select among the checkpoints of a folder, their source model and models between the two by the labels of "
        "a few images, a data set as DATASETS.TEST names it; writes OUTPUT_DIR/selection_*.csv",
    )
    source, save = "the source model, where it has moved", "write the selected model as a checkpoint"
    parser.add_argument("--source", type=path_argument, metavar="FILE", help=f"with --select-with: {source}")
    parser.add_argument("--save", type=path_argument, metavar="FILE", help=f"with --select-with: {save}")
    parser.add_argument("--overwrite", action="store_true", help="replace label ids, or FILE, that are there already")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image's prediction")
    parser.add_argument("--multi-scale", action="store_true", help="average over 0.7, 1.0 and 1.3 times the size")

    def body(args: Namespace) -> None:
        if args.rank_without_labels and (args.saveres or args.flip or args.multi_scale or args.save_label_ids):
            raise UserError("--rank-without-labels neither saves nor averages predictions: give it alone")
        given = [name for name in ALONE if getattr(args, name.strip("-").replace("-", "_"))]
        if args.select_with is not None and given:
            raise UserError(f"--select-with neither ranks, saves nor averages predictions: leave {given[0]} out")
        if args.select_with is None and (args.source is not None or args.save is not None):
            raise UserError(f"{'--save' if args.source is None else '--source'} goes with --select-with only")
        start_logging()
        config = load_config(args.config_file, args.options)
        with device_errors(config, training=False):
            if args.rank_without_labels:
                rank_checkpoints(config)
            elif args.select_with is not None:
                select_checkpoint(config, args.select_with, args.source, args.save, args.overwrite)
            else:
                averaged = args.flip, args.multi_scale
                evaluate_checkpoints(config, args.saveres, *averaged, args.save_label_ids, args.overwrite)
        if distributed.is_main():
            log_report(run_folder(config))

    return run_program(body, parser, argv, parallel=True)


if __name__ == "__main__":
    sys.exit(main())
