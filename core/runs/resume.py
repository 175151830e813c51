"""What `resume` means: the weights that a run starts from, the run that goes on, the checkpoints to look at.

In training, FILE is a checkpoint, from whose weights a new run starts; random says that there is none: the run starts
from MODEL.WEIGHTS, or random weights, as it does where nothing is given, which adaptation refuses; FOLDER is a run to
go on with; auto goes on with the run in OUTPUT_DIR; auto:FILE does so where that run has a state, and starts from FILE
where it has none. In evaluation and tools, FILE is a checkpoint, FOLDER one that holds several.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from core.configs.choices import with_chosen
from core.configs.defaults import OPTIONS
from core.configs.defaults import cfg as defaults
from core.configs.loading import load_config
from core.configs.node import Config, OpenConfig
from core.datasets.catalog import KEYS
from core.datasets.folders import FOLDER_PREFIX
from core.datasets.videos import VIDEO_PREFIX
from core.models import build_model
from core.models.deeplab import Segmentor
from core.runs.folder import ADAPTED, CHECKPOINTS, CONFIG
from core.runs.known import FOUND, SPAN_KEY, describe_model, handed_on, is_given, with_network
from core.runs.states import FOLDER, StateFolder, flat_config
from core.utils.checkpoints import load_checkpoint, load_imagenet_weights
from core.utils.errors import Correctable, UserError, replaced, shown
from core.utils.files import near
from core.utils.locks import check_unlocked

AUTO, RANDOM = "auto", "random"
CUSTOM_KEY, ARGS_KEY = "DATASETS.CUSTOM", "MODEL.ARGS"
_MOVABLE = (FOLDER_PREFIX, VIDEO_PREFIX)


class Start(NamedTuple):
    """How a training begins.

    Attributes:
        config: with OUTPUT_DIR made plain, and `resume` a checkpoint or empty where the run is new.
        continued: it goes on with the run in OUTPUT_DIR.
        restart: an earlier run in OUTPUT_DIR that left nothing worth keeping may be replaced.
    """

    config: Config
    continued: bool = False
    restart: bool = False


def find_start(config: Config, default_output: str) -> Start:
    """What `resume` means for a training run. One that starts from a checkpoint has that one's network.

    Args:
        default_output: OUTPUT_DIR where none is given.
    Raises:
        UserError: a run is to be continued that does not exist, or has no state yet and is running; or as
            :func:`core.runs.known.with_network`.
    """
    given, output = config.resume, config.OUTPUT_DIR
    word, auto, file = given.partition(":") if given.startswith(f"{AUTO}:") else (given, "", "")
    if word == AUTO:
        if StateFolder(output).paths():
            return Start(config, continued=True)
        if auto:
            return Start(_as_its_source(config.changed({"resume": file})), restart=True)
        check_unlocked(output, "OUTPUT_DIR")  # its first state may be to come
        raise UserError(
            f"resume auto: OUTPUT_DIR {output} holds no state to go on from; start the run with "
            "`resume FILE`, or give `resume auto:FILE`, which starts from FILE where there is no state yet"
        )
    if source_checkpoint(config) is None or not Path(given).is_dir():
        return Start(_as_its_source(config))
    if not StateFolder(given).paths():
        raise UserError(f"resume {given}: the folder holds no state ({FOLDER}/iter*.pth); give a checkpoint's file")
    if output != default_output and Path(output).resolve() != Path(given).resolve():
        raise UserError(
            f"resume {given} goes on in that folder, but OUTPUT_DIR is {output}: leave OUTPUT_DIR out, or "
            "give a checkpoint's file to start from"
        )
    return Start(config.changed({"OUTPUT_DIR": given}), continued=True)


def _as_its_source(config: Config) -> Config:
    """The config of a new run, with what its source model's file, if it has one, says of its network."""
    source = source_checkpoint(config)
    return config if source is None else with_network(config, source)


