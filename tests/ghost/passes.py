"""A first and a later candidate pass at the published sizes, loader apart: launches, waits and device time an image."""

import time

from published import IMAGE, begin, ghostlib, published, torch, waits_of, write
from timed import begin_clock, clock_arguments, timed

import core.evaluation.predictor as predictors
import core.selftraining.candidate_pass as candidates
from core.selftraining.generations import delete_generations

IMAGES = 16


class Images:
    """As many of one size."""

    def __init__(self, count, skipped):
        self.names, self.skipped = [f"{number}.png" for number in range(count)], skipped

    def __len__(self):
        return len(self.names)


class Threads:
    """Takes the place of core.utils.threads.overlapped, and notes what either thread works; waits are none."""

    def __init__(self):
        self.overlapped, self.seconds = predictors.overlapped, {"forward": 0.0, "take": 0.0}

    def __call__(self, function, items):
        return self.overlapped(self._noting(function, "take"), self._each(items))

    def _noting(self, function, name):
        def call(*given):
            start = time.thread_time()
            try:
                return function(*given)
            finally:
                self.seconds[name] += time.thread_time() - start

        return call

    def _each(self, items):
        items, end = iter(items), object()
        advance = self._noting(lambda: next(items, end), "forward")
        while (item := advance()) is not end:
            yield item


def main():
    args = clock_arguments(__doc__).parse_args()
    begin()
    begin_clock(args)
    with published(args.amp, args.options) as (config, taxonomy, images, model, folder):
        width, height = config.INPUT.INPUT_SIZE_TEST
        size = config.TEST.BATCH_SIZE
        view = torch.zeros(size, 3, height, width, dtype=torch.uint8).pin_memory()

        def batches(images, *_, **__):
            for first in range(0, len(images), size):
                index = list(range(first, first + size))
                yield {"views": [view], "index": index, "size": [IMAGE] * size, "bad": [False] * size}

        predictors.full_view_loader = batches
        predictors.progress = candidates.progress = lambda items, *_: items
        predictors.overlapped = threads = Threads()
        predictor = predictors.Predictor(config, torch.device(config.MODEL.DEVICE))
        some = Images(IMAGES, images.skipped)
        work = candidates.CandidatePass(some, len(taxonomy), predictor, config, folder / "candidates")
        model.requires_grad_(False)
        figures, previous = {}, work.run(model, 0)
        for name, before in (("first", None), ("later", previous)):
            made, threads.seconds = {}, dict.fromkeys(threads.seconds, 0.0)
            if before is None:
                delete_generations(work.folder, set())
            with ghostlib.recording() as events:
                found = timed(lambda: made.update(run=work.run(model, 0, before)))  # noqa: B023 - called at once
            previous = made["run"]
            figures[name] = {key: value / IMAGES for key, value in found.items()}
            figures[name] |= {f"{part}_ms": 1000 * t / IMAGES for part, t in threads.seconds.items()}
            figures[name]["waits"] = {place: times / IMAGES for place, times in waits_of(events).items()}
    write(figures, args.json)


if __name__ == "__main__":
    main()
