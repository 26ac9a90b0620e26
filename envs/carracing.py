"""Gymnasium's CarRacing-v3 with its frames drawn sooner: the same pixels, the same everything."""

import numpy as np
import pygame
from gymnasium.envs.box2d.car_racing import (
    GRASS_DIM,
    PLAYFIELD,
    SCALE,
    STATE_H,
    STATE_W,
    WINDOW_H,
    WINDOW_W,
    ZOOM,
    CarRacing,
)

# The corners of the playfield (4, 2), and of the squares of grass (400, 4, 2) in drawing order.
FIELD = PLAYFIELD * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
_SQUARES = np.stack(np.meshgrid(*[np.arange(-20, 20, 2)] * 2, indexing="ij"), axis=-1)
GRASS = GRASS_DIM * (_SQUARES.reshape(-1, 1, 2) + np.array([[1, 0], [0, 0], [0, 1], [1, 1]]))
GRASS_POLYGONS = GRASS.tolist()
MARGIN = 4  # pixels around the window, for the rounding of what is drawn


class SwiftCarRacing(CarRacing):
    """CarRacing that spends less than half the time on a step, most of which is drawing.

    The parent turns the corners of 400 squares of grass and some 300 tiles one by one in every
    step, to find that most are out of sight; makes a window of 3 MB, and a font for the score.
    Here NumPy finds what is in sight, and what lasts is kept. What is drawn, the parent's own
    methods draw. What a spectator sees has its road from here, and the rest from the parent.
    """

    # One for all environments of a process, which draw one after the other: it has 3 MB.
    _canvas = pygame.Surface((WINDOW_W, WINDOW_H))

    def _create_track(self) -> bool:
        """A new track (in every reset), with the places of all that can be in sight."""
        created = super()._create_track()
        if created:
            road = [np.array([corner[:2] for corner in corners]) for corners, _ in self.road_poly]
            # A tile's color is an array that changes when the car first drives on it.
            colors = [color for _, color in self.road_poly]
            self._polygons = GRASS_POLYGONS + [corners.tolist() for corners in road]
            self._colors = [self.grass_color] * len(GRASS) + colors
            corners = np.array([*GRASS, *road])
            self._centers = corners.mean(axis=1)
            self._radii = np.linalg.norm(corners - self._centers[:, None], axis=2).max(axis=1)
            pygame.font.init()
            self._font = pygame.font.Font(pygame.font.get_default_font(), 42)
        return created

    def _render(self, mode: str) -> np.ndarray | bool | None:
        if mode != "state_pixels" or "t" not in self.__dict__:
            return super()._render(mode)
        x, y = self.car.hull.position
        angle = -self.car.hull.angle
        # In its first second an episode zooms in from the whole field.
        zoom = 0.1 * SCALE * max(1 - self.t, 0) + ZOOM * SCALE * min(self.t, 1)
        shift = pygame.math.Vector2((-x * zoom, -y * zoom)).rotate_rad(angle)
        place = (WINDOW_W / 2 + shift[0], WINDOW_H / 4 + shift[1])

        self.surf = self._canvas
        self._render_road(zoom, place, angle)
        self.car.draw(self.surf, zoom, place, angle, draw_particles=False)
        self.surf = pygame.transform.flip(self.surf, False, True)
        self._render_indicators(WINDOW_W, WINDOW_H)
        score = self._font.render(f"{self.reward:04.0f}", True, (255, 255, 255), (0, 0, 0))
        rectangle = score.get_rect()
        rectangle.center = (60, WINDOW_H - WINDOW_H * 2.5 / 40.0)
        self.surf.blit(score, rectangle)
        frame = self._create_image_array(self.surf, (STATE_W, STATE_H))
        self.surf = self._canvas  # instead of 3 MB that each environment would keep
        return frame

    def _render_road(self, zoom: float, place: tuple[float, float], angle: float) -> None:
        """The field, the grass and the road, on a canvas that may have an earlier frame on it.

        A point p of the world is at zoom * (p turned by `angle`) + `place` in the window.
        """
        turn = zoom * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        window = np.array([WINDOW_W, WINDOW_H])
        window_corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) * window
        seen_corners = (window_corners - place) @ np.linalg.inv(turn)
        if np.abs(seen_corners).max() < PLAYFIELD - 1:  # nothing but the field
            self.surf.fill(self.bg_color)
        else:
            self.surf.fill(0)
            how = (self.bg_color, zoom, place, angle)
            self._draw_colored_polygon(self.surf, FIELD, *how, clip=False)
        centers = self._centers @ turn + place
        reach = (self._radii * zoom + MARGIN)[:, None]
        in_sight = ((centers > -reach) & (centers < window + reach)).all(axis=1)
        for i in np.flatnonzero(in_sight):
            color = [int(c) for c in self._colors[i]]
            self._draw_colored_polygon(self.surf, self._polygons[i], color, zoom, place, angle)
