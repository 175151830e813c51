"""Toy street scenes: where the street runs, what stands along it, and what moves on it.

A scene is painted from far to near, so that what is near hides what is far and every label is exact.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

from core.datasets.cityscapes import LABEL_IDS
from tools.toy_domains import objects as things
from tools.toy_domains.canvas import FAR, Canvas, Colour, Light, Tone, View, paint, pick, shade

_PANES = Tone((0.5, 0.66), (0.05, 0.35), (0.12, 0.45))
_PANE = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
_NEAR = 2.4  # m; nearer walls would be behind the picture's edge
# Strength of fine and coarse texture per class, relative to the brightness.
_GRAIN = {
    "road": (0.05, 0.06),
    "sidewalk": (0.07, 0.05),
    "building": (0.06, 0.07),
    "fence": (0.05, 0.04),
    "vegetation": (0.16, 0.16),
    "sky": (0.0, 0.0),
}
_OTHER_GRAIN = (0.03, 0.04)
_SNOWED = {"road": 0.55, "sidewalk": 0.9, "vegetation": 0.6, "fence": 0.3}  # share under snow
# Share of the scenes that hold a thing at all, before anything hides it; least and greatest number of it in those.
THINGS = {
    "car": (0.92, 1, 6),
    "truck": (0.27, 1, 1),
    "person": (0.6, 1, 5),
    "rider": (0.25, 1, 2),
    "bicycle": (0.08, 1, 2),  # without a rider
    "light": (0.34, 1, 2),
    "sign": (0.55, 1, 3),
    "lamp": (0.6, 1, 3),
    "tree": (0.75, 1, 5),
    "fence": (0.32, 1, 2),  # on each side
}


@dataclass(frozen=True)
class Style:
    """How a domain's streets are built; everything else about a scene is alike in all domains.

    Attributes:
        buildings, leaves, road, sidewalk, sky_top, sky_low: colours.
        storeys: least and greatest number of storeys.
        lit: share of windows with the light on.
        distance: factor on the distances of people, vehicles and furniture: above 1 makes them smaller.
        grain: factor on the textures' strength.
        things: as THINGS, all of them.
        cells: sizes of the textures' fine and coarse cells, px.
        green: range of the share of hedges with trees among the walls.
        backdrop: range of the heights of the buildings at the street's end, m.
        hood: share of the images that show the car's own hood.
        hood_height: its range, of the picture's height.
        lens, mount: ranges of factors on the focal length and on the camera's height.
        tilt: range by which the horizon lies lower, of the picture's height.
        shadow: range of the darkness (0 to 1) of a low sun's hard shadows over ground and walls.
        snow: range of the factor on the share of everything that snow covers.
    """

    buildings: Tone
    leaves: Tone
    road: Tone
    sidewalk: Tone
    sky_top: Tone
    sky_low: Tone
    storeys: tuple[int, int] = (2, 5)
    lit: float = 0.03
    distance: float = 1.0
    grain: float = 1.0
    things: Mapping[str, tuple[float, int, int]] = field(default_factory=lambda: THINGS)
    cells: tuple[int, int] = (2, 14)
    green: tuple[float, float] = (0.1, 0.7)
    backdrop: tuple[float, float] = (5, 22)
    hood: float = 0.2
    hood_height: tuple[float, float] = (0.02, 0.05)
    lens: tuple[float, float] = (1.0, 1.0)
    mount: tuple[float, float] = (1.0, 1.0)
    tilt: tuple[float, float] = (0.0, 0.0)
    shadow: tuple[float, float] = (0.0, 0.0)
    snow: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Street:
    """Edges of the road and of its surroundings at the camera, m to the right (negative: left)."""

    road: tuple[float, float]
    walls: tuple[float, float]

    def sidewalk(self, side: int, share: float) -> float:
        """Sideways position at `share` (0 kerb to 1 wall) of the left (-1) or right (1) sidewalk."""
        k = (side + 1) // 2
        return self.road[k] + share * (self.walls[k] - self.road[k])


def draw_scene(style: Style, rng: np.random.Generator, size: tuple[int, int]) -> Canvas:
    """One scene of a size (width, height, px) in plain daylight, before any camera."""
    canvas = Canvas(_choose_view(rng, style, size))
    left, right = -rng.uniform(4.5, 9), rng.uniform(3, 6)
    street = Street((left, right), (left - rng.uniform(2.2, 4.5), right + rng.uniform(2.2, 4.5)))
    _draw_sky(canvas, rng, style)
    _draw_backdrop(canvas, rng, style)
    _draw_ground(canvas, rng, style, street)
    _draw_walls(canvas, rng, style, street)
    if darkness := pick(rng, style.shadow):
        _draw_hard_shadows(canvas, rng, street, darkness)
    for _, draw in sorted(_plan(canvas, rng, style, street), key=lambda item: -item[0]):
        draw()
    if rng.random() < style.hood:
        _draw_hood(canvas, rng, style)
    if cover := pick(rng, style.snow):
        _add_snow(canvas, rng, cover)
    canvas.image = _add_grain(canvas, rng, style)
    return canvas


def _choose_view(rng: np.random.Generator, style: Style, size: tuple[int, int]) -> View:
    width, height = size
    return View(
        width,
        height,
        focal=height * rng.uniform(1.05, 1.3) * pick(rng, style.lens),
        horizon=height * (rng.uniform(0.37, 0.5) + pick(rng, style.tilt)),
        vanish=width * rng.uniform(0.36, 0.64),
        eye=rng.uniform(1.35, 1.75) * pick(rng, style.mount),
        bend=rng.uniform(-0.0014, 0.0014),
    )


def _draw_sky(canvas: Canvas, rng: np.random.Generator, style: Style) -> None:
    view = canvas.view
    slope = np.clip(np.arange(view.height, dtype=np.float32) / np.float32(view.horizon), 0, 1)[:, None, None]
    sky = (1 - slope) * np.float32(style.sky_top.pick(rng)) + slope * np.float32(style.sky_low.pick(rng))
    clouds = rng.standard_normal((7, 6), np.float32)
    clouds = cv2.resize(clouds, (view.width, view.height), interpolation=cv2.INTER_CUBIC)
    cover = np.clip(clouds - np.float32(rng.uniform(-0.3, 1.2)), 0, 1)[:, :, None] * np.float32(rng.uniform(0.3, 0.9))
    canvas.image[:] = sky + cover * (min(250, 1.16 * float(sky.mean())) - sky)
    canvas.label[:] = LABEL_IDS["sky"]


def _draw_backdrop(canvas: Canvas, rng: np.random.Generator, style: Style) -> None:
    """Buildings and woods at the street's end."""
    x = -110.0
    while x < 110:
        broad, spot = rng.uniform(6, 16), canvas.at(x, FAR)
        if rng.random() < 0.55:
            tall, colour = rng.uniform(*style.backdrop), style.buildings.pick(rng)
            spot.box(broad / 2, 0, broad, tall, colour, "building")
            corners = np.stack(np.meshgrid(np.arange(1, broad - 1.5, 3), np.arange(2, tall - 1.5, 3.2)), -1)
            spot.polygon(corners.reshape(-1, 1, 2) + _PANE * (1.3, 1.5), shade(colour, 0.55))
        else:
            colour, tall = style.leaves.pick(rng), rng.uniform(4, 11)
            spot.box(broad / 2, 0, broad, 0.7 * tall, colour, "vegetation")
            for u in np.arange(0, broad + 1, 2.5):
                spot.disc(u, 0.7 * tall, (2.2, 0.3 * tall), shade(colour, rng.uniform(0.8, 1.1)), "vegetation")
        x += broad


