"""The things of a toy street scene: trees, poles with signs and lights, vehicles, people, bicycles.

Every function draws one thing on a canvas at x, z (m) and picks what it looks like from `rng`.
"""

from dataclasses import dataclass

import numpy as np

from tools.toy_domains.canvas import Canvas, Colour, Light, Spot, Tone, paint, shade

_SKIN = Tone((0.04, 0.09), (0.25, 0.6), (0.35, 0.9))
_HAIR = Tone((0.05, 0.12), (0.1, 0.6), (0.05, 0.5))
_METAL = Tone((0.05, 0.65), (0, 0.2), (0.2, 0.7))
_BARK = Tone((0.05, 0.1), (0.2, 0.5), (0.2, 0.4))
_GLASS = Tone((0.5, 0.65), (0.1, 0.35), (0.1, 0.4))
_DARK = (28, 28, 30)
_SIGNS = ((205, 30, 35), (30, 70, 190), (235, 235, 230), (240, 200, 30), (20, 120, 70))
_LAMPS = tuple(map(Light, ((230, 40, 30), (250, 180, 40), (50, 220, 120))))


def draw_tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float, leaves: Tone) -> None:
    """A trunk and a crown of overlapping clumps, all of it vegetation."""
    spot, colour = canvas.at(x, z), leaves.pick(rng)
    height, spread = rng.uniform(3.5, 8), rng.uniform(1.0, 2.4)
    spot.bar((0, 0), (rng.uniform(-0.2, 0.2), height), rng.uniform(0.22, 0.4), _BARK.pick(rng), "vegetation", 2)
    centres = rng.normal(0, 0.5, (9, 2)) * (spread, 0.6 * spread) + (0, height)
    for u, v in centres:
        spot.disc(u, v, tuple(spread * rng.uniform(0.4, 0.75, 2)), shade(colour, rng.uniform(0.75, 1.0)), "vegetation")
    leaves_at = np.repeat(centres, 4, 0) + rng.normal(0, 0.13 * spread, (36, 2))
    sizes = spread * rng.uniform(0.05, 0.14, (36, 2))
    above = leaves_at[:, 1] > height
    spot.dabs(leaves_at[above], sizes[above], shade(colour, 1.3))
    spot.dabs(leaves_at[~above], sizes[~above], shade(colour, 0.62))


