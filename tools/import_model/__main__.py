"""Make a checkpoint of these programs from one of another program.

The file is recognised by the names and shapes of its tensors, and read for these alone: nothing in it is run. What is
not the network's is left out, and the log says what and why. Beside its weights the new checkpoint says what they need:
the network, how it takes images, its classes.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # started by its path, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from core.configs import rules
from core.configs.defaults import cfg as defaults
from core.models import build_model, log_network
from core.models.deeplab import Segmentor
from core.programs.frame import Parser, path_argument, run_program
from core.runs.farewell import AUTOMATIC
from core.utils.checkpoints import (
    ABOUT,
    ALIGN_CORNERS,
    ARGS,
    BANDS,
    BGR255,
    CLASSES,
    COLOURS,
    DEPTH,
    DOMAIN,
    FAMILY,
    LICENCE,
    MEAN,
    NETWORK,
    ORIGIN,
    PARTS,
    SIZE,
    STD,
    first_of,
    misfits,
    not_finite,
    save_checkpoint,
)
from core.utils.environment import start_of
from core.utils.errors import UserError, as_shell, shorten
from core.utils.files import make_folder, refuse_existing
from core.utils.logging import LOGGER, start_logging
from tools.import_model import refused, resnets, transformers
from tools.import_model.classes import SETS, Classes, choose
from tools.import_model.family import Family, Imported, Taker
from tools.import_model.reading import Found, read, views

EXAMPLE = "python -m tools.import_model GTA2Cityscapes_multi.pth --family adaptsegnet -o pretrain/adaptsegnet.pth"
FAMILIES = (*resnets.FAMILIES, *transformers.FAMILIES, *refused.FAMILIES)
ALIASES = {**resnets.ALIASES}
_OF_EARLIER = {SIZE: rules.SIZE, DEPTH: rules.SPAN, BANDS: rules.BANDS}
_NAMES_SHOWN = 4  # of what a file holds
_LEFT_OUT_SHOWN = 16  # of tensors that are left out for one reason


def recognise(
    state: Mapping[str, torch.Tensor], path: Path, named: str = "", branches: int | None = None
) -> tuple[Family, Mapping[str, torch.Tensor], dict[str, str]]:
    """The family of a state, the state without the prefixes of wrappers, and what was left out with them, and why.

    Args:
        path: for messages.
        named: of --family; empty: it is found by names and shapes, and where several fit, by what the weights show.
        branches: of the head that are in use, whatever the weights show.
    Raises:
        UserError: none fits, or several do.
    """
    families = [family for family in FAMILIES if not named or family.name == ALIASES.get(named, named)]
    if not families:
        raise UserError(f"--family {named}: known are {', '.join([*(f.name for f in FAMILIES), *ALIASES])}")
    for inner, left_out in views(state):
        fitting = [family for family in families if family.fits(inner)]
        fitting = [family for family in fitting if branches and resnets.branches_of(family) == branches] or fitting
        likely = [family for family in fitting if family.likely is None or family.likely(inner)]
        if len(fitting) > 1 and len(likely) != 1 and branches is None:
            names = " or ".join(family.name for family in fitting)
            raise UserError(f"{path} may be of several families: give --family {names} (--list says what they are)")
        if fitting:
            family = (likely or fitting)[0] if len(fitting) > 1 else fitting[0]
            return (resnets.with_branches(family, branches) if branches else family), inner, left_out
    shapes = shorten([f"{name} {'×'.join(map(str, tensor.shape))}" for name, tensor in state.items()], _NAMES_SHOWN)
    wanted = named or f"any of {', '.join(family.name for family in FAMILIES)}"
    raise UserError(f"{path} is not of {wanted}, by names and shapes: it holds {shapes}")


def convert(family: Family, state: Mapping[str, torch.Tensor], path: Path) -> Imported:
    """What a family makes of a state of it; every tensor is used, or named as left out.

    Raises:
        UserError: it lacks tensors, or holds others.
    """
    taker = Taker(state)
    try:
        imported = family.convert(taker)
    except KeyError as error:
        raise UserError(f"{path} seems to be of {family.name}, but lacks {error.args[0]}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (IndexError, RuntimeError, TypeError, ValueError) as error:  # by whatever a tensor's shape leads to
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} seems to be of {family.name}, but has other shapes than that ({reason})") from None
    if forgotten := taker.forgotten(imported.left_out):
        what = f"{path} seems to be of {family.name}, but holds what that has not: {shorten(forgotten, _NAMES_SHOWN)}"
        raise UserError(f"{what}; nothing was written")
    return imported


def build(imported: Imported, classes: Classes, path: Path) -> Segmentor:
    """The network with its weights, of the classes that were chosen.

    Raises:
        UserError: they do not fit it, or are not numbers.
    """
    count = len(classes.names)
    config = defaults.changed({"MODEL.NAME": imported.network, "MODEL.NUM_CLASSES": count, "MODEL.FREEZE_BN": True})
    if imported.args:
        config.MODEL.ARGS.merge(imported.args, f"{path}: MODEL.ARGS")
    model = build_model(config)
    for part in PARTS:
        module, state = getattr(model, part), getattr(imported, part)
        state = _of_classes(state, module.state_dict(), imported.outputs, classes)
        if problems := misfits(module, state):
            raise UserError(f"{path} does not fit {imported.network}: {'; '.join(problems)}")
        if ruined := not_finite(module, state, f"{part}."):
            raise UserError(f"{path} is ruined: {first_of(ruined)}")
        module.load_state_dict(state, strict=False)
    return model


def _of_classes(
    state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], outputs: int, classes: Classes
) -> dict[str, torch.Tensor]:
    """A state with the rows of the chosen classes alone, where the network has a row for each class."""
    rows = torch.tensor(classes.outputs, dtype=torch.int64)
    return {
        name: tensor[rows]
        if len(rows) and name in wanted and tensor.shape != wanted[name].shape and tensor.shape[:1] == (outputs,)
        else tensor
        for name, tensor in state.items()
    }


def describe(imported: Imported, family: str, classes: Classes, found: Found, path: Path) -> dict:
    """What the checkpoint says of its weights."""
    about = {NETWORK: imported.network, **imported.about}
    if imported.args:
        about[ARGS] = imported.args
    origin = ", ".join([path.name, *([about[ORIGIN]] if ORIGIN in about else [])])
    licence = found.licence or about.get(LICENCE, "unknown")
    about |= {CLASSES: [*classes.names], COLOURS: classes.colours}
    return about | {FAMILY: family, ORIGIN: origin, LICENCE: licence}


def import_model(args: argparse.Namespace) -> None:
    """Read, recognise, convert, and only then write."""
    if args.list:
        width = max(len(family.name) for family in FAMILIES)
        print("\n".join(f"{family.name:{width}} {family.words}" for family in FAMILIES))
        print("also: " + ", ".join(f"{name} (as {family})" for name, family in ALIASES.items()))
        return
    if not args.file or not args.out:
        raise UserError(f"the {'checkpoint (-o FILE) to write' if args.file else 'file to import'} is missing")
    start_logging()
    path, out = Path(args.file), Path(args.out)
    if not args.overwrite:
        refuse_existing([out], "choose another -o, or give --overwrite")
    if out.exists() and path.exists() and out.samefile(path):
        raise UserError(f"-o {out} is the file to import: choose another")
    found = read(path)
    said = found.content.get(ABOUT)
    said = said if isinstance(said, Mapping) else {}
    if NETWORK in said:
        raise UserError(f"{path} is a checkpoint of these programs ({said[NETWORK]}): use it as it is")
    family, state, left_out = recognise(found.state, path, args.family, args.branches)
    LOGGER.info("%s: recognised as %s (%s)", path, family.name, family.words)
    imported = convert(family, state, path)
    try:
        beside = transformers.described(found.beside)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    about = {**imported.about, **beside, **_kept(said)}
    left_out |= dict.fromkeys(found.others, "beside the network's state, in the file")
    imported = replace(imported, left_out={**left_out, **imported.left_out}, about=about)
    for note in imported.notes:
        LOGGER.info("note: %s", note)
    for why in dict.fromkeys(imported.left_out.values()):
        names = [name for name, reason in imported.left_out.items() if reason == why]
        LOGGER.info("left out: %s: %s", shorten(names, _LEFT_OUT_SHOWN), why)
    try:
        classes = choose(args.classes, imported.outputs, found.names or _texts(said.get(CLASSES)), found.colours)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    model = build(imported, classes, path)
    model.about = describe(imported, args.family or family.name, classes, found, path)
    LOGGER.info("%d classes, %s: %s", len(classes.names), classes.why, ", ".join(classes.names))
    LOGGER.info("its weights need: %s", _needs(model.about))
    log_network(model)
    make_folder(out.parent, "the folder of -o")
    save_checkpoint(model, out, 0)
    LOGGER.info("wrote %s (%.1f MB)", out, out.stat().st_size / 1e6)
    look = (*start_of("tools.predict"), "resume", out, "my_frames", "-o", "pictures")
    target = ("DATASETS.TARGET_TRAIN", "folder:my_frames", "OUTPUT_DIR", "results/mine")
    adapt = (*start_of("train_TCR_DTU.py"), "-cfg", AUTOMATIC, "resume", out, *target)
    LOGGER.info("next, what it sees: %s", as_shell(look))
    LOGGER.info("next, adapting it: %s", as_shell(adapt))


def _kept(said: Mapping) -> dict:
    """What an earlier version's checkpoint says of its images."""
    lists = {word: said[word] for word in _OF_EARLIER if isinstance(said.get(word), list)}
    kept = {word: value for word, value in lists.items() if _OF_EARLIER[word].holds(tuple(value))}
    return kept | ({DOMAIN: said[DOMAIN]} if isinstance(said.get(DOMAIN), str) else {})


