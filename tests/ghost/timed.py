"""Adaptation steps at the published sizes with a clock: how long the device is busy, and how long it has no work.

A kernel takes what its sizes say; the host is the real one, so only what the device does carries over to another.
"""

import ctypes
import time

from published import arguments, begin, ghostlib, torch, training, write

TF32, HALF = 200e12, 400e12  # FLOP/s of convolutions
STEPS = 14


def begin_clock(args):
    """Have launches take time."""
    ghostlib.L.ghost_busy.restype = ghostlib.L.ghost_waited.restype = ctypes.c_double
    ghostlib.L.ghost_rates.argtypes = [ctypes.c_double, ctypes.c_double]
    ghostlib.L.ghost_rates(args.tf32, args.half)


def clock_arguments(description):
    parser = arguments(description)
    parser.add_argument("--tf32", type=float, default=TF32, help="FLOP/s of float32 convolutions")
    parser.add_argument("--half", type=float, default=HALF, help="FLOP/s of convolutions in half precision")
    return parser


def timed(action):
    """Figures of what `action()` asks of the device, to its end."""
    torch.cuda.synchronize()
    ghostlib.L.ghost_time(1)
    start, launches = time.perf_counter(), ghostlib.L.ghost_launches()
    action()
    torch.cuda.synchronize()
    seconds, busy = time.perf_counter() - start, ghostlib.L.ghost_busy()
    return {
        "ms": 1000 * seconds,
        "busy_ms": 1000 * busy,
        "idle_ms": 1000 * (seconds - busy),
        "host_ms": 1000 * (seconds - ghostlib.L.ghost_waited()),
        "launches": ghostlib.L.ghost_launches() - launches,
    }


def main():
    args = clock_arguments(__doc__).parse_args()
    begin()
    begin_clock(args)
    with training(args.amp, args.options) as (trainer, batch):
        after_step, queries = trainer.dynamic_teacher.after_step, []

        def watched(iteration):
            stored = len(trainer.dynamic_teacher._buffer)
            queries.append({"stored": stored} | timed(lambda: after_step(iteration)))

        steps = [timed(lambda: trainer.train_step(batch)) for _ in range(STEPS)]
        trainer.dynamic_teacher.after_step = watched
        for _ in range(STEPS):
            trainer.train_step(batch)
        queries = [query for query in queries if query["launches"]]
    write({"steps": steps, "queries": queries}, args.json)


if __name__ == "__main__":
    main()
