"""The toy domains, each one declaration: how its streets are built, and what its weather and camera make of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tools.toy_domains.cameras import Camera
from tools.toy_domains.canvas import Tone
from tools.toy_domains.scenes import THINGS, Style


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


DAY_STREETS = Style(
    buildings=Tone((-0.02, 0.14), (0.08, 0.5), (0.4, 0.9)),
    leaves=Tone((0.2, 0.36), (0.35, 0.7), (0.3, 0.6)),
    road=Tone((0.5, 0.7), (0.0, 0.1), (0.3, 0.5)),
    sidewalk=Tone((0.0, 0.15), (0.02, 0.2), (0.5, 0.75)),
    sky_top=Tone((0.55, 0.62), (0.3, 0.65), (0.65, 0.95)),
    sky_low=Tone((0.53, 0.62), (0.05, 0.25), (0.85, 1.0)),
)
DUSK_STREETS = Style(
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
)
DAYLIGHT = Camera()
DUSK = Camera(
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
)
SNOW_STREETS = replace(
    DAY_STREETS,
    road=Tone((0.55, 0.65), (0.0, 0.08), (0.45, 0.65)),
    sky_top=Tone((0.55, 0.62), (0.0, 0.06), (0.82, 0.95)),
    sky_low=Tone((0.55, 0.62), (0.0, 0.04), (0.9, 1.0)),
    snow=(0.75, 1.1),
)
SNOWFALL = Camera(
    haze=(0.004, 0.012),
    haze_red=(225, 240),
    haze_green=(230, 242),
    haze_blue=(235, 248),
    exposure=(0.95, 1.1),
    blue=(1.0, 1.1),
    saturation=(0.6, 0.85),
    contrast=(0.75, 0.95),
    flakes=(150, 400),
    fall=(1.0, 4.0),
)
GREY_SKY = Tone((0.55, 0.62), (0.0, 0.08), (0.65, 0.85))
FEW = {"train": 80, "val": 40}
FEWER = {"train": 12, "val": 40}
ABSENT = (0.0, 1, 1)
DOMAINS = {
    "toy_source": Domain(
        number=0,
        counts={"train": 400, "val": 80},
        style=DAY_STREETS,
        camera=DAYLIGHT,
        shift=(0.0, 0.0),
    ),
    "toy_target": Domain(  # dusk
        number=1,
        counts={"train": 200, "val": 80},
        style=DUSK_STREETS,
        camera=DUSK,
        shift=(0.1, 1.1),
    ),
    "toy_night": Domain(
        number=2,
        counts=FEW,
        style=replace(
            DUSK_STREETS,
            sky_top=Tone((0.6, 0.68), (0.3, 0.6), (0.15, 0.4)),
            sky_low=Tone((0.58, 0.68), (0.2, 0.5), (0.25, 0.5)),
            lit=0.3,
        ),
        camera=Camera(
            exposure=(0.05, 0.13),
            red=(0.9, 1.0),
            blue=(1.0, 1.2),
            contrast=(0.95, 1.05),
            gamma=(0.8, 0.95),
            noise=(6.0, 12.0),
            headlights=(0.6, 1.0),
            glow=(0.6, 1.0),
        ),
        shift=(0.7, 1.0),
    ),
    "toy_fog": Domain(
        number=3,
        counts=FEW,
        style=replace(DAY_STREETS, sky_top=GREY_SKY, sky_low=GREY_SKY),
        camera=Camera(
            haze=(0.025, 0.05),
            haze_red=(178, 190),
            haze_green=(180, 192),
            haze_blue=(184, 198),
            exposure=(0.8, 1.0),
            saturation=(0.6, 0.85),
            contrast=(0.7, 0.9),
        ),
        shift=(0.3, 1.1),
    ),
    "toy_rain": Domain(
        number=4,
        counts=FEW,
        style=replace(DAY_STREETS, sky_top=GREY_SKY, sky_low=GREY_SKY, lit=0.15),
        camera=Camera(
            haze=(0.005, 0.015),
            haze_red=(150, 175),
            haze_green=(155, 180),
            haze_blue=(160, 190),
            exposure=(0.55, 0.75),
            blue=(1.0, 1.12),
            saturation=(0.5, 0.8),
            contrast=(0.8, 1.0),
            mirror=(0.5, 0.8),
            flakes=(150, 350),
            fall=(10.0, 18.0),
            drops=(3.0, 14.0),
        ),
        shift=(0.2, 1.1),
    ),
    "toy_camera": Domain(
        number=5,
        counts=FEW,
        style=replace(DAY_STREETS, lens=(0.65, 1.5), mount=(0.8, 1.2)),
        camera=Camera(
            exposure=(0.7, 1.2),
            red=(1.1, 1.3),
            blue=(0.65, 0.85),
            saturation=(0.5, 0.9),
            contrast=(1.1, 1.4),
            vignette=(0.3, 0.7),
            mosaic=(8.0, 18.0),
            compression=(55.0, 75.0),
        ),
        shift=(0.5, 1.1),
    ),
    "toy_city": Domain(
        number=6,
        counts=FEW,
        style=Style(
            buildings=Tone((0.5, 0.75), (0.05, 0.4), (0.3, 0.85)),
            leaves=Tone((0.06, 0.2), (0.4, 0.8), (0.35, 0.7)),
            road=Tone((0.02, 0.1), (0.1, 0.3), (0.4, 0.65)),
            sidewalk=Tone((0.55, 0.7), (0.02, 0.15), (0.3, 0.5)),
            sky_top=Tone((0.55, 0.62), (0.1, 0.5), (0.7, 0.95)),
            sky_low=Tone((0.08, 0.16), (0.05, 0.25), (0.85, 1.0)),
            storeys=(4, 11),
            backdrop=(12, 40),
            lit=0.1,
            distance=1.2,
            grain=2.2,
            cells=(3, 30),
            green=(0.0, 0.3),
            things=THINGS
            | {"car": (0.8, 1, 4), "truck": (0.4, 1, 2), "person": (0.85, 3, 9), "rider": (0.4, 1, 3)}
            | {"bicycle": (0.3, 1, 3), "tree": (0.4, 1, 2), "light": (0.5, 1, 3)},
        ),
        camera=DAYLIGHT,
        shift=(0.0, 0.0),
    ),
    "toy_same": Domain(number=7, counts=FEW, style=DAY_STREETS, camera=DAYLIGHT, shift=(0.0, 0.0)),
    "toy_rare": Domain(
        number=8,
        counts=FEW,
        style=replace(DUSK_STREETS, things=THINGS | dict.fromkeys(("truck", "rider", "bicycle"), ABSENT)),
        camera=DUSK,
        shift=(0.1, 1.1),
    ),
    "toy_small": Domain(number=9, counts=FEWER, style=DUSK_STREETS, camera=DUSK, shift=(0.1, 1.1)),
    "toy_low_sun": Domain(
        number=10,
        counts=FEW,
        style=replace(
            DAY_STREETS,
            sky_top=Tone((0.5, 0.62), (0.1, 0.4), (0.6, 0.85)),
            sky_low=Tone((0.06, 0.12), (0.2, 0.5), (0.9, 1.0)),
            shadow=(0.55, 0.8),
        ),
        camera=Camera(
            exposure=(0.7, 1.0),
            red=(1.15, 1.3),
            blue=(0.6, 0.8),
            contrast=(1.15, 1.4),
            gamma=(1.1, 1.4),
            glare=(0.7, 1.3),
        ),
        shift=(0.3, 1.1),
    ),
    "toy_snow": Domain(number=11, counts=FEW, style=SNOW_STREETS, camera=SNOWFALL, shift=(0.2, 1.1)),
    "toy_dust": Domain(
        number=12,
        counts=FEW,
        style=replace(DAY_STREETS, sky_top=GREY_SKY, sky_low=GREY_SKY),
        camera=Camera(
            haze=(0.015, 0.035),
            haze_red=(200, 225),
            haze_green=(135, 160),
            haze_blue=(70, 95),
            exposure=(0.7, 0.95),
            red=(1.05, 1.2),
            blue=(0.5, 0.7),
            saturation=(0.6, 0.9),
            noise=(6.0, 12.0),
        ),
        shift=(0.3, 1.1),
    ),
    "toy_dashcam": Domain(
        number=13,
        counts=FEW,
        style=replace(
            DAY_STREETS, hood=1.0, hood_height=(0.06, 0.14), lens=(0.6, 0.75), mount=(0.65, 0.85), tilt=(-0.08, 0.12)
        ),
        camera=Camera(
            exposure=(0.75, 1.2),
            saturation=(0.2, 0.5),
            contrast=(0.75, 1.0),
            blur=(0.6, 1.4),
            noise=(4.0, 8.0),
            motion=(0.0, 5.0),
            vignette=(0.6, 0.95),
            compression=(65.0, 82.0),
        ),
        shift=(0.4, 1.1),
    ),
    "toy_village": Domain(
        number=14,
        counts=FEW,
        style=Style(
            buildings=Tone((0.02, 0.12), (0.2, 0.6), (0.5, 0.95)),
            leaves=Tone((0.14, 0.28), (0.4, 0.8), (0.35, 0.7)),
            road=Tone((0.06, 0.1), (0.25, 0.5), (0.35, 0.6)),
            sidewalk=Tone((0.12, 0.25), (0.15, 0.4), (0.4, 0.65)),
            sky_top=Tone((0.55, 0.62), (0.3, 0.65), (0.65, 0.95)),
            sky_low=Tone((0.53, 0.62), (0.05, 0.25), (0.85, 1.0)),
            storeys=(1, 2),
            backdrop=(3.5, 7),
            grain=1.6,
            green=(0.5, 0.95),
            things=THINGS
            | {"car": (0.45, 1, 2), "truck": (0.4, 1, 1), "person": (0.4, 1, 2), "tree": (0.95, 3, 9)}
            | {"fence": (0.85, 1, 3), "light": (0.12, 1, 1), "bicycle": (0.15, 1, 2)},
        ),
        camera=DAYLIGHT,
        shift=(0.0, 0.0),
    ),
    "toy_snow_small": Domain(number=15, counts=FEWER, style=SNOW_STREETS, camera=SNOWFALL, shift=(0.2, 1.1)),
}
