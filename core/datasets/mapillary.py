"""Mapillary Vistas (Neuhold et al., ICCV 2017), v1.2 and v2.0: `mapillary/<split>/{images,v1.2/labels,v2.0/labels}/*`.

Label files are palette PNGs; a value is a position in the list of the configuration file that comes with them.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from core.datasets.cityscapes import TRAIN_IDS
from core.datasets.reader import Reader, beside
from core.utils.errors import UserError

# each version's list in its order, `group: name=class …`, after Cityscapes' labelling policy: curbs and traffic islands
# are sidewalk; markings, bike lanes, manholes are road; parking, guard rails, bridges, backs of signs are no class
V1 = """
animal: bird ground-animal
construction--barrier: curb=sidewalk fence=fence guard-rail other-barrier wall=wall
construction--flat: bike-lane=road crosswalk-plain=road curb-cut=sidewalk parking pedestrian-area=sidewalk rail-track
construction--flat: road=road service-lane=road sidewalk=sidewalk
construction--structure: bridge building=building tunnel
human: person=person rider--bicyclist=rider rider--motorcyclist=rider rider--other-rider=rider
marking: crosswalk-zebra=road general=road
nature: mountain sand sky=sky snow terrain=terrain vegetation=vegetation water
object: banner bench bike-rack billboard catch-basin=road cctv-camera fire-hydrant junction-box mailbox manhole=road
object: phone-booth pothole=road street-light support--pole=pole support--traffic-sign-frame
object: support--utility-pole=pole traffic-light=light traffic-sign--back traffic-sign--front=sign trash-can
object--vehicle: bicycle=bicycle boat bus=bus car=car caravan motorcycle=motorcycle on-rails=train other-vehicle
object--vehicle: trailer truck=truck wheeled-slow
void: car-mount ego-vehicle unlabeled
"""
V2 = """
animal: bird ground-animal
construction--barrier: ambiguous concrete-block curb=sidewalk fence=fence guard-rail other-barrier road-median
construction--barrier: road-side separator temporary wall=wall
construction--flat: bike-lane=road crosswalk-plain=road curb-cut=sidewalk driveway parking parking-aisle
construction--flat: pedestrian-area=sidewalk rail-track road=road road-shoulder=road service-lane=road sidewalk=sidewalk
construction--flat: traffic-island=sidewalk
construction--structure: bridge building=building garage=building tunnel
human: person--individual=person person--person-group=person
human: rider--bicyclist=rider rider--motorcyclist=rider rider--other-rider=rider
marking--continuous: dashed=road solid=road zigzag=road
marking--discrete: ambiguous=road arrow--left=road arrow--other=road arrow--right=road
marking--discrete: arrow--split-left-or-straight=road arrow--split-right-or-straight=road arrow--straight=road
marking--discrete: crosswalk-zebra=road give-way-row=road give-way-single=road hatched--chevron=road
marking--discrete: hatched--diagonal=road other-marking=road stop-line=road symbol--bicycle=road symbol--other=road
marking--discrete: text=road
marking-only: continuous--dashed=road discrete--crosswalk-zebra=road discrete--other-marking=road discrete--text=road
nature: mountain sand sky=sky snow terrain=terrain vegetation=vegetation water
object: banner bench bike-rack catch-basin=road cctv-camera fire-hydrant junction-box mailbox manhole=road
object: parking-meter phone-booth pothole=road
object--sign: advertisement ambiguous back information other store
object: street-light support--pole=pole support--pole-group support--traffic-sign-frame support--utility-pole=pole
object: traffic-cone
object--traffic-light: general-single=light pedestrians=light general-upright=light general-horizontal=light
object--traffic-light: cyclists=light other=light
object--traffic-sign: ambiguous back direction-back direction-front=sign front=sign information-parking=sign
object--traffic-sign: temporary-back temporary-front=sign
object: trash-can
object--vehicle: bicycle=bicycle boat bus=bus car=car caravan motorcycle=motorcycle on-rails=train other-vehicle
object--vehicle: trailer truck=truck vehicle-group wheeled-slow
object: water-valve
void: car-mount dynamic ego-vehicle ground static unlabeled
"""
SPLITS = {"train": "training", "val": "validation", "test": "testing"}


def read_table(text: str) -> dict[str, str]:
    """The class of every name, "" where it has none, in the order of the list."""
    table = {}
    for group, _, entries in (line.partition(": ") for line in text.strip().splitlines()):
        for name, _, label in (entry.partition("=") for entry in entries.split()):
            table[f"{group}--{name}"] = label
    return table


def _classes_in(folder: Path, table: Mapping[str, str], configs: tuple[str, ...]) -> dict[int, str] | None:
    """The class of every position that has one, by the names in the configuration file; None without a file."""
    path = next((folder / name for name in configs if (folder / name).is_file()), None)
    if path is None:
        return None
    try:
        names = [entry["name"] for entry in json.loads(path.read_text(encoding="utf-8"))["labels"]]
        classes = {position: table[name] for position, name in enumerate(names) if table.get(name)}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is no configuration of Mapillary Vistas: {error!r}") from None
    missing = [label for label in TRAIN_IDS if label not in classes.values()]
    if missing:
        raise UserError(f"{path} is of another version of Mapillary Vistas: it has no name that means {missing[0]}")
    return classes


def _reader(text: str, folders: tuple[str, ...], labels: str, configs: tuple[str, ...]) -> Reader:
    table = read_table(text)
    classes = {position: label for position, label in enumerate(table.values()) if label}
    named = {position: name.rpartition("--")[2] for position, name in enumerate(table)}
    values: dict[str, int] = {}  # the position that has the class's own name, else the first
    for position in sorted(classes, key=lambda position: named[position] != classes[position]):
        values.setdefault(classes[position], position)
    return Reader(
        folders=folders,
        splits={split: (f"{folder}/images/*.jpg",) for split, folder in SPLITS.items()},
        label_path=partial(beside, folders={"images": labels}),
        values={name: values[name] for name in TRAIN_IDS},
        further=classes,
        no_class=tuple(range(len(table))),
        classes_in=partial(_classes_in, table=table, configs=configs),
        unlabelled=("test",),
    )


_FOLDERS = ("mapillary", "mapillary_vistas", "mapillary-vistas")
_ARCHIVE = "mapillary-vistas-dataset_public_v"
_V1 = _reader(V1, (*_FOLDERS, f"{_ARCHIVE}1.2"), "v1.2/labels", ("config_v1.2.json",))
_V1_ALONE = _reader(V1, _V1.folders, "labels", ("config_v1.2.json", "config.json"))  # as its own archive has it
READER = replace(_V1, others=(_V1_ALONE,))
READER_V2 = _reader(V2, (*_FOLDERS, f"{_ARCHIVE}2.0"), "v2.0/labels", ("config_v2.0.json",))
