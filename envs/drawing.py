"""CarRacing's frames by compiled loops: a scene in, the frame (96, 96, 3) out.

Equal to the last bit to what pygame-ce 2.5 makes of the scene, with gfxdraw's antialiased and
filled polygons, draw.polygon, and smoothscale on processors with SIMD. Knows nothing of Gymnasium.

The window has 1000x800 pixels, and 96x96 cells of them make the frame. What makes it fast:
- It is drawn in bands of 100 rows of pixels, which are 12 rows of cells, and fit a core's cache.
- Whatever changes the color along a row or a column leaves a mark there. A cell without a mark is
  of one color, and its pixels are never added up.
- A pixel is a number of 16 bits: of the polygon that was drawn there last, or of a color of its own
  where an outline was blended in. So what is filled is half as long.
- Arrays are indexed by unsigned numbers, `u(...)`. With others the compiler provides for indices
  that count from the end, and does not vectorise. Those of pixels, marks and the frame are flat,
  for it knows how far apart the rows are then.
"""

from typing import NamedTuple

import numpy as np

from utils.compiling import compiled, kept

WIDTH, HEIGHT = 1000, 800  # of the window, in pixels
SIZE = 96  # of the frame, in cells
DASHBOARD = 700  # from this row on there are the bars and the score, above it is the world
BAND = 100  # rows of pixels
BAND_CELLS = SIZE * BAND // HEIGHT
COLORS = 1 << 16  # of a band, at most
POLYGONS = 2000  # on the ground, at most
ONE = 1 << 14  # a pixel, in the units in which smoothscale shares pixels out among cells
BYTES = 0xFF00FF00FF  # of a color that is spread
OUTER, INNER = 0xFFFF0000FFFF, 0xFFFF0000  # its red and blue, its green
HALF = 1 << 15  # of a pixel, in the units of a fill's crossings

u = np.uint64
ROW, MARKS = u(WIDTH), u(256)  # how far apart rows of pixels are, and of marks


class Scene(NamedTuple):
    """What a frame shows. y points upwards in the world, downwards in the dashboard."""

    corners: np.ndarray  # (n, 4, 2) float64: the ground's polygons, in the order of drawing
    centers: np.ndarray  # (n, 2) float64
    radii: np.ndarray  # (n,) float64: corners' distance from the center at most
    colors: np.ndarray  # (n, 3) float64, cut to integers
    car: np.ndarray  # (m, 8, 2) float32: the car's polygons, in the order of drawing
    car_corners: np.ndarray  # (m,) int64: how many corners each has; 0: it is not drawn
    car_colors: np.ndarray  # (m, 3) int64
    car_places: np.ndarray  # (m, 4) float32: cosine and sine of their angles, x and y in the world
    camera: np.ndarray  # (5,) float64: cosine, sine, zoom, left, bottom; a point of the world is
    # turned by that angle, zoomed, and moved by (left, bottom)
    bars: np.ndarray  # (k, 4, 2) float64: the dashboard's polygons, in the window
    bar_corners: np.ndarray  # (k,) int64
    bar_colors: np.ndarray  # (k, 3) int64
    score: np.ndarray  # (h, w) uint8: a picture in gray
    score_left: int  # where it lies in the window
    score_upper: int


# What drawing works in, of no meaning between two frames. One array of one record: a compiled
# function takes it faster than many arrays, and knows their shapes.
BUFFERS = np.dtype(
    [
        ("canvas", np.uint16, BAND * WIDTH),  # pixels, numbers of colors
        ("palette", np.int64, COLORS),  # colors by their number, spread; first the polygons' ones
        ("used", np.int64, 2),  # how many of them are the polygons', and how many there are
        ("marks", np.uint8, BAND * int(MARKS)),  # see `_columns`
        ("touched", np.uint8, 2 * SIZE + 1),  # the marks of a row of cells
        ("known", np.int64, (2, SIZE)),  # a color, and what a row of a cell of it is reduced to
        ("shared", np.int64, SIZE),  # the last row of each cell, which the cell below shares
        ("corners", np.int64, (POLYGONS, 4, 2)),  # polygons in sight, in pixels
        ("edges", np.int64, (POLYGONS, 4, 8)),  # their outlines' edges, see `_edge`
        ("parts", np.int64, (16, 8, 2)),  # the car's polygons, or the bars, in pixels
        ("crossings", np.int64, (BAND, 8)),  # where a row crosses a polygon's edges
        ("counts", np.int64, BAND),  # how often
        ("spans", np.int64, (2, BAND)),  # first and last pixel of a row that a polygon fills
    ],
    align=True,
)


