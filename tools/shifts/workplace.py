"""The folder in which shifts are run: what a shift needs is made there once, and used again as long as it is the same.

domains/                 the toy domains, drawn
sources/NAME/            source models, by config and options
CONFIG[_OPTIONS]/        one per config and KEY VALUE options
    SHIFT/source/        the source model's evaluation
    SHIFT/seed_N/        a run; its evaluation inside, its output beside it in seed_N.log
"""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

from core.adaptation import choices, guard, looks, survey
from core.configs import load_config
from core.configs.node import Config
from core.programs.testing import folder_name
from core.runs.resume import checkpoints_in
from core.utils.environment import from_here
from core.utils.errors import UserError, one_line
from core.utils.files import write_json
from core.utils.locks import check_unlocked
from core.utils.tables import read_table
from tools.runs import Run, claim_folder
from tools.shifts.declared import OWN_OPTIONS, Shift, Source
from tools.shifts.table import ADAPTED, Row, Scores, row_of

RULES = (choices, guard, looks, survey)  # modules
MARK, RECORD = ".shifts.json", "made_from.json"
DOMAINS, SOURCES = "domains", "sources"
TOY = "toy_"
LONGEST = 120  # characters of a folder's name


class Workplace:
    """Runs one config, with some options, on shifts.

    Args:
        folder: for everything; new, empty, or one that this program has made.
        config_file: of the adaptation.
        options: KEY VALUE, as the user gave them; they win over what a shift says.

    Attributes:
        results: where this config and these options have their runs and their table.

    Raises:
        UserError: the folder holds something else; an option is unknown, wrong, or set by this program itself.
    """

    def __init__(self, folder: Path, config_file: str, options: Sequence[str] = ()):
        load_config(config_file, options)
        by_key = dict(zip(options[::2], options[1::2], strict=True))
        for key in OWN_OPTIONS:
            if key in by_key:
                raise UserError(f"{key} is set by this program{': give --seeds' if key == 'SEED' else ''}")
        self.config_file = config_file
        self.options = tuple(word for pair in sorted(by_key.items()) for word in pair)
        name = name_of(config_file, self.options)
        if name in (DOMAINS, SOURCES):
            raise UserError(f"--config {config_file}: {name} names another folder here; give the file another name")
        self.folder = plain(folder)
        self.amp = claim_folder(self.folder, MARK, "the shifts")
        self.domains, self.results = self.folder / DOMAINS, self.folder / name
        self._sources: dict[Source, Path | UserError] = {}
        self._stopped = threading.Event()

    def options_of(self, shift: Shift) -> tuple[str, ...]:
        """Of its runs and evaluations, but for seed, weights and folder."""
        words = (*shift.options, "SOLVER.AMP", self.amp, *self.options)
        return (*words, *self._root(load_config(self.config_file, words), ("TARGET_TRAIN", "TEST")))

    def source_run(self, source: Source) -> Run:
        """By which a source model is trained."""
        config = load_config(source.config_file, source.options)
        root = self._root(config, ("SOURCE_TRAIN", "TEST"))
        folder = self.folder / SOURCES / name_of(source.config_file, source.options)
        options = ("SOLVER.AMP", self.amp, *source.options, *root)
        return Run("train_src.py", source.config_file, folder, options)

    def run_of(self, shift: Shift, seed: int, checkpoint: Path) -> Run:
        """The adaptation."""
        options = (*self.options_of(shift), "SEED", str(seed), "resume", str(checkpoint))
        folder = self.results / shift.name / f"seed_{seed}"
        return Run("train_TCR_DTU.py", self.config_file, folder, options)

    def draw_domains(self, shifts: Sequence[Shift]) -> None:
        """Draw what is missing of the toy domains that some shifts need. Raises UserError where that fails."""
        names = set()
        for shift in shifts:
            names |= toy_domains(load_config(self.config_file, self.options_of(shift)), ("TARGET_TRAIN", "TEST"))
            if shift.source.config_file:
                config = load_config(shift.source.config_file, shift.source.options)
                names |= toy_domains(config, ("SOURCE_TRAIN", "TEST"))
        missing = sorted(name for name in names if not (self.domains / f"{TOY}{name}").is_dir())
        if missing:
            words = ["-m", "tools.toy_domains", str(self.domains), "--domains", *missing]
            seconds = run_command(words, self.folder / f"{DOMAINS}.log")
            print(f"domains {', '.join(missing)}: drawn, {seconds:.0f} s", flush=True)

    def make_rows(self, shifts: Sequence[Shift], seeds: Sequence[int], jobs: int = 1) -> list[Row]:
        """:meth:`make_row` of every shift and seed, in their order; so many processes at a time."""
        pairs = [(shift, seed) for shift in shifts for seed in seeds]
        if jobs == 1:
            return [self.make_row(*pair) for pair in pairs]

        def make(pair: tuple[Shift, int]) -> Row | None:
            return None if self._stopped.is_set() else self.make_row(*pair)

        with ThreadPoolExecutor(jobs) as pool:  # every run is a process of its own
            try:  # what several runs share is made before them
                list(pool.map(self._find_source, dict.fromkeys(shift.source for shift in shifts)))
                list(pool.map(self._try_source, shifts))
                return [row for row in pool.map(make, pairs) if row]
            except BaseException:  # Ctrl-C, which the processes at work heard, too
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise

    def make_row(self, shift: Shift, seed: int) -> Row:
        """Make or reuse a run, its evaluation and that of its source model, and say how it went in a line."""
        title = f"{shift.name}, seed {seed}"
        try:
            checkpoint = self._source(shift.source)
            seconds, reused = self._adapt(self.run_of(shift, seed, checkpoint), checkpoint)
            print(f"{title}: {'reused, ' * reused}{seconds:.0f} s", flush=True)
            source = self._evaluate_source(shift, checkpoint)
            scores = self._evaluate(shift, self.run_of(shift, seed, checkpoint))
            return row_of(shift.name, seed, source, scores, seconds)
        except UserError as error:
            print(f"{title}: failed: {error}", flush=True)
            return Row(shift.name, seed, error=str(error))

    def start_of(self, shift: Shift, seed: int) -> tuple[Config, bool]:
        """The config of a run, and whether the run has ended: then with what it chose itself.

        The source model, which the config names, is trained where it is missing.
        """
        checkpoint = self._source(shift.source)
        run = self.run_of(shift, seed, checkpoint)
        ended = finished(run, checkpoint) is not None
        return run.config if ended else load_config(self.config_file, run.words), ended

    def _root(self, config: Config, keys: Sequence[str]) -> tuple[str, ...]:
        return ("DATASETS.ROOT", str(self.domains)) if toy_domains(config, keys) else ()

    def _source(self, source: Source) -> Path:
        """Its checkpoint, trained where it is missing. Raises UserError where there is none."""
        found = self._find_source(source)
        if isinstance(found, UserError):
            raise found
        return found

    def _find_source(self, source: Source) -> Path | UserError:
        """The same, with the error in the place of the checkpoint; what failed once is not tried again."""
        if source.checkpoint:
            path = Path(source.checkpoint)
            return path if path.is_file() else UserError(f"the source model {path} does not exist")
        if source not in self._sources:
            try:
                self._sources[source] = self._train(self.source_run(source))
            except UserError as error:
                self._sources[source] = error
        return self._sources[source]

    def _train(self, run: Run) -> Path:
        if not run.is_complete():
            self._remove(run.folder)
            try:
                seconds = run_command(training(run), log_of(run.folder))
            except UserError as error:
                raise UserError(f"source {run.folder.name}: {error}") from None
            print(f"source {run.folder.name}: {seconds:.0f} s", flush=True)
        return run.checkpoint

    def _adapt(self, run: Run, checkpoint: Path) -> tuple[float, bool]:
        """How many seconds the run took, and whether it was there already: this very run, from these very weights."""
        made = finished(run, checkpoint)
        if made is not None:
            return made, True
        self._remove(run.folder)
        seconds = round(run_command(training(run), log_of(run.folder)), 2)  # as a run that is used again has it
        record = {"source": digest(checkpoint), "rules": rules(), "seconds": seconds}
        write_json(run.folder / RECORD, record)
        return seconds, False

    def _evaluate(self, shift: Shift, run: Run) -> dict[str, Scores]:
        """Scores of a run's checkpoints by their files' names."""
        wanted = {path.name for path in checkpoints_in(run.folder)}
        wanted |= {path.name for path in run.folder.glob(ADAPTED)}
        options = (*self.options_of(shift), "resume", str(run.folder))
        return self._scores(options, run.folder / "evaluation", log_of(run.folder), wanted)

    def _evaluate_source(self, shift: Shift, checkpoint: Path) -> Scores:
        """Scores of the source model as this config sees it on the shift's test set."""
        folder = self.results / shift.name / "source"
        options = (*self.options_of(shift), "resume", str(checkpoint))
        made_from = {"config": load_config(self.config_file, options).dump(), "source": digest(checkpoint)}
        made = read_json(folder / RECORD) == made_from
        if not made:
            self._remove(folder)
        scores = self._scores(options, folder, log_of(folder), {checkpoint.name})
        if not made:  # else other runs may be reading it
            write_json(folder / RECORD, made_from)
        return scores[checkpoint.name]

    def _try_source(self, shift: Shift) -> None:
        """Evaluate a shift's source model, if that can be done; its runs will say why not."""
        if not self._stopped.is_set():
            with suppress(UserError):
                self._evaluate_source(shift, self._source(shift.source))

    def _scores(self, options: Sequence[str], folder: Path, log: Path, wanted: set[str]) -> dict[str, Scores]:
        """What test.py says of the `wanted` checkpoints; it is not asked again where its table holds them all."""
        table = folder / f"test_{folder_name(load_config(self.config_file, options).DATASETS.TEST)}.csv"
        scores = read_scores(table)
        if scores.keys() != wanted:
            run_command(["test.py", "-cfg", self.config_file, *options, "OUTPUT_DIR", str(folder)], log, append=True)
            scores = read_scores(table)
        if scores.keys() != wanted:
            raise UserError(f"{table} does not hold {', '.join(sorted(wanted - scores.keys()))}; see {log}")
        return scores

    def _remove(self, folder: Path) -> None:
        """Remove what is to be made anew. Raises UserError where a process is still at work there."""
        if self.folder not in folder.parents:
            raise UserError(f"{folder} is not below {self.folder}")
        if folder.exists():
            check_unlocked(folder, "OUTPUT_DIR")
            shutil.rmtree(folder)


