"""What a checkpoint says of its model (`about`): what a new one is to say, and a config filled up by what one says.

What a config does not give is taken from the checkpoint, and the log says so; what it gives, and the checkpoint
contradicts, is an error: the weights are of another network, or of images that were prepared otherwise.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.configs import rules
from core.configs.defaults import cfg as defaults
from core.configs.loading import as_option
from core.configs.node import Config, plain
from core.configs.rules import Rule
from core.datasets.catalog import find_named_taxonomy, find_targets_range, lacks_classes
from core.utils.checkpoints import (
    ALIGN_CORNERS,
    ARGS,
    BANDS,
    BGR255,
    BN_EPS,
    CLASSES,
    CLASSES_OUT,
    COLOURS,
    DEPTH,
    DOMAIN,
    FAMILY,
    LICENCE,
    MEAN,
    NETWORK,
    ORIGIN,
    SIZE,
    SOURCE,
    STD,
    added_epsilon,
    read_about,
)
from core.utils.errors import UserError, shown
from core.utils.logging import LOGGER

NAME_KEY, COUNT_KEY = "MODEL.NAME", "MODEL.NUM_CLASSES"
CLASSES_KEY, COLOURS_KEY = "MODEL.CLASSES", "MODEL.CLASS_COLOURS"
SIZE_KEY, SPAN_KEY = "INPUT.INPUT_SIZE_TEST", "INPUT.DEPTH_RANGE"
_OF_NETWORK = {
    NETWORK: NAME_KEY,
    ARGS: "MODEL.ARGS",
    CLASSES_OUT: "MODEL.CLASSES_OUT",
    ALIGN_CORNERS: "MODEL.ALIGN_CORNERS",
}
_OF_IMAGES = {MEAN: "INPUT.PIXEL_MEAN", STD: "INPUT.PIXEL_STD", BGR255: "INPUT.TO_BGR255"}
_LONGEST = 100  # characters of a value, in a line
_OPTIONS = _OF_NETWORK | _OF_IMAGES  # the option that each is
# options that a run takes from the checkpoint that it starts from, where they are not given
FOUND = (*_OPTIONS.values(), COUNT_KEY, CLASSES_KEY, COLOURS_KEY)


def describe_model(config: Config) -> dict[str, Any]:
    """What checkpoints of a config's model are to say of it."""
    about = {word: plain(config.find(key)) for word, key in _OPTIONS.items()}
    if not about[CLASSES_OUT]:
        del about[CLASSES_OUT]
    taxonomy = find_named_taxonomy(config)
    about[CLASSES] = [] if taxonomy is None else list(taxonomy.names)
    if taxonomy is not None:
        about[COLOURS] = taxonomy.palette()[: len(taxonomy)].tolist()
    if is_given(config, SIZE_KEY):
        about[SIZE] = plain(config.find(SIZE_KEY))
    if config.find(SPAN_KEY):
        about[DEPTH] = plain(config.find(SPAN_KEY))
    return about