def _texts(names: object) -> Sequence[str]:
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _needs(about: Mapping) -> str:
    """What the weights need, in words."""
    order = "blue, green, red in 0 … 255" if about.get(BGR255) else "red, green, blue in 0 … 1"
    words = [about[NETWORK], f"images of {order}, mean {about.get(MEAN)}, deviation {about.get(STD)}"]
    words += [f"usually {about[SIZE][0]}×{about[SIZE][1]}"] if SIZE in about else []
    return "; ".join([*words, f"align_corners {about.get(ALIGN_CORNERS, True)}"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    parser = Parser(__doc__, EXAMPLE)
    what = "another program's: torch's file of any version, safetensors, or a folder of transformers"
    parser.add_argument("file", nargs="?", type=path_argument, metavar="FILE", help=what)
    parser.add_argument("-o", "--out", type=path_argument, metavar="OUT", help="the checkpoint to write")
    parser.add_argument("--family", default="", metavar="NAME", help="whose it is, where it cannot be told: see --list")
    sets = f"names of its classes, as a,b,c, or {', '.join(SETS)}; fewer than it has: the others are dropped"
    parser.add_argument("--classes", default="", metavar="NAMES", help=sets)
    branches = "of DeepLabV2's head that are in use, whatever the weights show"
    parser.add_argument("--branches", type=int, choices=(2, 4), help=branches)
    parser.add_argument("--list", action="store_true", help="list the families that are known")
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint if it is there")
    return run_program(import_model, parser, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
