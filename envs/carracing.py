"""Gymnasium's CarRacing-v3 whose frames `envs.drawing` makes: faster, the same to the last bit."""

import functools
import math
import threading

import numpy as np
import pygame
from gymnasium.envs.box2d.car_dynamics import SIZE as CAR_SIZE
from gymnasium.envs.box2d.car_dynamics import WHEEL_R, WHEEL_W, WHEEL_WHITE, Car
from gymnasium.envs.box2d.car_racing import (
    GRASS_DIM,
    PLAYFIELD,
    SCALE,
    WINDOW_H,
    WINDOW_W,
    ZOOM,
    CarRacing,
)

from envs.drawing import BUFFERS, SIZE, Scene, draw
from envs.driving import SwiftCar
from utils.compiling import kept

# The corners of the playfield (4, 2), and of the squares of grass (400, 4, 2) in drawing order.
FIELD = PLAYFIELD * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
_SQUARES = np.stack(np.meshgrid(*[np.arange(-20, 20, 2)] * 2, indexing="ij"), axis=-1)
GRASS = GRASS_DIM * (_SQUARES.reshape(-1, 1, 2) + np.array([[1, 0], [0, 0], [0, 1], [1, 1]]))

BAR_COLORS = np.array(
    [
        [255, 255, 255],
        [0, 0, 255],
        [0, 0, 255],
        [51, 0, 255],
        [51, 0, 255],
        [0, 255, 0],
        [255, 0, 0],
    ]
)
STRIPE = 1.2  # radians of a wheel that are white
QUARTER_TURNS = [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0), (1.0, 0.0)]


class DrawnCarRacing(CarRacing):
    """CarRacing in which only the picture for a spectator is drawn by Gymnasium."""

    # One for all environments of a thread, which draw one after the other.
    _of_thread = threading.local()
    _moves = False

    def _create_track(self) -> bool:
        """A new track (in every reset), as arrays that last."""
        created = super()._create_track()
        if created:
            road = [[corner[:2] for corner in corners] for corners, _ in self.road_poly]
            corners = np.array([FIELD, *GRASS, *road])
            centers = corners.mean(axis=1)
            radii = np.linalg.norm(corners - centers[:, None], axis=2).max(axis=1)
            colors = [self.bg_color] + [self.grass_color] * len(GRASS)
            colors = np.array([*colors, *(color for _, color in self.road_poly)], np.float64)
            self._ground = (corners, centers, radii, colors)
            # When the car reaches a tile, Gymnasium writes into the tile's color: let that be ours.
            views = colors[1 + len(GRASS) :]
            tiles = {id(tile.color): tile for tile in self.road}
            for i, (polygon, color) in enumerate(self.road_poly):
                if id(color) in tiles:
                    tiles[id(color)].color = views[i]
                    self.road_poly[i] = (polygon, views[i])
        return created

    def _buffers(self) -> np.ndarray:
        """What this thread draws in."""
        if not hasattr(self._of_thread, "buffers"):
            self._of_thread.buffers = np.empty(1, BUFFERS)
        return self._of_thread.buffers

    def close(self) -> None:
        """Leave nothing behind: a body that its world did not destroy keeps itself in memory."""
        self._destroy()
        super().close()

    def _render(self, mode: str) -> np.ndarray | Scene | bool | None:
        if mode != "state_pixels":
            return super()._render(mode)
        return self._scene() if self._moves else self._drawn(self._scene())

    def _drawn(self, scene: Scene) -> np.ndarray:
        frame = np.empty((SIZE, SIZE, 3), np.uint8)
        return frame if draw(scene, self._buffers(), frame) else super()._render("state_pixels")

    def move(self, action: np.ndarray) -> tuple[float, bool]:
        """The first half of a step: reward and terminated."""
        self._moves = True
        try:
            _, reward, terminated, _, _ = self.step(action)
        finally:
            self._moves = False
        return reward, terminated

    def frame(self) -> np.ndarray:
        """The second half: the frame (96, 96, 3) uint8."""
        return self._drawn(self.state)

    @property
    def car(self) -> Car | None:
        return self._car

    @car.setter
    def car(self, car: Car | None) -> None:
        """Gymnasium makes a car in each reset, and steps it at once."""
        if car is not None:
            car.__class__ = SwiftCar
        self._car, self._shapes = car, None

    def _scene(self) -> Scene:
        """What is to be seen of the car and the track."""
        car, hull = self._car, self._car.hull
        if self._shapes is None:
            places = np.empty((12, 4), np.float32), np.empty(5)
            bars = np.empty((len(BAR_COLORS), 4, 2)), np.empty(len(BAR_COLORS), np.int64)
            self._shapes = *_car_polygons(car), *places, *bars
        polygons, corners, colors, places, camera, bars, bar_corners = self._shapes
        # In its first second an episode zooms in from the whole field.
        zoom = 0.1 * SCALE * max(1 - self.t, 0) + ZOOM * SCALE * min(self.t, 1)
        numbers = [zoom, *_turn(-hull.angle)]
        for body in (hull, *car.wheels):
            direction, position = body.GetWorldVector((1, 0)), body.position
            numbers += (direction.x, direction.y, position.x, position.y)
        for wheel in car.wheels:
            numbers += _stripe(wheel.phase)
        speed = hull.linearVelocity
        numbers += (speed.x, speed.y, *(wheel.omega for wheel in car.wheels))
        numbers += (car.wheels[0].joint.angle, hull.angularVelocity)
        arrays = (polygons, corners, places, camera, bars, bar_corners)
        _lay_out(np.array(numbers), WINDOW_W, WINDOW_H, *arrays)
        return Scene(
            *self._ground,
            polygons,
            corners,
            colors,
            places,
            camera,
            bars,
            bar_corners,
            BAR_COLORS,
            *_score(f"{self.reward:04.0f}"),
        )