def handed_on(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says that those of a run that starts from it say, too: where its weights come from, and what
    is in their variances.
    """
    about = read_about(checkpoint)
    words = {word: about[word] for word in (FAMILY, ORIGIN, LICENCE) if isinstance(about.get(word), str)}
    return words | ({BN_EPS: eps} if (eps := added_epsilon(about)) else {})


def known_size(checkpoint: Path) -> tuple[int, int] | None:
    """The (width, height) that a checkpoint's model is used to; None where its file does not say. Raises UserError."""
    return _numbers(read_about(checkpoint), SIZE, rules.SIZE)


def known_bands(checkpoint: Path) -> tuple[int, ...]:
    """The bands that a checkpoint's model sees as red, green, blue; empty where its file does not say."""
    return _numbers(read_about(checkpoint), BANDS, rules.BANDS) or ()


def known_form(checkpoint: Path) -> dict:
    """What a checkpoint says of the images that its model takes."""
    return {key: value for key, value in read_about(checkpoint).items() if key in (DEPTH, BANDS, DOMAIN)}


def with_network(config: Config, checkpoint: Path) -> Config:
    """`config` with what a checkpoint says of its network, of how that takes images, and of its classes, where it is
    not given.

    Raises:
        UserError: the config gives something else, the file says what cannot be, names a network of one's own that the
            config does not, or neither says what network it is.
    """
    about = read_about(checkpoint)
    found, named = _found(config, checkpoint, about), isinstance(about.get(CLASSES), list) and about[CLASSES]
    if named:
        count = as_option(COUNT_KEY, len(about[CLASSES]), f"{checkpoint}: the number of its classes")
        if not is_given(config, COUNT_KEY):
            found[COUNT_KEY] = count
        elif count != config.find(COUNT_KEY):
            raise _contradiction(COUNT_KEY, config, checkpoint, count)
    filled = config.changed(found)
    if lacks_classes(filled):
        if named and not config.MODEL.CLASSES:
            found[CLASSES_KEY] = as_option(CLASSES_KEY, about[CLASSES], f"{checkpoint}: the names of its classes")
            found[COLOURS_KEY] = as_option(COLOURS_KEY, about.get(COLOURS, []), f"{checkpoint}: its {COLOURS}")
            LOGGER.info("class names are not given: %d, as %s says", count, checkpoint)
        if NETWORK not in about and not is_given(config, NAME_KEY):
            keys = [NAME_KEY] + [COUNT_KEY] * (not named and not is_given(config, COUNT_KEY))
            keys += [] if named or config.MODEL.CLASSES else ["DATASETS.SOURCE_TRAIN (a data set with its class names)"]
            what = "network it holds" if named else "network and classes it holds"
            *first, last = keys
            give = f"{', '.join(first)} and {last}" if first else last
            raise UserError(f"{checkpoint} does not say what {what}: give {give}")
    for what, keys in (("network", (*_OF_NETWORK.values(), COUNT_KEY)), ("images", _OF_IMAGES.values())):
        words = [f"{key} {_short(found[key])}" for key in keys if key in found and found[key] != config.find(key)]
        if words:
            LOGGER.info("%s as %s says: %s", what, checkpoint, ", ".join(words))
    config = config.changed(found)
    config.freeze()
    return config


def _found(config: Config, checkpoint: Path, about: Mapping) -> dict[str, Any]:
    """Options that a checkpoint says and a config does not give."""
    name, found = config.find(NAME_KEY), {}
    own = ":" in name and is_given(config, NAME_KEY)  # then its weights' names and shapes tell whether it is the file's
    for word, key in _OPTIONS.items():
        if word not in about or (own and about.get(NETWORK) != name and key in _OF_NETWORK.values()):
            continue
        value = as_option(key, about[word], f"{checkpoint}: its {word}")
        if not is_given(config, key):
            found[key] = value
        elif plain(value) != plain(config.find(key)):
            raise _contradiction(key, config, checkpoint, value)
    if ":" in found.get(NAME_KEY, ""):
        raise UserError(
            f"{checkpoint} holds {_short(found[NAME_KEY])}, a network of one's own: give it as {NAME_KEY} if it is "
            "yours (nothing that a file names is run unasked)"
        )
    return found


def is_given(config: Config, key: str) -> bool:
    """Whether a config gives an option, or a run has chosen it."""
    return config.gives(key) or config.find(key) != defaults.find(key)


def _contradiction(key: str, config: Config, checkpoint: Path, value: Any) -> UserError:
    ours, theirs = (_short(one) for one in (config.find(key), value))
    return UserError(
        f"{key} is {ours}, but {theirs} in {checkpoint}: leave {key} out, or give a checkpoint of such a model"
    )


def _short(value: Any) -> str:
    plainly = isinstance(value, str) and value.isprintable() and len(value) <= _LONGEST
    return value if plainly else shown(plain(value), _LONGEST)


def with_known(config: Config, checkpoint: Path, evaluated: bool = False) -> Config:
    """:func:`with_network`, and what a checkpoint says that its model is used to, where it is not given: the size of
    the full view, and the values of 16-bit images that become 0 and 255.

    Args:
        evaluated: on DATASETS.TEST, whose range is the target's, as it is in adaptation: so a source model, which is
            used to another, is held against what becomes of it.
    """
    config = with_network(config, checkpoint)
    about, found = read_about(checkpoint), {}
    size, span = _numbers(about, SIZE, rules.SIZE), _numbers(about, DEPTH, rules.SPAN)
    if size is not None and not config.gives(SIZE_KEY):
        found[SIZE_KEY] = size
        if size != config.find(SIZE_KEY):
            LOGGER.info("%s is not given: %d×%d, as %s is used to", SIZE_KEY, *size, checkpoint)
    if span and not (config.gives(SPAN_KEY) or config.gives("INPUT.DEPTH")):
        found[SPAN_KEY], whose = span, f"{checkpoint} is used to"
        if evaluated and about.get(DOMAIN) == SOURCE and (targets := find_targets_range(config)):
            found[SPAN_KEY], whose = targets, "that of DATASETS.TARGET_TRAIN"
        LOGGER.info("%s is not given: (%d, %d), as %s", SPAN_KEY, *found[SPAN_KEY], whose)
    config = config.changed(found)
    config.freeze()
    return config


def _numbers(about: Mapping, key: str, rule: Rule) -> tuple[int, ...] | None:
    """A list that a checkpoint holds of what it is; None where that is none, or not as it must be."""
    found = about.get(key)
    return tuple(found) if isinstance(found, list) and rule.holds(tuple(found)) else None