def _draw_ground(canvas: Canvas, rng: np.random.Generator, style: Style, street: Street) -> None:
    """Sidewalk everywhere, the road upon it; markings, patches and shadows are part of the road."""
    view, road, pavement = canvas.view, style.road.pick(rng), style.sidewalk.pick(rng)
    left, right = street.road
    canvas.fill(_strip(view, -80, 80, 0.5, FAR), pavement, "sidewalk")
    for x in (*np.arange(street.walls[0], left, 1.1), *np.arange(right + 0.9, street.walls[1] + 1, 1.1)):
        canvas.fill(_strip(view, x, x + 0.06, 1.5, 30), shade(pavement, 0.82))
    for z in np.arange(2.5, 26, 1.3):
        canvas.fill(_strip(view, -20, 20, z, z + 0.06), shade(pavement, 0.82))
    canvas.fill(_strip(view, left, right, 0.5, FAR), road, "road")
    np.minimum(canvas.depth, view.ground_depth(), out=canvas.depth)
    kerb = shade(pavement, rng.uniform(0.6, 1.25))
    for x in (left - 0.2, right):
        canvas.fill(_strip(view, x, x + 0.2, 0.5, FAR), kerb, "sidewalk")
    for _ in range(rng.integers(0, 5)):
        x, z = rng.uniform(left, right - 1.5), rng.uniform(3, 25)
        patch = _strip(view, x, x + rng.uniform(0.6, 1.5), z, z + rng.uniform(1, 9))
        canvas.fill(patch, shade(road, rng.uniform(0.8, 1.12)))
    _draw_markings(canvas, rng, street)
    _draw_cast_shadow(canvas, rng, street)


