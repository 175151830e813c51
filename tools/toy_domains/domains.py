"""The toy domains, each one declaration: how its streets are built, and what its weather and camera make of them."""

from collections.abc import Mapping
from dataclasses import dataclass

from tools.toy_domains.cameras import Camera
from tools.toy_domains.canvas import Tone
from tools.toy_domains.scenes import Style


@dataclass(frozen=True)
class Domain:
    """One set of images. Another is another entry of DOMAINS.

    Attributes:
        number: distinguishes its images from the other sets' in the seed.
        counts: images per split, unless the user says otherwise.
        style: of the streets.
        camera: weather and camera at a shift of 1; at 0 they are DAYLIGHT.
        shift: range, from which each image draws evenly. A wide one, as weather has it, lets self-training find its
            way from the clear images to the dense ones.
    """

    number: int
    counts: Mapping[str, int]
    style: Style
    camera: Camera
    shift: tuple[float, float]


DAYLIGHT = Camera()
DOMAINS = {
    "toy_source": Domain(
        number=0,
        counts={"train": 400, "val": 80},
        style=Style(
            buildings=Tone((-0.02, 0.14), (0.08, 0.5), (0.4, 0.9)),
            leaves=Tone((0.2, 0.36), (0.35, 0.7), (0.3, 0.6)),
            road=Tone((0.5, 0.7), (0.0, 0.1), (0.3, 0.5)),
            sidewalk=Tone((0.0, 0.15), (0.02, 0.2), (0.5, 0.75)),
            sky_top=Tone((0.55, 0.62), (0.3, 0.65), (0.65, 0.95)),
            sky_low=Tone((0.53, 0.62), (0.05, 0.25), (0.85, 1.0)),
        ),
        camera=DAYLIGHT,
        shift=(0.0, 0.0),
    ),
    "toy_target": Domain(  # dusk
        number=1,
        counts={"train": 200, "val": 80},
        style=Style(
            buildings=Tone((-0.08, 0.14), (0.04, 0.4), (0.32, 0.85)),
            leaves=Tone((0.16, 0.36), (0.3, 0.65), (0.28, 0.55)),
            road=Tone((0.4, 0.75), (0.0, 0.1), (0.28, 0.48)),
            sidewalk=Tone((0.0, 0.15), (0.02, 0.2), (0.5, 0.75)),
            sky_top=Tone((0.55, 0.66), (0.15, 0.45), (0.6, 0.9)),
            sky_low=Tone((0.5, 0.65), (0.05, 0.25), (0.75, 0.97)),
            storeys=(2, 6),
            lit=0.2,
            distance=1.05,
            grain=1.2,
        ),
        camera=Camera(
            haze=(0.001, 0.004),
            haze_red=(150, 180),
            haze_green=(160, 185),
            haze_blue=(185, 215),
            exposure=(0.4, 0.6),
            red=(0.8, 0.9),
            blue=(1.1, 1.25),
            saturation=(0.6, 0.9),
            contrast=(0.7, 0.9),
            gamma=(1.0, 1.2),
            blur=(0.45, 0.7),
            noise=(3.0, 6.0),
        ),
        shift=(0.1, 1.1),
    ),
}