def _shares(pixels: int) -> np.ndarray:
    """How smoothscale shares a line of pixels out among SIZE cells, (SIZE, 4) int64.

    A cell has a share of its first pixel and of its last one, and all between them: first pixel,
    its weight, last pixel, its weight.
    """
    cell = ONE * pixels // SIZE
    shares, left, first, weight = [], cell, -1, 0
    for pixel in range(pixels):
        if left > ONE:
            left -= ONE
        else:
            shares.append((first, weight, pixel, left))
            first, weight = pixel, ONE - left
            left = cell - weight
    return np.array(shares, np.int64)


def _uniform(pixels: int) -> np.ndarray:
    """What becomes of a cell whose pixels all have one value, (SIZE, 256) uint8."""
    first, first_weight, last, last_weight = _shares(pixels).T[:, :, None]
    value = np.arange(256)
    shared = (4 * value * first_weight >> 16) + (4 * value * last_weight >> 16)
    return (((last - first - 1) * value + shared) * _scale(pixels) >> 16).astype(np.uint8)


def _scale(pixels: int) -> int:
    """65536 over the pixels in a cell, as smoothscale has it."""
    return 2**30 // (ONE * pixels // SIZE)


def _columns() -> np.ndarray:
    """The column of marks of each pixel in a row, (WIDTH,) uint8.

    Cell c has 2c for its first pixel, 2c + 1 for those between, 2c + 2 for its last one, which is
    the next cell's first.
    """
    columns = np.zeros(WIDTH, np.uint8)
    for cell, (first, _, last, _) in enumerate(_shares(WIDTH)):
        columns[first + 1 : last] = 2 * cell + 1
        columns[last] = 2 * cell + 2
    return columns


X_SHARES, Y_SHARES = _shares(WIDTH), _shares(HEIGHT)
X_UNIFORM, Y_UNIFORM = _uniform(WIDTH), _uniform(HEIGHT)
X_SCALE, Y_SCALE = _scale(WIDTH), _scale(HEIGHT)
COLUMNS = _columns()


def draw(scene: Scene, buffers: np.ndarray, frame: np.ndarray) -> bool:
    """Draw the scene into frame (96, 96, 3) uint8, contiguous; `buffers` is (1,) BUFFERS.

    Returns False, and a frame that is wrong, where the ground has more than POLYGONS, or a band
    more than COLORS: no scene of CarRacing is known that has half of the ones or a tenth of the
    others.
    """
    if len(scene.corners) > POLYGONS:
        return False
    # One by one: a compiled function takes tuples slowly.
    return _draw(*scene, buffers, frame.reshape(-1)) < COLORS - 1