def _draw_markings(canvas: Canvas, rng: np.random.Generator, street: Street) -> None:
    view, (left, right) = canvas.view, street.road
    white = (235, 215, 140) if rng.random() < 0.12 else shade((235, 235, 230), rng.uniform(0.75, 1))
    middle = rng.uniform(-1.9, -1.5)
    if rng.random() < 0.85:
        period, start = rng.uniform(5, 9), rng.uniform(0, 6)
        dashes = [(z, z + period / 2) for z in np.arange(1 + start, 70, period)]
        for x in [middle] if left > -7 else [middle, middle - 3.2]:
            for near, far in [(1.0, FAR)] if rng.random() < 0.25 else dashes:
                canvas.fill(_strip(view, x - 0.08, x + 0.08, near, far), white)
    if rng.random() < 0.4:
        for x in (left + 0.3, right - 0.4):
            canvas.fill(_strip(view, x, x + 0.12, 0.8, FAR), white)
    if rng.random() < 0.25:  # a zebra crossing
        z = rng.uniform(7, 22)
        for x in np.arange(left + 0.3, right - 0.5, 1.0):
            canvas.fill(_strip(view, x, x + 0.5, z, z + 2.8), white)


def _draw_cast_shadow(canvas: Canvas, rng: np.random.Generator, street: Street) -> None:
    """The shadow of the houses on one side, over road and sidewalk."""
    if rng.random() < 0.5:
        return
    far, side = rng.uniform(12, FAR), rng.choice((-1, 1))
    edge, wall = street.sidewalk(side, rng.uniform(-1.5, 0.8)), 40 * side
    strip = _strip(canvas.view, min(edge, wall), max(edge, wall), 0.5, far)
    canvas.blend(canvas.mask(strip), (20, 25, 40), rng.uniform(0.2, 0.5))


def _strip(view: View, left: float, right: float, near: float, far: float) -> np.ndarray:
    """The outline (N×2 px) of the ground between two sideways positions and two depths (m)."""
    depths = np.geomspace(near, far, 2 if far < 1.2 * near else 14)
    sides = [np.stack([np.full_like(depths, x), np.zeros_like(depths), depths], 1) for x in (left, right)]
    return view.project(np.concatenate([sides[0], sides[1][::-1]]))


def _draw_walls(canvas: Canvas, rng: np.random.Generator, style: Style, street: Street) -> None:
    """What borders the sidewalks: houses, hedges with trees, fences; sections are drawn from far to near."""
    share, least, most = style.things["fence"]
    fenced = rng.random() < share
    open_share = rng.uniform(*style.green)
    for k, side in enumerate((-1, 1)):
        edges = [_NEAR + rng.uniform(0, 4)]
        while edges[-1] < FAR:
            edges.append(edges[-1] + rng.uniform(6, 14))
        sections = list(zip([_NEAR, *edges[:-1]], edges, strict=True))
        kinds = [_draw_hedge if rng.random() < open_share else _draw_building for _ in sections]
        if fenced:
            for index in rng.choice(range(1, 4), rng.integers(least, most + 1), replace=False):
                kinds[index] = _draw_fence
        for (near, far), draw in reversed(list(zip(sections, kinds, strict=True))):
            draw(canvas, rng, style, street.walls[k], side, near, min(far, FAR))


def _wall(canvas: Canvas, x: float, near, far, low, high) -> np.ndarray:
    """Rectangles on a wall along the street, 4×2 px; M×4×2 if depths or heights are arrays of M."""
    near, far, low, high = np.broadcast_arrays(near, far, low, high)
    z, y = np.stack([near, far, far, near], -1), np.stack([low, low, high, high], -1)
    return canvas.view.project(np.stack([np.full(z.shape, x), y, z], -1))


