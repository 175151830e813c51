"""One adaptation step at the published sizes: launches, host time and waits by phase, memory of torch's allocator."""

import time

from published import arguments, begin, ghostlib, torch, training, waits_of, write

import core.selftraining.dynamic_teacher as teachers
import core.selftraining.trainer as trainers

PARTS = ("resize_logits", "mean_confidence", "warp_to_view", "select_pseudo_labels", "negative_pairs", "part_losses")


def watch(trainer):
    """The phases of a step, as ghostlib notes them."""
    phases = ghostlib.Phases()
    for owner, name in (
        *((trainer, name) for name in ("begin_step", "pseudo_label", "_student_logits")),
        *((trainer.solver, name) for name in ("backward", "step")),
        *((trainer.dynamic_teacher, name) for name in ("before_step", "after_step")),
        *((trainers, name) for name in PARTS),
        (trainer.predictor, "prepare"),
        (teachers, "ema_update"),
    ):
        phases.wrap(owner, name)
    logits = trainer.predictor.logits

    def named(model, prepared):
        name = "teacher" if model is trainer.teacher else "student" if model.training else "student's score"
        with phases.phase(f"network: {name}"):
            return logits(model, prepared)

    trainer.predictor.logits = named
    return phases


def measured(trainer, batch, phases):
    """Figures of one step."""
    phases.rows.clear()
    torch.cuda.reset_peak_memory_stats()
    stored, launches = len(trainer.dynamic_teacher._buffer), ghostlib.L.ghost_launches()
    with ghostlib.recording() as events:
        start = time.perf_counter()
        trainer.train_step(batch)
        seconds = time.perf_counter() - start
    figures = {
        "stored": stored,
        "launches": ghostlib.L.ghost_launches() - launches,
        "host_ms": 1000 * seconds,
        "waits": waits_of(events),
        "allocated_GB": torch.cuda.memory_allocated() / 1e9,
        "peak_GB": torch.cuda.max_memory_allocated() / 1e9,
    }
    phases.table()
    return figures


def main():
    parser = arguments(__doc__)
    parser.add_argument("--stored", type=int, default=32, help="batches on the device when the last step is measured")
    args = parser.parse_args()
    begin()
    with training(args.amp, args.options) as (trainer, batch):
        phases, dtu = watch(trainer), trainer.dynamic_teacher.options
        figures = {"step": measured(trainer, batch, phases)}
        while len(trainer.dynamic_teacher._buffer) < dtu.Query_START - 1:
            trainer.train_step(batch)
        figures["query"] = measured(trainer, batch, phases)
        dtu = dtu.clone()
        dtu.defrost()
        dtu.Query_START = 10**6
        trainer.dynamic_teacher.options = dtu
        while len(trainer.dynamic_teacher._buffer) < args.stored:
            trainer.train_step(batch)
        figures["full"] = measured(trainer, batch, phases)
    write(figures, args.json)


if __name__ == "__main__":
    main()