def continued_config(state: dict, config: Config, program: str, chosen: Sequence[str] = ()) -> Config:
    """The config of a continued run: the one given, with the `resume` that the run began with.

    A larger SOLVER.STOP_ITER may come with a larger MAX_ITER.

    Args:
        chosen: options that are as the run has found them, where they are not given.
    Raises:
        UserError: the state is another program's, an option differs that would make it another run, or the rate would
            reach 0 before the end.
    """
    if state["program"] != program:
        raise UserError(f"the state is one of {state['program']}, not of {program}")
    then = flat_config(defaults) | state["config"]
    found = [key for key in (*FOUND, SPAN_KEY) if not is_given(config, key)]  # by any run
    own = {ARGS_KEY: OpenConfig.of(then[ARGS_KEY], f"the state: {ARGS_KEY}")}
    config = with_chosen(config, defaults.changed(then | own), (*chosen, *found))
    solver, old_stop, old_end = config.SOLVER, then["SOLVER.STOP_ITER"], then["SOLVER.MAX_ITER"]
    longer = old_end < solver.MAX_ITER and (old_stop < solver.STOP_ITER or old_end < old_stop)
    for key, now in flat_config(config).items():
        if key == "DATASETS.TARGET_TRAIN" and any(now.startswith(p) and then[key].startswith(p) for p in _MOVABLE):
            continue  # the folder may have moved
        if key == "SOLVER.MAX_ITER" and longer:
            continue
        if key == CUSTOM_KEY:
            _compare_sets(config, now, then)
            continue
        if not OPTIONS[key].free and now != then[key]:
            raise UserError(
                f"{key} is {now!r}, but the run to go on with has {then[key]!r}: give that, or start another run"
            )
    if old_stop > solver.STOP_ITER:
        raise UserError(
            f"SOLVER.STOP_ITER is {solver.STOP_ITER}, but {old_stop} in the run to go on with: it may only grow"
        )
    check_length(solver)
    return config.changed({"resume": then["resume"]})


def _compare_sets(config: Config, now: Mapping, then: Mapping) -> None:
    """Raise UserError if the data sets of a run's own are described otherwise than it began; others may come and go."""
    used = {config.DATASETS[key].partition("_")[0] for key in KEYS}
    for name in used:
        ours, theirs = now.get(name), then[CUSTOM_KEY].get(name)
        if ours == theirs:
            continue
        fields = {*(ours or {}), *(theirs or {})}
        field = min(field for field in fields if (ours or {}).get(field) != (theirs or {}).get(field))
        values = [shown((one or {}).get(field)) for one in (ours, theirs)]
        raise UserError(
            f"{CUSTOM_KEY}.{name}.{field} is {values[0]}, but the run to go on with has {values[1]}: give that, or "
            "start another run"
        )


def check_length(solver: Config) -> None:
    """Raise UserError if a run would go on where its learning rate is 0, or end before it is what it is to be.

    Args:
        solver: the config node SOLVER.
    """
    stop, end = solver.STOP_ITER, solver.MAX_ITER
    if stop > end:
        raise UserError(
            f"SOLVER.STOP_ITER {stop} lies beyond SOLVER.MAX_ITER {end}, at which the learning rate reaches 0: from "
            f"there on nothing would be learned; give SOLVER.MAX_ITER {stop}, too"
        )
    if stop <= solver.WARMUP:
        raise UserError(
            f"SOLVER.WARMUP {solver.WARMUP} is not below SOLVER.STOP_ITER {stop}: the learning rate would never reach "
            "that of SOLVER.BASE_LR; give a smaller one, as a twentieth of the run"
        )


def source_checkpoint(config: Config) -> Path | None:
    """The file of the source model that a run starts from; None: it starts from MODEL.WEIGHTS, or at random."""
    return Path(config.resume) if config.resume not in ("", RANDOM) else None


def check_source(config: Config) -> None:
    """Raise Correctable if a run that cannot do without a source model would start without one, and was not told to.

    A network of one's own may come with its weights: that is seen where two builds of it, by two seeds, are equal.
    """
    if config.resume or (":" in config.MODEL.NAME and not any(_drawn(config))):
        return
    weights = " (MODEL.WEIGHTS is the backbone alone)" if config.MODEL.WEIGHTS else ""
    raise Correctable(
        f"no source model{weights}: give its checkpoint by `resume FILE` (`resume {RANDOM}` does without: the run "
        "then starts from weights that have nothing to teach)",
        _naming_source,
    )


def _drawn(config: Config) -> list[bool]:
    """Of every weight (parameter or buffer) of a new model, its seed apart, whether it is random."""
    models = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            model = build_model(config)
            models.append([*model.parameters(), *model.buffers()])
    return [not torch.equal(*pair) for pair in zip(*models, strict=True)]


def _naming_source(argv: list[str]) -> list[str]:
    """The arguments of a run with a place for its source model's file."""
    given = next((argv[n : n + 2] for n in range(len(argv) - 2, -1, -1) if argv[n] == "resume"), [])
    file = f"{AUTO}:FILE" if given[1:] == [f"{AUTO}:"] else "FILE"
    return (given and replaced(argv, given, ["resume", file])) or [*argv, "resume", file]