def draw_lamp(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A street lamp or a bollard-like post; all of it pole."""
    spot, colour = canvas.at(x, z), _METAL.pick(rng)
    height, width = rng.uniform(4.0, 7.5), rng.uniform(0.28, 0.42)
    _draw_pole(spot, height, width, colour)
    if rng.random() < 0.7:
        reach = -np.sign(x) * rng.uniform(0.8, 2)
        spot.bar((0, height), (reach, height + 0.3), 0.14, colour, "pole", 2)
        head = (reach * 0.7, height + 0.22), (reach * 1.25, height + 0.36)
        spot.bar(*head, 0.22, Light(shade(colour, 1.3)), "pole", 3)


def draw_sign(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """One or two boards (round, triangular, rectangular, diamond) on a pole."""
    spot, radius = canvas.at(x, z), rng.uniform(0.42, 0.56)
    height = rng.uniform(2.2, 3.0)
    _draw_pole(spot, height, rng.uniform(0.18, 0.26), _METAL.pick(rng))
    for _ in range(1 + (rng.random() < 0.3)):
        _draw_board(spot, rng, height, radius)
        height -= 1.9 * radius


def _draw_board(spot: Spot, rng: np.random.Generator, height: float, radius: float) -> None:
    corners = int(rng.choice([3, 4, 8, 24]))
    turn = rng.choice([0, np.pi / 4]) if corners == 4 else np.pi / 2
    angles = turn + np.arange(corners) * 2 * np.pi / corners
    shape = np.stack([np.cos(angles), np.sin(angles)], 1) * radius
    if corners == 4 and turn:
        shape = shape * (1.0, rng.uniform(0.7, 1.5))
    rim, face, mark = (_SIGNS[k] for k in rng.permutation(len(_SIGNS))[:3])
    shape[:, 1] += height
    centre = np.array((0, height))
    spot.polygon(shape, rim, "sign")
    spot.polygon(centre + (shape - centre) * 0.7, face)
    spot.box(0, height - 0.12 * radius, radius * 0.7, 0.24 * radius, mark)


def draw_light(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A traffic light: a dark case with three lamps, one of them lit, on a pole."""
    spot, height = canvas.at(x, z), rng.uniform(2.3, 3.4)
    width, tall, pole = rng.uniform(0.42, 0.56), rng.uniform(1.15, 1.4), _METAL.pick(rng)
    _draw_pole(spot, height + 0.2, rng.uniform(0.24, 0.32), pole)
    places = [(0.0, height)]
    if rng.random() < 0.35:  # a second one hangs over the lane
        reach = -np.sign(x) * rng.uniform(1.5, 3)
        spot.bar((0, height + 0.3), (0, height + 2.6), 0.16, pole, "pole", 2.5)
        spot.bar((0, height + 2.4), (reach, height + 2.5), 0.14, pole, "pole", 2.5)
        places.append((reach, height + 1.6))
    lit, case = rng.integers(3), shade((60, 62, 60), rng.uniform(0.4, 1.1))
    for u, v in places:
        spot.box(u, v, width, tall, case, "light")
        for k, lamp in enumerate(_LAMPS):
            centre = v + tall * (0.82 - 0.32 * k)
            spot.disc(u, centre, (0.3 * width, 0.13 * tall), lamp if k == lit else shade(lamp, 0.3))


def _draw_pole(spot: Spot, height: float, width: float, colour: Colour) -> None:
    spot.bar((0, 0), (0, height), width, colour, "pole", 4)
    spot.bar((0.3 * width, 0), (0.3 * width, height), 0.3 * width, shade(colour, 1.35), "", 0.5)


def draw_person(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Someone who stands or walks; one in eight is a child."""
    tall = rng.uniform(0.62, 0.75) if rng.random() < 0.125 else rng.uniform(0.92, 1.1)
    spot = _resized(canvas.at(x, z), tall)
    legs, coat = paint(rng), paint(rng)
    stride, broad = rng.uniform(0.02, 0.34) * rng.choice((-1, 1)), rng.uniform(0.9, 1.25)
    for side in (-1, 1):
        foot = side * (stride + 0.08)
        spot.bar((0.09 * side, 0.92), (foot, 0.05), 0.18, shade(legs, 1 + 0.15 * side), "person", 1.5)
        spot.bar((foot - 0.06, 0.05), (foot + 0.1, 0.05), 0.1, _DARK, "person")
    for side in (-1, 1):
        hand = (side * 0.3 * broad - rng.uniform(-0.2, 0.2), 0.85)
        spot.bar((side * 0.2 * broad, 1.38), hand, 0.13, shade(coat, 0.8), "person", 1.2)
    hem = rng.choice((0.82, 0.82, 0.55))
    torso = np.array([(-0.23, 1.46), (0.23, 1.46), (0.19, hem), (-0.19, hem)]) * (broad, 1)
    spot.polygon(torso, coat, "person")
    if rng.random() < 0.3:
        spot.box(rng.choice((-0.24, 0.24)), 0.85, 0.24, 0.4, paint(rng), "person")
    _draw_head(spot, rng, 0, 1.63, "person")


def _draw_head(spot: Spot, rng: np.random.Generator, u: float, v: float, name: str) -> None:
    hair = paint(rng) if name == "rider" else _HAIR.pick(rng)
    spot.disc(u, v, (0.135, 0.17), _SKIN.pick(rng), name)
    scalp = np.array([(-1, 0), (-0.7, 0.8), (0, 1), (0.7, 0.8), (1, 0)])
    spot.polygon(scalp * (0.15, 0.19) + (u, v), hair, name)


def draw_bicycle(canvas: Canvas, rng: np.random.Generator, x: float, z: float, ridden: bool) -> None:
    """A bicycle seen from the side or askew, with a rider on it where `ridden`.

    As in Cityscapes' polygons, what is seen between spokes and tubes belongs to the bicycle.
    """
    spot = _resized(canvas.at(x, z), rng.uniform(1.05, 1.2))
    turn = rng.choice((-1, 1)) * rng.uniform(0.35, 1)
    frame, wheel = paint(rng), 0.36
    reach, broad = 0.55 * turn, max(abs(turn), 0.3)
    for u in (-reach, reach):
        spot.disc(u, wheel, (wheel * broad, wheel), _DARK, "bicycle")
        spot.disc(u, wheel, (0.72 * wheel * broad, 0.72 * wheel), rng.uniform(90, 150) * np.ones(3))
        spot.disc(u, wheel, (0.12 * broad, 0.12), _DARK)
    saddle, head, pedal = (-0.2 * turn, 0.95), (0.42 * turn, 1.0), (-0.03 * turn, 0.36)
    tubes = (saddle, pedal), (pedal, head), (saddle, head), (saddle, (-reach, wheel)), (pedal, (-reach, wheel))
    for start, end in (*tubes, (head, (reach, wheel))):
        spot.bar(start, end, 0.075, frame, "bicycle", 1.5)
    spot.bar((head[0] - 0.12, 1.07), (head[0] + 0.12, 1.07), 0.09, _DARK, "bicycle", 1.5)
    if ridden:
        _draw_rider(spot, rng, turn, saddle, head, pedal)
    else:
        spot.bar((saddle[0] - 0.14, 0.98), (saddle[0] + 0.14, 0.98), 0.1, _DARK, "bicycle", 1.5)


def _draw_rider(spot: Spot, rng: np.random.Generator, turn: float, saddle, head, pedal) -> None:
    legs, coat = paint(rng), paint(rng)
    hip, shoulder = (saddle[0], 1.02), (0.12 * turn, rng.uniform(1.48, 1.6))
    side = np.sqrt(max(0.0, 1 - turn**2)) * 0.16
    for sign, lift in ((-1, 0.0), (1, 0.22)):
        knee = (0.22 * turn + sign * side, 0.68 + lift)
        foot = (pedal[0] + sign * side, 0.2 + lift)
        spot.bar(hip, knee, 0.2, shade(legs, 0.9), "rider", 1.5)
        spot.bar(knee, foot, 0.15, legs, "rider", 1.5)
    spot.bar(hip, shoulder, 0.4, coat, "rider", 3)
    spot.bar(shoulder, (head[0] - 0.04 * turn, 1.1), 0.13, shade(coat, 0.8), "rider", 1.5)
    _draw_head(spot, rng, shoulder[0] + 0.12 * turn, shoulder[1] + 0.24, "rider")


def _resized(spot: Spot, factor: float) -> Spot:
    return Spot(spot.canvas, spot.column, spot.row, spot.scale * factor, spot.depth)


@dataclass(frozen=True)
class _Frame:
    """A vehicle's own axes: u ahead, v to its left, h up (m), its middle at x, z, turned by `yaw` (0: drives away)."""

    canvas: Canvas
    x: float
    z: float
    yaw: float

    def world(self, points) -> np.ndarray:
        u, v, h = np.asarray(points, np.float64).reshape(-1, 3).T
        sine, cosine = np.sin(self.yaw), np.cos(self.yaw)
        return np.stack([self.x + u * sine - v * cosine, h, self.z + u * cosine + v * sine], 1)

    def faces_camera(self, normal: tuple[float, float], centre: tuple[float, float]) -> bool:
        """Whether a side with this (u, v) normal and centre shows."""
        ends = self.world([(*centre, 0), (centre[0] + normal[0], centre[1] + normal[1], 0)])[:, [0, 2]]
        ends[:, 0] += self.canvas.view.bend * ends[:, 1] ** 2
        return float((ends[1] - ends[0]) @ ends[0]) < 0

    def fill(self, points, colour: Colour, name: str = "", hull: bool = False) -> None:
        self.canvas.fill_world(self.world(points), colour, name, hull)

    def block(self, bottom, top, colour: Colour, name: str, lights: tuple[float, float] = (0.85, 0.7)) -> list:
        """A frustum between two rectangles (u0, u1, half width, h); returns the sides that show, as 4×3 corners each.

        `lights` shade its ends and its flanks.
        """
        (a0, a1, aw, ah), (b0, b1, bw, bh) = bottom, top
        low = {(1, 1): (a1, aw, ah), (1, -1): (a1, -aw, ah), (-1, 1): (a0, aw, ah), (-1, -1): (a0, -aw, ah)}
        high = {(1, 1): (b1, bw, bh), (1, -1): (b1, -bw, bh), (-1, 1): (b0, bw, bh), (-1, -1): (b0, -bw, bh)}
        self.fill([*low.values(), *high.values()], colour, name, hull=True)
        shown = []
        for normal, (p, q) in _SIDES.items():
            middle = (a0 + a1) / 2 + normal[0] * (a1 - a0) / 2, normal[1] * aw
            if self.faces_camera(normal, middle):
                side = np.array([low[p], low[q], high[q], high[p]])
                self.fill(side, shade(colour, lights[0] if normal[0] else lights[1]))
                shown.append((normal, side))
        return shown

    def panel(self, side: np.ndarray, across, up, colour: Colour) -> None:
        """Paint a part of a side: from `across[0]` to `across[1]` of its width, `up[0]` to `up[1]` of its height."""
        (p, q, r, s), (left, right), (low, high) = side, across, up
        corners = [(left, low), (right, low), (right, high), (left, high)]
        self.fill([(1 - b) * ((1 - a) * p + a * q) + b * ((1 - a) * s + a * r) for a, b in corners], colour)

    def wheels(self, places, half: float, radius: float, name: str) -> None:
        """Wheels at the places u, on both flanks; draw before the body, which hides their upper part from behind."""
        for u in places:
            for v in (-half, half):
                inner = v - np.sign(v) * 0.25
                rims = [(u + radius * c, w, radius * (1 + s)) for w in (v, inner) for c, s in _WHEEL]
                self.fill(rims, _DARK, name, hull=True)

    def hubs(self, places, half: float, radius: float) -> None:
        """The wheels' outer discs, over the body."""
        for v in (-half, half):
            if self.faces_camera((0, np.sign(v)), (0, v)):
                for u in places:
                    for size, colour in ((1.0, _DARK), (0.55, (125, 125, 128))):
                        self.fill([(u + radius * c * size, v, radius * (1 + s * size)) for c, s in _WHEEL], colour)

    def shadow(self, length: float, half: float) -> None:
        u, v = 0.52 * length, 1.15 * half
        outline = self.world([(-u, -v, 0), (u, -v, 0), (u, v, 0), (-u, v, 0)])
        where = self.canvas.mask(self.canvas.view.project(outline))
        self.canvas.blend(where, (10, 10, 15), 0.6)


_SIDES = {
    (1, 0): ((1, 1), (1, -1)),
    (-1, 0): ((-1, -1), (-1, 1)),
    (0, 1): ((-1, 1), (1, 1)),
    (0, -1): ((1, -1), (-1, -1)),
}
_WHEEL = [(np.cos(angle), np.sin(angle)) for angle in np.linspace(0, 2 * np.pi, 14, endpoint=False)]


def draw_car(canvas: Canvas, rng: np.random.Generator, x: float, z: float, yaw: float) -> None:
    """A saloon, hatchback or tall car; `yaw` in radians, 0 drives away from the camera."""
    frame = _Frame(canvas, x, z, yaw)
    length, half, height = rng.uniform(3.8, 4.8), rng.uniform(0.84, 0.95), rng.uniform(1.4, 1.75)
    colour, glass, waist = paint(rng), _GLASS.pick(rng), 0.58 * height
    back = rng.choice((-0.48, -0.3))  # hatchback or saloon
    wheels = (-0.31 * length, 0.31 * length)
    frame.shadow(length, half)
    frame.wheels(wheels, half - 0.03, 0.33, "car")
    body = (-length / 2, length / 2, half, 0.28), (-0.49 * length, 0.47 * length, 0.97 * half, waist)
    cabin = (
        (back * length - 0.1 * (back > -0.4) * length, 0.24 * length, 0.94 * half, waist),
        (back * length + 0.04 * length, 0.08 * length, 0.76 * half, height),
    )
    for (bottom, top), part in ((body, "body"), (cabin, "cabin")):
        for normal, side in frame.block(bottom, top, colour, "car"):
            _detail_car(frame, normal, side, part, glass)
    frame.hubs(wheels, half - 0.03, 0.33)


def _detail_car(frame: _Frame, normal, side: np.ndarray, part: str, glass: Colour) -> None:
    if part == "cabin":
        spans = ((0.1, 0.9),) if normal[0] else ((0.08, 0.47), (0.53, 0.92))
        for across in spans:
            frame.panel(side, across, (0.1, 0.86), glass)
    elif normal[0]:
        lamp = Light((235, 235, 215) if normal[0] > 0 else (190, 25, 25))
        frame.panel(side, (0.04, 0.24), (0.55, 0.85), lamp)
        frame.panel(side, (0.76, 0.96), (0.55, 0.85), lamp)
        frame.panel(side, (0.36, 0.64), (0.35, 0.55), (225, 225, 215) if normal[0] < 0 else _DARK)
        frame.panel(side, (0.02, 0.98), (0.0, 0.2), (50, 50, 52))
    else:
        frame.panel(side, (0.49, 0.505), (0.1, 1.0), (40, 40, 42))


def draw_truck(canvas: Canvas, rng: np.random.Generator, x: float, z: float, yaw: float) -> None:
    """A cab and a tall cargo box on a dark chassis; `yaw` as a car's."""
    frame = _Frame(canvas, x, z, yaw)
    length, half, tall = rng.uniform(6, 8), rng.uniform(1.1, 1.25), rng.uniform(2.9, 3.6)
    end, wheels = length / 2, (-0.3 * length, 0.36 * length)
    cargo, cab, stripe = paint(rng), paint(rng), paint(rng)
    frame.shadow(length, half)
    frame.wheels(wheels, half - 0.05, 0.48, "truck")
    frame.block((-end, end, half * 0.9, 0.5), (-end, end, half * 0.9, 1.0), _DARK, "truck")

    def draw_cargo() -> None:
        body = (-end, end - 1.9, half, 0.95), (-end, end - 1.9, half, tall)
        for normal, side in frame.block(*body, cargo, "truck"):
            frame.panel(side, (0.0, 1.0), (0.0, 0.05), shade(cargo, 0.45))
            if normal[0]:
                frame.panel(side, (0.49, 0.51), (0.0, 1.0), shade(cargo, 0.4))
                frame.panel(side, (0.02, 0.14), (0.0, 0.08), (200, 30, 25))
                frame.panel(side, (0.86, 0.98), (0.0, 0.08), (200, 30, 25))
            else:
                frame.panel(side, (0.08, 0.92), (0.4, 0.65), stripe)

    def draw_cab() -> None:
        body = (end - 1.7, end, 0.95 * half, 0.55), (end - 1.7, end - 0.15, 0.92 * half, min(2.75, tall - 0.1))
        for normal, side in frame.block(*body, cab, "truck"):
            frame.panel(side, (0.08, 0.92) if normal[0] else (0.25, 0.85), (0.52, 0.88), _GLASS.pick(rng))
            if normal[0] > 0:
                frame.panel(side, (0.05, 0.2), (0.08, 0.2), (235, 235, 215))
                frame.panel(side, (0.8, 0.95), (0.08, 0.2), (235, 235, 215))
                frame.panel(side, (0.25, 0.75), (0.12, 0.38), _DARK)

    for draw in (draw_cab, draw_cargo) if np.cos(yaw) > 0 else (draw_cargo, draw_cab):  # the farther one first
        draw()
    frame.hubs(wheels, half - 0.05, 0.48)