@kept
def _lay_out(numbers, width, height, polygons, corners, places, camera, bars, bar_corners):
    """Put the numbers of `_scene` into the arrays of a Scene."""
    zoom, cosine, sine = numbers[0], numbers[1], numbers[2]
    camera[0], camera[1], camera[2] = cosine, sine, zoom
    x, y = -numbers[5] * zoom, -numbers[6] * zoom  # of the hull
    camera[3] = width / 2 + (cosine * x - sine * y)
    camera[4] = height / 4 + (sine * x + cosine * y)
    for i in range(len(places)):  # each wheel and its stripe, then the hull
        body = i // 2 + 1 if i < 8 else 0
        for k in range(4):
            places[i, k] = numbers[3 + 4 * body + k]
    for wheel in range(4):
        start, end = numbers[23 + 2 * wheel], numbers[24 + 2 * wheel]
        corners[2 * wheel + 1] = 0 if np.isnan(start) else 4
        for k in range(4):
            polygons[2 * wheel + 1, k, 1] = start if k < 2 else end
    wide, high = width / 40.0, height / 40.0
    for i in range(7):
        if i == 0:
            value = np.sqrt(numbers[31] * numbers[31] + numbers[32] * numbers[32])
        else:
            value = numbers[32 + i]
        if i < 5:  # upright: the speed, and the wheels' rotation
            place = 5 if i == 0 else 6 + i
            left, right = place * wide, (place + 1) * wide
            top = height - (high + high * ((0.02 if i == 0 else 0.01) * value))
            bottom = height - high
        else:  # lying: the steering, and the hull's rotation
            place = 20 if i == 5 else 30
            left, right = place * wide, (place + (-10.0 if i == 5 else -0.8) * value) * wide
            top, bottom = height - 4 * high, height - 2 * high
        bars[i, 0, 0], bars[i, 0, 1], bars[i, 1, 0], bars[i, 1, 1] = left, top, right, top
        bars[i, 2, 0], bars[i, 2, 1], bars[i, 3, 0], bars[i, 3, 1] = right, bottom, left, bottom
        bar_corners[i] = 4 if abs(value) > 1e-4 else 0


class UndrawnCarRacing(CarRacing):
    """Gymnasium's own physics, without pictures."""

    def _render(self, mode: str) -> None:
        pass