def _fill_wall(
    canvas: Canvas, polygon: np.ndarray, colour: Colour, name: str, x: float, near: float, far: float
) -> None:
    """Fill a wall beside the street; its depth runs smoothly, for haze on a long wall would show steps."""
    canvas.fill(polygon, colour, name)
    columns = np.abs(np.arange(canvas.view.width) + 0.5 - canvas.view.vanish)
    depth = np.clip(canvas.view.focal * abs(x) / np.maximum(columns, 1e-3), near, far).astype(np.float32)
    np.copyto(canvas.depth, depth[None], where=canvas.mask(polygon))


def _draw_building(
    canvas: Canvas, rng: np.random.Generator, style: Style, x: float, side: int, near: float, far: float
) -> None:
    storeys, storey = rng.integers(style.storeys[0], style.storeys[1] + 1), rng.uniform(2.8, 3.3)
    tall, colour = storeys * storey + 0.6, style.buildings.pick(rng)
    front, end = shade(colour, rng.uniform(0.85, 1.1)), shade(colour, rng.uniform(0.6, 0.95))
    broad = side * rng.uniform(7, 12)
    gable = rng.random() < 0.4
    roof = shade(style.buildings.pick(rng), 0.6)
    if gable:
        ridge = [(x, tall, near), (x + broad / 2, tall + 2.5, near), (x + broad / 2, tall + 2.5, far), (x, tall, far)]
        canvas.fill_world(ridge, roof, "building")
        canvas.fill_world([ridge[0], ridge[1], (x + broad, tall, near)], end, "building")
    facing = [(x, 0, near), (x + broad, 0, near), (x + broad, tall, near), (x, tall, near)]
    canvas.fill_world(facing, end, "building")
    _fill_wall(canvas, _wall(canvas, x, near, far, 0, tall), front, "building", x, near, far)
    canvas.fill(_wall(canvas, x, near, far, tall - 0.4, tall), roof if gable else shade(front, 0.75))
    _draw_windows(canvas, rng, style, (x, near, far), (storeys, storey))
    spot = canvas.at(x, near)
    corners = np.stack(np.meshgrid(np.arange(1.2, abs(broad) - 1.4, 2.8), np.arange(storeys) * storey + 1), -1)
    spot.polygon((corners.reshape(-1, 1, 2) + _PANE * (1.1, 1.4)) * (side, 1), _PANES.pick(rng))


def _draw_windows(
    canvas: Canvas, rng: np.random.Generator, style: Style, wall: tuple[float, float, float], floors: tuple[int, float]
) -> None:
    """Windows, and shops or a door, on a wall (x, near, far) with floors (number, height)."""
    (x, near, far), (storeys, storey) = wall, floors
    pitch, tall, base = rng.uniform(2.0, 3.2), rng.uniform(1.2, 1.8), rng.uniform(0.8, 1.1)
    starts = np.arange(near + 0.5, far - 1.2, pitch)
    dark, light = _PANES.pick(rng), Light((250, 205, 120))
    lit = rng.random((storeys, len(starts))) < style.lit
    shop = rng.random() < 0.4
    for k in range(storeys):
        low, high, broad = k * storey + base, k * storey + base + tall, 0.5 * pitch
        if k == 0 and shop:
            low, high, broad = 0.4, 2.4, 0.8 * pitch
        panes = _wall(canvas, x, starts, starts + broad, low, high)
        canvas.fill(panes[~lit[k]], dark)
        canvas.fill(panes[lit[k]], light)
    if len(starts) > 1 and not shop:
        door = starts[rng.integers(len(starts))]
        canvas.fill(_wall(canvas, x, door, door + 1.1, 0, 2.2), shade(paint(rng), 0.7))


def _draw_hedge(
    canvas: Canvas, rng: np.random.Generator, style: Style, x: float, side: int, near: float, far: float
) -> None:
    """A hedge, with trees behind it."""
    for z in sorted(rng.uniform(max(near, 6), max(far, 7), rng.integers(1, 5)), reverse=True):
        things.draw_tree(canvas, rng, x + side * rng.uniform(1.5, 4), z, style.leaves)
    colour, tall = style.leaves.pick(rng), rng.uniform(1.7, 3.2)
    facing = [(x, 0, near), (x + side * 6, 0, near), (x + side * 6, tall, near), (x, tall, near)]
    canvas.fill_world(facing, shade(colour, 0.8), "vegetation")
    z = np.linspace(far, near, 9)
    top = tall + rng.uniform(-0.25, 0.25, 9)
    outline = [(x, 0, near), (x, 0, far), *zip(np.full(9, x), top, z, strict=True)]
    _fill_wall(canvas, canvas.view.project(outline), colour, "vegetation", x, near, far)
    for light in (0.65, 1.3):
        depth, height = rng.uniform(near, max(near, far - 0.5), 14), rng.uniform(0.1, tall - 0.6, 14)
        width, rise = rng.uniform(0.2, 0.5, 14), rng.uniform(0.1, 0.3, 14)
        canvas.fill(_wall(canvas, x, depth, depth + width, height, height + rise), shade(colour, light))