def finished(run: Run, checkpoint: Path) -> float | None:
    """The seconds of a run that ended well, by the same command and from the same weights; None: there is none."""
    record = read_json(run.folder / RECORD)
    if not run.is_begun() or record.get("source") != digest(checkpoint) or not checkpoints_in(run.folder):
        return None
    if run.config.ADAPT.AUTO and record.get("rules") != rules():
        return None
    return record["seconds"]


def rules() -> str:
    """A digest of the constants by which automatic runs choose: with others, a run is another one."""
    constants = {name: value for module in RULES for name, value in vars(module).items() if name.isupper()}
    return hashlib.sha256(repr(sorted(constants.items())).encode()).hexdigest()


def training(run: Run) -> list[str]:
    """The words of its command."""
    return [run.program, "-cfg", run.config_file, "--skip-test", *run.words]


def log_of(folder: Path) -> Path:
    """Beside a run's folder."""
    return folder.with_name(f"{folder.name}.log")


def run_command(words: Sequence[str], log: Path, append: bool = False) -> float:
    """Run `python …` with its output in a log file; returns the seconds that it took.

    Raises:
        UserError: it failed; with the last line of its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    words = from_here(words)
    command = f"$ python {shlex.join(words)}"
    start = time.monotonic()
    with log.open("ab" if append else "wb") as file:
        file.write(f"{command}\n".encode())
        file.flush()
        code = subprocess.run(
            [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    if code:
        last = last_line(log)
        said = "" if last == one_line(command) else last.removeprefix("error: ")
        ended = "" if said and code == 1 else f"it ended with exit code {code}"
        raise UserError(f"{': '.join(filter(None, (ended, said)))} (see {log})")
    return time.monotonic() - start


def last_line(log: Path) -> str:
    """Of a log, that is not empty; of a progress bar, what it showed last."""
    lines = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace"))
    return one_line(next((line.strip() for line in reversed(lines) if line.strip()), ""))


def read_scores(table: Path) -> dict[str, Scores]:
    """A table of test.py: by checkpoint, what it holds by column; empty where there is none."""
    return {row.pop("checkpoint"): {key: float(value) for key, value in row.items()} for row in read_table(table)}


def read_json(path: Path) -> dict:
    """What a file holds; empty where there is none, or none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def toy_domains(config: Config, keys: Sequence[str]) -> set[str]:
    """Names of the toy domains among a config's data sets: `low_sun` of `toy_low_sun_train`."""
    names = (config.DATASETS[key] for key in keys)
    return {name.removeprefix(TOY).rpartition("_")[0] for name in names if name.startswith(TOY)}


def name_of(config_file: str, options: Sequence[str]) -> str:
    """A folder's name for a config file and options of it; another one for others."""
    words = "_".join((Path(config_file).stem, *options))
    name = re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", words)
    if name == words and len(name) <= LONGEST:
        return name
    return f"{name[:LONGEST]}_{hashlib.sha256(words.encode()).hexdigest()[:8]}"


def plain(folder: Path) -> Path:
    """One spelling of a folder, below the working directory where it is: the saved configs hold it."""
    folder, here = folder.resolve(), Path.cwd()
    return folder.relative_to(here) if here in folder.parents else folder


def digest(path: Path) -> str:
    """Of a file's content, read again where the file has changed."""
    found = path.stat()
    return _digest(path, found.st_mtime_ns, found.st_size)


@cache
def _digest(path: Path, time_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