@kept
def _draw(
    points, centers, radii, point_colors, car, car_corners, car_colors, car_places, camera, bars,
    bar_corners, bar_colors, score, left, upper, buffers, frame,
):  # fmt: skip
    b = buffers[0]
    canvas, palette, used, marks = b.canvas, b.palette, b.used, b.marks
    touched, known, shared = b.touched, b.known, b.shared
    corners, edges, parts = b.corners, b.edges, b.parts
    crossings, counts, spans = b.crossings, b.counts, b.spans
    # The numbers of colors: the empty window, the ground's polygons, and the car's.
    shown, covered = _in_sight(
        points, centers, radii, point_colors, camera, corners, edges, palette
    )
    for i in range(len(car)):
        palette[1 + shown + i] = _spread(car_colors, i)
    _place_car(car, car_places, camera, parts)
    palette[0] = palette[1] if covered else 0
    known[:] = -1
    most = 0
    for top in range(0, DASHBOARD, BAND):
        base = HEIGHT - 1 - top  # the world's y is in row base - y of the band
        _clear(canvas, marks, used, 1 + shown + len(car))
        for i in range(1 if covered else 0, shown):
            _polygon(
                canvas, palette, used, marks, corners, edges, i, base, crossings, counts, spans
            )
        for i in range(len(car)):
            _part(canvas, marks, parts, i, car_corners[i], base, -1, 1 + shown + i, crossings)
        _reduce(canvas, palette, marks, touched, known, shared, top // BAND, frame)
        most = max(most, used[1])

    # Black, the bars' and 256 shades of gray.
    palette[0] = 0
    for i in range(len(bars)):
        palette[1 + i] = _spread(bar_colors, i)
        for k in range(4):
            parts[i, k, 0], parts[i, k, 1] = np.int64(bars[i, k, 0]), np.int64(bars[i, k, 1])
    for gray in range(256):
        palette[1 + len(bars) + gray] = gray | gray << 16 | gray << 32
    known[:] = -1
    for top in range(DASHBOARD, HEIGHT, BAND):
        _clear(canvas, marks, used, 0)
        for i in range(len(bars)):
            _part(canvas, marks, parts, i, bar_corners[i], -top, 1, 1 + i, crossings)
        _picture(canvas, marks, top, score, left, upper, 1 + len(bars))
        _reduce(canvas, palette, marks, touched, known, shared, top // BAND, frame)
    return most


@compiled
def _spread(colors, i):
    """Color i of (n, 3) in one number, with 16 bits for each of red, green and blue."""
    return np.int64(colors[i, 0]) | np.int64(colors[i, 1]) << 16 | np.int64(colors[i, 2]) << 32


@compiled
def _clear(canvas, marks, used, colors):
    canvas[:] = 0
    marks[:] = 0
    used[:] = colors


# What is in sight, in pixels


@compiled
def _pixel(camera, x, y):
    """The pixel, in integers, of a point of the world."""
    cosine, sine, zoom = camera[0], camera[1], camera[2]
    return (
        np.int64((cosine * x - sine * y) * zoom + camera[3]),
        np.int64((sine * x + cosine * y) * zoom + camera[4]),
    )


@compiled
def _place_car(car, places, camera, parts):
    """Polygons (m, 8, 2) at their places in the world, in single precision, in pixels."""
    for i in range(len(car)):
        cosine, sine, left, bottom = places[i, 0], places[i, 1], places[i, 2], places[i, 3]
        for k in range(8):
            x, y = car[i, k, 0], car[i, k, 1]
            at_x, at_y = cosine * x - sine * y + left, sine * x + cosine * y + bottom
            parts[i, k, 0], parts[i, k, 1] = _pixel(camera, np.float64(at_x), np.float64(at_y))


@compiled
def _in_sight(points, centers, radii, point_colors, camera, corners, edges, palette):
    """Put polygons of the ground that may be seen into the buffers.

    Returns how many, and whether the first one covers the whole window.
    """
    shown, covered = 0, False
    for i in range(len(points)):
        x, y = _pixel(camera, centers[i, 0], centers[i, 1])
        reach = np.int64(radii[i] * camera[2]) + 3
        if x < -reach or x > WIDTH + reach or y < HEIGHT - DASHBOARD - reach or y > HEIGHT + reach:
            continue
        for k in range(4):
            x, y = _pixel(camera, points[i, k, 0], points[i, k, 1])
            # gfxdraw keeps 16 bits of them
            corners[shown, k, 0], corners[shown, k, 1] = np.int16(x), np.int16(y)
        palette[1 + shown] = _spread(point_colors, i)
        if i == 0:
            covered = _covers(corners)
        if i > 0 or not covered:
            for k in range(4):
                n = (k + 1) & 3
                x1, y1, x2, y2 = (
                    corners[shown, k, 0],
                    corners[shown, k, 1],
                    corners[shown, n, 0],
                    corners[shown, n, 1],
                )
                _edge(x1, y1, x2, y2, edges, shown, k)
        shown += 1
    return shown, covered


@compiled
def _covers(corners):
    """Whether polygon 0 of (n, 4, 2) has the window and its edge inside."""
    inside = 0
    for k in range(4):
        n = (k + 1) & 3
        x1, y1, x2, y2 = corners[0, k, 0], corners[0, k, 1], corners[0, n, 0], corners[0, n, 1]
        for x in (-2, WIDTH + 2):
            for y in (-2, HEIGHT + 2):
                side = (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)
                inside += 1 if side > 0 else -1
    return abs(inside) == 16


NOTHING, VERTICAL, HORIZONTAL, STEEP, FLAT = range(5)


@compiled
def _edge(x1, y1, x2, y2, edges, i, k):
    """Set edge k of polygon i to what an antialiased line from (x1, y1) to (x2, y2) is.

    Its kind; its first pixel x, y; its lower end x, y; the direction of x from there, 1 or -1; its
    length in the longer direction; the steps in the shorter one for a pixel of that, times 2^32.
    """
    seen, x1, y1, x2, y2 = _clipped(x1, y1, x2, y2)
    edges[i, k, 0] = NOTHING
    if not seen:
        return
    edges[i, k, 1], edges[i, k, 2] = x1, y1
    if y1 > y2:
        x1, y1, x2, y2 = x2, y2, x1, y1
    width, height = abs(x2 - x1), y2 - y1
    edges[i, k, 3], edges[i, k, 4], edges[i, k, 5] = x1, y1, 1 if x2 > x1 else -1
    if width == 0:
        edges[i, k, 0], edges[i, k, 6] = VERTICAL, height
    elif height == 0:
        edges[i, k, 0], edges[i, k, 3], edges[i, k, 6] = HORIZONTAL, min(x1, x2), width
    elif height > width:
        edges[i, k, 0], edges[i, k, 6] = STEEP, height
        edges[i, k, 7] = (width << 16) // height << 16
    else:
        edges[i, k, 0], edges[i, k, 6] = FLAT, width
        edges[i, k, 7] = (height << 16) // width << 16


@compiled
def _clipped(x1, y1, x2, y2):
    """Whether the line is seen in the window, and its ends there, by Cohen and Sutherland.

    In gfxdraw's integers, with its rounding, and with the ends exchanged where it does so.
    """
    while True:
        code1, code2 = _side(x1, y1), _side(x2, y2)
        if code1 | code2 == 0 or code1 & code2 != 0:
            return code1 | code2 == 0, x1, y1, x2, y2
        if code1 == 0:
            x1, y1, x2, y2 = x2, y2, x1, y1
            code1 = code2
        slope = np.float32(1)
        if x2 != x1:
            slope = np.float32(y2 - y1) / np.float32(x2 - x1)
        if code1 & 3:
            x = 0 if code1 & 1 else WIDTH - 1
            y1 += np.int64(np.float32(x - x1) * slope)
            x1 = x
        else:
            y = HEIGHT - 1 if code1 & 4 else 0
            if x2 != x1:
                x1 += np.int64(np.float32(y - y1) / slope)
            y1 = y


@compiled
def _side(x, y):
    """On which sides of the window a pixel lies, in bits."""
    return (x < 0) | (x >= WIDTH) << 1 | (y >= HEIGHT) << 2 | (y < 0) << 3


# The ground, as gfxdraw draws it


@compiled
def _polygon(canvas, palette, used, marks, corners, edges, i, base, crossings, counts, spans):
    """Polygon i's antialiased outline, and its inside over that, in the rows of a band."""
    bottom = min(min(corners[i, 0, 1], corners[i, 1, 1]), min(corners[i, 2, 1], corners[i, 3, 1]))
    top = max(max(corners[i, 0, 1], corners[i, 1, 1]), max(corners[i, 2, 1], corners[i, 3, 1]))
    low, high = max(bottom, base - BAND + 1), min(top, base)
    first, last = base - high, base - low  # rows, or none
    for row in range(first, last + 1):
        counts[u(row)] = 0
    if first <= last:
        for k in range(corners.shape[1]):
            _cross(corners, i, k, base, low, high, top, crossings, counts)
    for row in range(first, last + 1):
        r = u(row)
        a, b = WIDTH, -1  # nothing
        if counts[r] == 2:
            a, b = _filled(crossings[r, u(0)], crossings[r, u(1)])
        spans[u(0), r], spans[u(1), r] = a, b
    if first <= last:
        for k in range(corners.shape[1]):
            _outline(canvas, palette, used, marks, edges, i, k, base, first, last, spans)
    for row in range(first, last + 1):
        _fill(canvas, marks, row, 1 + i, crossings, counts, spans)
        _mark_changes(marks, row, row > first, row == base - top, row == base - bottom, spans)


@compiled
def _cross(corners, i, k, base, low, high, top, crossings, counts):
    """Add where rows `low` to `high` cross the edge that ends in corner k, in 1/65536 pixels."""
    n = (k + 3) & 3
    x1, y1, x2, y2 = corners[i, n, 0], corners[i, n, 1], corners[i, k, 0], corners[i, k, 1]
    if y1 > y2:
        x1, y1, x2, y2 = x2, y2, x1, y1
    start, end = max(y1, low), min(y2 if y2 == top else y2 - 1, high)
    if y1 == y2 or start > end:
        return
    # ((y - y1) << 16) // height, without a division for each row
    height, width = y2 - y1, x2 - x1
    step = (1 << 16) // height
    step_rest = (1 << 16) - step * height
    way = ((start - y1) << 16) // height
    rest = ((start - y1) << 16) - way * height
    for y in range(start, end + 1):
        row = u(base - y)
        crossings[row, u(counts[row])] = way * width + (x1 << 16)
        counts[row] += 1
        way += step
        rest += step_rest
        if rest >= height:
            rest -= height
            way += 1


@compiled
def _filled(a, b):
    """First and last pixel between two crossings of a row, within the window."""
    if a > b:
        a, b = b, a
    a, b = (a + 1 + HALF) >> 16, (b - 1 + HALF) >> 16
    return max(min(a, b), 0), min(max(a, b), WIDTH - 1)


@compiled
def _outline(canvas, palette, used, marks, edges, i, k, base, first, last, spans):
    """Edge k of polygon i in rows `first` to `last`, where the polygon will not be filled."""
    kind, x, y, direction = edges[i, k, 0], edges[i, k, 3], edges[i, k, 4], edges[i, k, 5]
    length, slope = edges[i, k, 6], edges[i, k, 7]
    low, high, color = base - last, base - first, 1 + i
    if kind == VERTICAL:
        for row in range(base - min(y + length, high), base - max(y, low) + 1):
            _line(canvas, marks, row, x, x, color)
    elif kind == HORIZONTAL:
        if low <= y <= high:
            _line(canvas, marks, base - y, x, x + length, color)
    elif kind != NOTHING:
        if low <= edges[i, k, 2] <= high:
            first_x = edges[i, k, 1]
            _line(canvas, marks, base - edges[i, k, 2], first_x, first_x, color)
        shade = palette[u(color)]
        if kind == STEEP:
            start, end = max(1, low - y), min(length - 1, high - y)
            t = start * slope
            for row in range(base - y - start, base - y - end - 1, -1):
                at, weight = x + direction * (t >> 32), t >> 24 & 255
                _blend(canvas, palette, used, marks, spans, row, at, shade, 255 - weight)
                _blend(canvas, palette, used, marks, spans, row, at + direction, shade, weight)
                t += slope
        else:
            start = max(1, (((low - 1 - y) << 32) + slope - 1) // slope)
            end = min(length - 1, (((high + 1 - y) << 32) - 1) // slope)
            t = start * slope
            for at in range(x + direction * start, x + direction * (end + 1), direction):
                row, weight = base - y - (t >> 32), t >> 24 & 255
                if row <= last:
                    _blend(canvas, palette, used, marks, spans, row, at, shade, 255 - weight)
                if row > first:
                    _blend(canvas, palette, used, marks, spans, row - 1, at, shade, weight)
                t += slope


@compiled
def _blend(canvas, palette, used, marks, spans, row, x, shade, weight):
    """Draw a pixel of an outline in a color of the palette, at this weight of 255."""
    r, at = u(row), u(x)
    if x < spans[u(0), r] or x > spans[u(1), r]:  # others will be filled
        alpha, number = 255 * weight >> 8, np.int64(canvas[r * ROW + at])
        mixed = (palette[u(number)] * (256 - alpha) + shade * alpha) >> 8 & BYTES
        if number < used[0]:  # a polygon's
            number = used[1]
            used[1] = min(number + 1, COLORS - 1)
            canvas[r * ROW + at] = number
        palette[u(number)] = mixed
        marks[r * MARKS + u(COLUMNS[at])] = 1


@compiled
def _fill(canvas, marks, row, color, crossings, counts, spans):
    """Fill a row of a polygon."""
    r = u(row)
    if counts[r] > 2:  # it crosses itself
        _sort(crossings, r, counts[r])
        for n in range(0, counts[r], 2):
            a, b = _filled(crossings[r, u(n)], crossings[r, u(n + 1)])
            _line(canvas, marks, row, a, b, color)
    for x in range(u(spans[u(0), r]), u(spans[u(1), r] + 1)):
        canvas[r * ROW + x] = color


@compiled
def _mark_changes(marks, row, below_another, highest, lowest, spans):
    """Mark where a row of a polygon begins and ends, and differs from the row above it."""
    a, b = spans[u(0), u(row)], spans[u(1), u(row)]
    above_a, above_b = a, b  # of another band, whose cells are others
    if below_another:
        above_a, above_b = spans[u(0), u(row - 1)], spans[u(1), u(row - 1)]
    if a > b:
        if above_a <= above_b:
            _mark(marks, row, above_a, above_b)
    elif highest or above_a > above_b:
        _mark(marks, row, a, b)
    elif lowest:
        _mark(marks, row, min(a, above_a), max(b, above_b))
    else:
        _mark(marks, row, min(a, above_a), max(a, above_a))
        _mark(marks, row, min(b, above_b), max(b, above_b))


@compiled
def _line(canvas, marks, row, a, b, color):
    """Pixels a to b of a row, which may be none."""
    if a <= b:
        for x in range(u(a), u(b + 1)):
            canvas[u(row) * ROW + x] = color
        _mark(marks, row, a, b)


@compiled
def _mark(marks, row, a, b):
    """Mark pixels a to b of a row."""
    start = u(row) * MARKS
    first, last = start + u(COLUMNS[u(a)]), start + u(COLUMNS[u(b)])
    marks[first] = 1
    marks[last] = 1
    for at in range(first + u(1), last):  # seldom: the compiler calls another function for it
        marks[at] = 1


@compiled
def _sort(values, row, n):
    """Sort the first n of a row, in place."""
    for i in range(1, n):
        for k in range(i, 0, -1):
            a, b = values[row, u(k - 1)], values[row, u(k)]
            values[row, u(k - 1)], values[row, u(k)] = min(a, b), max(a, b)


# The car and the dashboard, as pygame.draw.polygon draws them


@compiled
def _part(canvas, marks, parts, i, n, base, sign, color, crossings):
    """Part i's first n corners (m, n, 2), in the rows of a band; y is in row base + sign * y."""
    bottom, top = parts[i, 0, 1], parts[i, 0, 1]
    for k in range(1, n):
        bottom, top = min(bottom, parts[i, k, 1]), max(top, parts[i, k, 1])
    if sign < 0:
        low, high = max(bottom, base - BAND + 1), min(top, base)
    else:
        low, high = max(bottom, -base), min(top, BAND - 1 - base)
    for y in range(low, high + 1):
        row, count = base + sign * y, 0
        for k in range(n):
            before = k - 1 if k else n - 1
            x1, y1, x2, y2 = (
                parts[i, before, 0],
                parts[i, before, 1],
                parts[i, k, 0],
                parts[i, k, 1],
            )
            if y1 == y2:
                # Beside the scan: an edge along the row, which the scan may leave out.
                if y1 == y and (bottom < y < top or bottom == top):
                    _window_line(canvas, marks, row, x1, x2, color)
                continue
            if y1 > y2:
                x1, y1, x2, y2 = x2, y2, x1, y1
            if y1 <= y < y2 or y == y2 == top:
                way = np.float32((y - y1) * (x2 - x1)) / np.float32(y2 - y1)
                way = np.ceil(way) if count & 1 else np.floor(way)
                crossings[u(0), u(count)] = x1 + np.int64(way)
                count += 1
        _sort(crossings, u(0), count)
        for k in range(0, count, 2):
            a, b = crossings[u(0), u(k)], crossings[u(0), u(k + 1)]
            _window_line(canvas, marks, row, a, b, color)


@compiled
def _window_line(canvas, marks, row, a, b, color):
    """What the window has of the pixels between a and b of a row."""
    _line(canvas, marks, row, max(min(a, b), 0), min(max(a, b), WIDTH - 1), color)


@compiled
def _picture(canvas, marks, top, picture, left, upper, black):
    """Copy a picture (h, w) in gray to its place; `black` is the number of its color 0."""
    for row in range(max(upper - top, 0), min(upper + picture.shape[0] - top, BAND)):
        for x in range(picture.shape[1]):
            gray = np.int64(picture[row + top - upper, x])
            _line(canvas, marks, row, left + x, left + x, black + gray)


# From pixels to cells, as smoothscale does it: along x first, to 8 bits, then along y


@compiled
def _reduce(canvas, palette, marks, touched, known, shared, band, frame):
    for y in range(band * BAND_CELLS, (band + 1) * BAND_CELLS):
        # Of a band's row above nothing is left after the cut to 8 bits.
        first, last = max(Y_SHARES[y, 0] - band * BAND, 0), Y_SHARES[y, 2] - band * BAND
        for column in range(u(2 * SIZE + 1)):
            touched[column] = marks[u(first) * MARKS + column]
        for row in range(first + 1, last + 1):
            for column in range(u(2 * SIZE + 1)):
                touched[column] |= marks[u(row) * MARKS + column]
        before, shade = -1, 0  # of the last cell of one color, along x and in all
        for x in range(SIZE):
            m = u(2 * x)
            if touched[m] | touched[m + u(1)] | touched[m + u(2)]:
                value = _cell(canvas, palette, marks, shared, band, x, y, first, last)
            else:
                number = np.int64(canvas[u(last) * ROW + u(X_SHARES[x, 2])])
                if known[u(0), u(x)] != number:
                    known[u(0), u(x)] = number
                    known[u(1), u(x)] = _of_one_color(X_UNIFORM, x, palette[u(number)])
                if known[u(1), u(x)] != before:
                    before = known[u(1), u(x)]
                    shade = _of_one_color(Y_UNIFORM, y, before)
                value = shade
            at = u(3) * (u(y) * u(SIZE) + u(x))
            frame[at] = value
            frame[at + u(1)] = value >> 16
            frame[at + u(2)] = value >> 32


@compiled
def _of_one_color(uniform, cell, color):
    """What a cell makes of pixels of one color."""
    red, green = uniform[u(cell), u(color & 255)], uniform[u(cell), u(color >> 16 & 255)]
    blue = uniform[u(cell), u(color >> 32)]
    return np.int64(red) | np.int64(green) << 16 | np.int64(blue) << 32


@compiled
def _cell(canvas, palette, marks, shared, band, x, y, first, last):
    """A pixel of the frame whose cell has several colors."""
    total = 0
    if first == Y_SHARES[y, 0] - band * BAND:  # the cell above had this row too
        if _marked(marks, first, x):
            value = shared[u(x)]
        else:
            number = canvas[u(first) * ROW + u(X_SHARES[x, 2])]
            value = _of_one_color(X_UNIFORM, x, palette[u(number)])
        total = _weighted(value, Y_SHARES[y, 1])
        first += 1
    for row in range(first, last):
        total += _row(canvas, palette, marks, x, row)
    value = _row(canvas, palette, marks, x, last)
    shared[u(x)] = value
    return _scaled(total + _weighted(value, Y_SHARES[y, 3]), Y_SCALE)


@compiled
def _marked(marks, row, x):
    """Whether a row of cell x may have several colors."""
    at = u(row) * MARKS + u(2 * x)
    return marks[at] | marks[at + u(1)] | marks[at + u(2)]


@compiled
def _row(canvas, palette, marks, x, row):
    """What a row of cell x is reduced to."""
    start, first, last = u(row) * ROW, X_SHARES[x, 0], X_SHARES[x, 2]
    value = palette[u(canvas[start + u(last)])]
    if _marked(marks, row, x):
        value = _weighted(value, X_SHARES[x, 3])
        if x > 0:
            value += _weighted(palette[u(canvas[start + u(first)])], X_SHARES[x, 1])
        value += _nine(canvas, palette, start + u(first + 1))
        if last - first > 10:
            value += palette[u(canvas[start + u(last - 1)])]
        return _scaled(value, X_SCALE)
    return _of_one_color(X_UNIFORM, x, value)


@compiled
def _nine(canvas, palette, at):
    """The sum of nine pixels, written out: a loop of so few takes twice as long."""
    return (
        palette[u(canvas[at])]
        + palette[u(canvas[at + u(1)])]
        + palette[u(canvas[at + u(2)])]
        + palette[u(canvas[at + u(3)])]
        + palette[u(canvas[at + u(4)])]
        + palette[u(canvas[at + u(5)])]
        + palette[u(canvas[at + u(6)])]
        + palette[u(canvas[at + u(7)])]
        + palette[u(canvas[at + u(8)])]
    )


@compiled
def _weighted(value, weight):
    """A spread color at a weight of ONE."""
    return ((value & OUTER) * weight >> 14 & OUTER) | ((value & INNER) * weight >> 14 & INNER)


@compiled
def _scaled(value, scale):
    """A spread sum over a cell, divided by the number of its pixels."""
    return ((value & OUTER) * scale >> 16 & OUTER) | ((value & INNER) * scale >> 16 & INNER)