def run_folder(config: Config) -> Path:
    """The folder that `resume` names, or that holds the checkpoint that it names."""
    given = Path(config.resume)
    return given if given.is_dir() else given.parent


def find_run_source(config: Config) -> Path:
    """The file of the source model of the run whose folder, or a checkpoint in it, `resume` names.

    Raises:
        UserError: the folder has no config, its run began without a source model, or the file is not there any more.
    """
    written = run_folder(config) / CONFIG
    source = source_checkpoint(load_config(written))
    if source is None:
        raise UserError(f"the run of {written} began without a source model")
    if not source.is_file():
        raise UserError(f"the source model {source} of {written} is not there any more")
    return source


def new_model(config: Config) -> Segmentor:
    """The model of a config, with random weights, and what its checkpoints will say of it."""
    model = build_model(config)
    model.about = describe_model(config)
    return model


def load_model(config, device: torch.device, uncertain: bool = False, weights: bool = True) -> Segmentor:
    """The model on its device, with the weights that the config names: `resume`, else MODEL.WEIGHTS, else random.

    Args:
        uncertain: with DSU as MODEL.UNCERTAINTY says; False: without, whatever it says.
        weights: False: random ones, for others to follow.
    Raises:
        UserError: a file that is missing, no checkpoint, or of another model.
    """
    torch.manual_seed(config.SEED)
    model = new_model(config if uncertain else config.changed({"MODEL.UNCERTAINTY": 0.0}))
    if not weights:
        pass
    elif source := source_checkpoint(config):
        load_checkpoint(model, source)
        model.about |= handed_on(source)
    elif config.MODEL.WEIGHTS:
        load_imagenet_weights(model.feature_extractor, config.MODEL.WEIGHTS)
    return model.to(device)


def describe_start(config: Config) -> str:
    """Whose weights a new run starts from, for the log."""
    given = source_checkpoint(config) or config.MODEL.WEIGHTS
    if given or ":" not in config.MODEL.NAME:
        return str(given or RANDOM)
    drawn = _drawn(config)
    some = f", {sum(drawn)} of its {len(drawn)} tensors {RANDOM}" if any(drawn) else ""
    return f"its own function{some}"


def find_checkpoints(config: Config) -> list[Path]:
    """The file that `resume` names, or every checkpoint of the folder, as :func:`checkpoints_in` orders them.

    Raises:
        UserError: empty, missing, or a folder without checkpoints.
    """
    path = source_checkpoint(config)
    if path is None:
        raise Correctable("nothing to evaluate: give `resume FILE` (or a folder of model_iter*.pth)", _naming_source)
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"checkpoint {path} does not exist{near(path, '*.pth')}")
        return [path]
    found = checkpoints_in(path)
    if not found:
        raise UserError(f"folder {path} holds no {CHECKPOINTS} and no {ADAPTED}")
    return found


def find_checkpoint(config: Config) -> Path:
    """The file that `resume` names, for programs that use one checkpoint.

    Raises:
        UserError: empty, missing, or a folder.
    """
    if source_checkpoint(config) is None:
        raise Correctable("no checkpoint: give `resume FILE`", _naming_source)
    found = find_checkpoints(config)
    if Path(config.resume).is_dir():
        raise UserError(f"resume {config.resume} is a folder: give one checkpoint, as {found[-1]}")
    return found[0]


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run's folder, in order of iteration, and last :data:`ADAPTED`, where it is there."""
    named = [(re.fullmatch(r"model_iter(\d+)\.pth", path.name), path) for path in folder.iterdir()]
    found = [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]
    return found + [path for _, path in named if path.name == ADAPTED]


def numbered(checkpoints: Sequence[Path]) -> list[Path]:
    """Those that a run wrote on its way, in their order: all but :data:`ADAPTED`, which is made of them."""
    return [path for path in checkpoints if path.name != ADAPTED]


def going_on(argv: Sequence[str]) -> list[str]:
    """The arguments of a run with those changed that make it go on."""
    argv = list(argv)
    if "resume" not in argv[:-1]:
        return [*argv, "resume", AUTO]
    last = len(argv) - 2 - argv[:-1][::-1].index("resume")
    given = os.path.expandvars(os.path.expanduser(argv[last + 1]))
    goes_on = given == AUTO or given.startswith(f"{AUTO}:") or Path(given).is_dir()
    return argv if goes_on else [*argv[: last + 1], AUTO, *argv[last + 2 :]]