def difference() -> str:
    """In what this differs from Gymnasium's own in a short drive, or "" where in nothing."""
    ours, theirs = DrawnCarRacing(), UndrawnCarRacing()
    ours.reset(seed=0)
    theirs.reset(seed=0)
    # Straight on, to both sides, with the brakes; off the road in the end.
    for action in np.repeat(
        np.array([[0, 1, 0], [1, 0.5, 0], [-1, 0, 0.4]], np.float32), 15, axis=0
    ):
        if ours.step(action)[1] != theirs.step(action)[1] or _where(ours) != _where(theirs):
            return "its car drives otherwise"
    # Zoomed out, zooming in, and with the full zoom; scores of either sign; a quarter turn.
    for t, reward, angle in ((0.02, 0.0, 0.1), (0.5, -12.3, 2.0), (2.0, 907.6, math.pi / 2)):
        ours.t, ours.reward, ours.car.hull.angle = t, reward, angle
        frame, original = ours._render("state_pixels"), CarRacing._render(ours, "state_pixels")
        if not np.array_equal(frame, original):
            return (
                f"{int((frame != original).any(axis=2).sum())} of {SIZE * SIZE} pixels differ with "
                f"pygame {pygame.version.ver}, whose smoothscale is "
                f"{pygame.transform.get_smoothscale_backend()}"
            )
    ours.close()
    return ""


def _where(env: CarRacing) -> list[float]:
    """All that a car's next step depends on."""
    bodies = [env.car.hull, *env.car.wheels]
    wheels = [(wheel.omega, wheel.phase, wheel.gas) for wheel in env.car.wheels]
    return [(*b.position, b.angle, *b.linearVelocity, b.angularVelocity) for b in bodies] + wheels


def _car_polygons(car: Car) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The car's polygons (12, 8, 2) float32, their numbers of corners (12,) and colors (12, 3).

    In the order of drawing: each wheel and the white stripe on it, then the four of the hull.
    """
    polygons, corners = np.zeros((12, 8, 2), np.float32), np.zeros(12, np.int64)
    colors = np.zeros((12, 3), np.int64)
    for i, wheel in enumerate(car.wheels):
        polygons[2 * i, :4] = wheel.fixtures[0].shape.vertices
        polygons[2 * i + 1, :4, 0] = np.array([-1, 1, 1, -1]) * WHEEL_W * CAR_SIZE
        corners[2 * i] = 4
        colors[2 * i], colors[2 * i + 1] = [int(c * 255) for c in wheel.color], WHEEL_WHITE
    for i, fixture in enumerate(car.hull.fixtures, start=2 * len(car.wheels)):
        vertices = fixture.shape.vertices
        corners[i] = len(vertices)
        polygons[i, : len(vertices)] = vertices
        colors[i] = [int(c * 255) for c in car.hull.color]
    return polygons, corners, colors


def _stripe(phase: float) -> tuple[float, float]:
    """From where to where along its wheel the white stripe is seen; NaN where it is below."""
    start, end = math.cos(phase), math.cos(phase + STRIPE)
    start_above, end_above = math.sin(phase) > 0, math.sin(phase + STRIPE) > 0
    if start_above and end_above:
        return math.nan, math.nan
    if start_above:
        start = float(np.sign(start))
    if end_above:
        end = float(np.sign(end))
    return WHEEL_R * start * CAR_SIZE, WHEEL_R * end * CAR_SIZE


def _turn(angle: float) -> tuple[float, float]:
    """Cosine and sine of an angle, exact close to quarter turns, as pygame's vectors turn."""
    angle = math.fmod(angle, 2 * math.pi)
    if angle < 0:
        angle += 2 * math.pi
    if math.fmod(angle + 1e-6, math.pi / 2) < 2e-6:
        return QUARTER_TURNS[int((angle + 1e-6) / (math.pi / 2))]
    return math.cos(angle), math.sin(angle)


@functools.cache
def _font() -> pygame.font.Font:
    pygame.font.init()
    return pygame.font.Font(pygame.font.get_default_font(), 42)


@functools.lru_cache(maxsize=4096)
def _score(text: str) -> tuple[np.ndarray, int, int]:
    """The score as a picture (h, w) uint8 in gray, and where its upper left corner is."""
    try:
        picture = _font().render(text, True, (255, 255, 255), (0, 0, 0))
    except pygame.error:  # a window was closed, and pygame with it
        _font.cache_clear()
        picture = _font().render(text, True, (255, 255, 255), (0, 0, 0))
    place = picture.get_rect()
    place.center = (60, WINDOW_H - WINDOW_H * 2.5 / 40.0)
    pixels = pygame.surfarray.array3d(picture)[:, :, 0].T
    return np.ascontiguousarray(pixels), place.left, place.top