def _draw_fence(
    canvas: Canvas, rng: np.random.Generator, style: Style, x: float, side: int, near: float, far: float
) -> None:
    """A fence of pales, boards or rails, with a house or trees set back behind it."""
    behind = _draw_building if rng.random() < 0.5 else _draw_hedge
    behind(canvas, rng, style, x + 1.5 * side, side, near, far)
    tall, colour = rng.uniform(1.3, 2.1), paint(rng)
    _fill_wall(canvas, _wall(canvas, x, near, far, 0, tall), shade(colour, 0.5), "fence", x, near, far)
    pitch = rng.uniform(0.45, 0.8)
    pales = np.arange(near, far - 0.6 * pitch, pitch)
    canvas.fill(_wall(canvas, x, pales, pales + 0.6 * pitch, 0, tall), colour)
    for v in (0.2 * tall, 0.8 * tall):
        canvas.fill(_wall(canvas, x, near, far, v, v + 0.12), shade(colour, 0.75))


def _plan(canvas: Canvas, rng: np.random.Generator, style: Style, street: Street) -> list[tuple[float, Callable]]:
    """Everything that stands or moves free, with its depth (m): [(z, draw)]."""
    taken: list[tuple[float, float, float]] = []
    planned: list[tuple[float, Callable]] = []

    def place(kind: str, choose: Callable, room: float, draw: Callable) -> None:
        """Find free places by `choose() -> (x, z, further arguments)` for as many things as the style wants."""
        share, least, most = style.things[kind]
        if rng.random() >= share:
            return
        for _ in range(rng.integers(least, most + 1)):
            for _ in range(8):
                x, z, *more = choose()
                if all(np.hypot(x - a, z - b) > room + r for a, b, r in taken):
                    taken.append((x, z, room))
                    planned.append((z, lambda x=x, z=z, more=more: draw(canvas, rng, x, z, *more)))
                    break

    def depth(near: float, far: float) -> float:
        """Even in the size that it makes, not in the depth, so that there are large and small ones."""
        return style.distance / rng.uniform(1 / far, 1 / near)

    def beside(kerb: float, wall: float, near: float, far: float) -> Callable:
        return lambda: (street.sidewalk(rng.choice((-1, 1)), rng.uniform(kerb, wall)), depth(near, far))

    def walker() -> tuple[float, float]:
        if rng.random() < 0.25:
            return rng.uniform(street.road[0] + 0.5, street.road[1]), depth(7.5, 15)
        return street.sidewalk(rng.choice((-1, 1)), rng.uniform(0.1, 0.85)), depth(6, 15)

    def cyclist() -> tuple[float, float, bool]:
        return rng.uniform(street.road[0] + 0.5, street.road[1] - 0.3), depth(5.5, 11), True

    place("truck", lambda: _choose_lane(rng, street, depth(11, 22), 0.25), 3.6, things.draw_truck)
    place("rider", cyclist, 1.2, things.draw_bicycle)
    place("bicycle", lambda: (*beside(0.15, 0.7, 5.5, 11)(), False), 1.0, things.draw_bicycle)
    place("light", beside(0.08, 0.3, 6.5, 13), 0.6, things.draw_light)
    place("sign", beside(0.08, 0.4, 6, 12), 0.6, things.draw_sign)
    place("car", lambda: _choose_lane(rng, street, depth(7.5, 26), 0.12), 2.3, things.draw_car)
    place("lamp", beside(0.08, 0.4, 5.5, 16), 0.6, things.draw_lamp)
    place("person", walker, 0.5, things.draw_person)
    place("tree", lambda: (*beside(0.35, 0.9, 10, 45)(), style.leaves), 1.0, things.draw_tree)
    return planned


