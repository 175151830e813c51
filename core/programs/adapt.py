"""Adapt a source model to unlabelled target images (DT-ST: Zhao et al., CVPR 2023).

`resume` names the source model (`random`: there is none). Checkpoints, tables, log and panels go to OUTPUT_DIR; the
same command with `resume auto` goes on with a run.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence

from core.programs.frame import config_parser, run_program
from core.programs.preflight import check
from core.runs.start import run_training
from core.selftraining.automatic import trainer_for


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with these arguments, by default the process's own; returns its exit code."""
    parser = config_parser(
        __doc__,
        "python train_TCR_DTU.py -cfg configs/deeplabv2_r101_dtst.yaml OUTPUT_DIR results/dtst/ "
        "resume pretrain/G2C_model_iter020000.pth",
    )
    parser.add_argument("--skip-test", action="store_true", help="write checkpoints without evaluating them")
    parser.add_argument(
        "--check",
        action="store_true",
        help="try config, data, weights, one step and one paste, say what a run will cost, and stop",
    )

    def body(args: Namespace) -> None:
        program = check if args.check else run_training
        program(trainer_for, args.config_file, args.options, args.skip_test)

    return run_program(body, parser, argv, resumable=True, parallel=True)


if __name__ == "__main__":
    sys.exit(main())