def _choose_lane(rng: np.random.Generator, street: Street, z: float, crossing: float) -> tuple[float, float, float]:
    """x (m), z (m) and yaw (rad) of a vehicle: ahead, oncoming, parked at a kerb, or crossing."""
    left, right = street.road
    if rng.random() < crossing:
        z = max(z, 11.0)
        return rng.uniform(left + 1, right - 1), z, rng.choice((-1, 1)) * (np.pi / 2 + rng.normal(0, 0.1))
    lanes = [(rng.uniform(-0.3, 0.5), 0.0), (rng.uniform(-3.6, -2.8), np.pi)]
    lanes += [(left + 1.1, np.pi if rng.random() < 0.7 else 0.0)]
    if right > 4.2:
        lanes += [(right - 1.1, 0.0)]
    x, yaw = lanes[rng.integers(len(lanes))]
    return x, max(z, 8.5 if abs(x) < 1.5 else 7.5), yaw + rng.normal(0, 0.04)


def _draw_hood(canvas: Canvas, rng: np.random.Generator, style: Style) -> None:
    """The hood of the car that carries the camera: unlabelled."""
    view = canvas.view
    tall = max(2, int(view.height * rng.uniform(*style.hood_height)))
    centre, axes = (view.width // 2, view.height), (view.width // 2, tall)
    mask = cv2.ellipse(np.zeros(canvas.label.shape, np.uint8), centre, axes, 0, 180, 360, 1, -1) > 0
    canvas.image[mask], canvas.label[mask], canvas.depth[mask] = np.uint8(shade(paint(rng), 0.5)), 0, 1
    canvas.glow[mask] = 0


def _draw_hard_shadows(canvas: Canvas, rng: np.random.Generator, street: Street, darkness: float) -> None:
    """Bands across the street and up the walls of one side, as houses and gaps before a low sun throw them."""
    side, skew, z = rng.integers(2), rng.uniform(-8, 8), rng.uniform(-4, 4)
    while z < FAR:
        far = z + rng.uniform(3, 12)
        near_wall, far_wall = np.clip((z + skew, far + skew), 0.7, FAR)
        ends = np.clip([(z, far), (near_wall, far_wall)][:: 1 if side else -1], 0.7, FAR)
        ground = [(x, 0, depth) for x, pair in zip(street.walls, ends, strict=True) for depth in pair]
        where = canvas.mask(canvas.view.project(np.array(ground)[[0, 1, 3, 2]]))
        if far_wall > near_wall:
            wall = _wall(canvas, street.walls[side], near_wall, far_wall, 0, rng.uniform(1.5, 7))
            where |= canvas.mask(wall) & (canvas.label != LABEL_IDS["sky"])
        canvas.blend(where, (15, 18, 35), darkness)
        z = far + rng.uniform(2, 9)


def _add_snow(canvas: Canvas, rng: np.random.Generator, cover: float) -> None:
    """Snow in patches on what lies or grows; tyres have cleared a part of the road."""
    height, width = canvas.label.shape
    patches = cv2.resize(rng.random((height // 3 + 1, width // 8 + 1), np.float32), (width, height))
    share = np.zeros(256, np.float32)
    share[[LABEL_IDS[name] for name in _SNOWED]] = list(_SNOWED.values())
    share = np.clip(0.5 + 1.3 * (cover * share[canvas.label] - patches), 0, 0.9) * (share[canvas.label] > 0)
    canvas.image = (canvas.image + share[:, :, None] * (np.float32((238, 242, 250)) - canvas.image)).astype(np.uint8)


def _add_grain(canvas: Canvas, rng: np.random.Generator, style: Style) -> np.ndarray:
    """The image (H×W×3 uint8) with every class's texture and the sun's light from one side."""
    height, width = canvas.label.shape
    table = np.empty((256, 2), np.float32)
    table[:] = _OTHER_GRAIN
    for name, grain in _GRAIN.items():
        table[LABEL_IDS[name]] = grain
    strength = style.grain * table[canvas.label]
    light = np.linspace(*(1 + rng.uniform(-0.12, 0.12, 2)), width, dtype=np.float32)[None].repeat(height, 0)
    for k, cell in enumerate(style.cells):
        cells = rng.standard_normal((height // cell + 1, width // cell + 1), np.float32)
        light += strength[:, :, k] * cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(canvas.image * light[:, :, None], 0, 255).astype(np.uint8)
