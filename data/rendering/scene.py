"""One picture of the built-in data set: objects and clutter on textured ground, light, blur and noise.

All arithmetic on pixels is on integers, most of it in 16 bits, so that a seed gives the same pixels on every machine.
"""

from __future__ import annotations

import math

import numpy as np

from data.rendering.shapes import BODY, DETAIL, DISTRACTORS, FIXED, OBJECTS, RADIUS, Shape, fill_polygon

CLASS_NAMES = tuple(OBJECTS)

# Blue, green, red of each pair of classes: what most of its objects look like, give or take a quarter of the range.
_TINTS = ((40, 210, 230), (190, 190, 190), (220, 90, 40), (50, 50, 220), (40, 170, 50), (200, 60, 190))

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels

_DISTRACTOR_NAMES = tuple(DISTRACTORS)
_SHAPES = {name: build() for name, build in (OBJECTS | DISTRACTORS).items()}
_TURN = 256  # directions an object can have
_COSINE = [math.floor(math.cos(2 * math.pi * i / _TURN) * 16384 + 0.5001) for i in range(_TURN)]


class RandomIntegers:
    """Integers from the raw words of a counter-based generator; the stream depends on the key alone."""

    def __init__(self, seed: int, stream: int, index: int) -> None:
        self._words = np.random.Philox(key=np.array([seed, stream << 32 | index], np.uint64))

    def below(self, end: int) -> int:
        """Uniform over 0 ... end - 1."""
        return (int(self._words.random_raw()) >> 32) * end >> 32

    def between(self, low: int, high: int) -> int:
        """Uniform over low ... high, both included."""
        return low + self.below(high - low + 1)

    def bytes(self, *shape: int) -> np.ndarray:
        """Uniform uint8 array."""
        count = math.prod(shape)
        words = self._words.random_raw(-(-count // 8)).astype("<u8")
        return words.view(np.uint8)[:count].reshape(shape)


def render_scene(size: int, random: RandomIntegers) -> tuple[np.ndarray, list[tuple[int, Box]]]:
    """One picture.

    Args:
        size: side in pixels.
        random: the stream that decides everything.

    Returns:
        Image uint8 (size, size, 3) BGR, and (class, box_xyxy in pixels) of each object.
    """
    image, ground = _background(size, random)
    boxes: list[tuple[int, Box]] = []
    taken: list[Box] = []
    num_objects = random.between(2, 9)
    order = [True] * num_objects + [False] * random.between(1, 6)
    while order:
        is_object = order.pop(random.below(len(order)))
        diameter = _diameter(size, random)
        centre = _free_place(size, diameter, taken, random)
        if centre is None:
            continue
        which = random.below(len(CLASS_NAMES) if is_object else len(_DISTRACTOR_NAMES))
        name = CLASS_NAMES[which] if is_object else _DISTRACTOR_NAMES[which]
        tint = _TINTS[which // 2] if is_object and random.below(4) else None
        box = _draw(image, _SHAPES[name], diameter, centre, _colors(ground, tint, random), random)
        if box is None:
            continue
        taken.append(box)
        if is_object:
            boxes.append((which, box))
    return _photograph(image, random), boxes


def _diameter(size: int, random: RandomIntegers) -> int:
    """From 10 px to half the image, small ones more often."""
    t = random.below(256)
    return 10 + ((size // 2 - 10) * t * (t + 256) >> 17)


def _free_place(size: int, diameter: int, taken: list[Box], random: RandomIntegers) -> tuple[int, int] | None:
    """A centre at which little of anything drawn before is covered, or None after some tries."""
    radius = diameter // 2
    for _ in range(8):
        x, y = random.between(radius // 2, size - radius // 2), random.between(radius // 2, size - radius // 2)
        for x1, y1, x2, y2 in taken:
            width = min(x2, x + radius) - max(x1, x - radius)
            height = min(y2, y + radius) - max(y1, y - radius)
            if width > 0 and height > 0 and 3 * width * height > (x2 - x1) * (y2 - y1):
                break
        else:
            return x, y
    return None


def _draw(
    image: np.ndarray,
    shape: Shape,
    diameter: int,
    centre: tuple[int, int],
    colors: list[np.ndarray],
    random: RandomIntegers,
) -> Box | None:
    """Paints a shape, turned, squeezed, mirrored and shaded at random.

    Returns:
        Its box within the image, or None when too little of it is inside.
    """
    samples = 4 if diameter < 40 else 2  # per pixel and axis
    reach = diameter * 5 // 8 + 2
    left, top = centre[0] - reach, centre[1] - reach
    tones = np.zeros((2 * reach * samples,) * 2, np.uint8)
    turn = random.below(_TURN)
    cosine, sine = _COSINE[turn], _COSINE[turn - _TURN // 4]
    squeeze, mirror = random.between(12, 16), 1 - 2 * random.below(2)
    scale = diameter * samples * FIXED // 2
    matrix = np.array([[cosine * 16, sine * 16], [-sine * squeeze * mirror, cosine * squeeze * mirror]], np.int64)
    for tone, polygon in shape:
        vertices = np.array(polygon, np.int64) @ matrix * scale // (RADIUS * 16384 * 16)
        fill_polygon(tones, vertices + reach * samples * FIXED, tone)
    shading = random.between(-40, 40)
    side, end = len(image), 2 * reach
    rows, columns = slice(max(0, -top), min(end, side - top)), slice(max(0, -left), min(end, side - left))
    window = image[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
    ramp = ((np.arange(end)[rows, None, None] - reach) * shading // reach).astype(np.int16)
    covered = np.zeros(window.shape[:2], np.int16)
    painted = np.zeros(window.shape, np.int16)
    for tone, color in zip((BODY, DETAIL), colors):
        share = _count_samples(tones == tone, samples)[rows, columns]
        covered += share
        painted += share[..., None] * np.clip(color + ramp, 0, 255)
    full = samples * samples
    window[:] = (window * (full - covered)[..., None] + painted) >> (full.bit_length() - 1)
    return _box_of(covered * 2 >= full, left + columns.start, top + rows.start)


def _count_samples(mask: np.ndarray, samples: int) -> np.ndarray:
    """Number of set samples in each pixel, int16."""
    counts = mask.view(np.uint8)
    for _ in range(2):
        counts = np.add.reduce([counts[i::samples] for i in range(samples)], dtype=np.uint8).T
    return counts.astype(np.int16)


def _box_of(mask: np.ndarray, left: int, top: int) -> Box | None:
    """Bounds of the pixels that are at least half covered."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) < 4 or len(columns) < 4:
        return None
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1


def _colors(ground: np.ndarray, tint: tuple[int, int, int] | None, random: RandomIntegers) -> list[np.ndarray]:
    """Two colours: the first near the tint if there is one and unlike the ground, the second unlike the first."""
    colors: list[np.ndarray] = []
    reference = ground
    for _ in range(2):
        for _ in range(8):
            color = random.bytes(3).astype(np.int16)
            if tint and not colors:
                color = np.array(tint, np.int16) + (color >> 1) - 64
            if np.abs(color - reference).sum() > 160:
                break
        colors.append(color)
        reference = color
    return colors


def _background(size: int, random: RandomIntegers) -> tuple[np.ndarray, np.ndarray]:
    """Textured ground, int16 (size, size, 3), and its mean colour."""
    coarse = _value_noise(size, random.between(2, 6), random)
    fine = _value_noise(size, random.between(12, 40), random)
    y, x = np.mgrid[0:size, 0:size].astype(np.int32)
    pattern = random.below(4)
    period, slope_x, slope_y = random.between(6, 40), random.between(-3, 3), random.between(1, 3)
    if pattern == 0:  # stripes
        texture = (x * slope_x + y * slope_y) // period % 2 * 255
    elif pattern == 1:  # checks
        texture = (x // period + y // period) % 2 * 255
    else:
        texture = fine
    mix = ((coarse * 5 + texture * 2 + fine) >> 4).astype(np.int16)  # (size, size), 0 ... 127
    dark, light = random.bytes(3).astype(np.int16), random.bytes(3).astype(np.int16)
    dark, light = ((color * 3 + color.sum(dtype=np.int16)) // 6 for color in (dark, light))  # muted
    contrast = (light - dark) * random.between(45, 100) >> 7
    light = dark + contrast
    ground = dark + (contrast * mix[..., None] >> 7)
    return ground, (dark + light) // 2


def _value_noise(size: int, cells: int, random: RandomIntegers) -> np.ndarray:
    """Bilinear interpolation of a random grid, int32 (size, size), 0 ... 255."""
    grid = random.bytes(cells + 1, cells + 1).astype(np.int32)
    position = np.arange(size, dtype=np.int32) * cells * 64 // size
    cell, rest = position // 64, position % 64
    across = grid[:, cell] * (64 - rest) + grid[:, cell + 1] * rest  # (cells + 1, size)
    field: np.ndarray = across[cell] * (64 - rest)[:, None] + across[cell + 1] * rest[:, None]
    return field >> 12


def _photograph(image: np.ndarray, random: RandomIntegers) -> np.ndarray:
    """Uneven light, blur and noise; uint8."""
    size = len(image)
    ramp = np.arange(size, dtype=np.int32)
    slope_x, slope_y, level = random.between(-45, 45), random.between(-45, 45), random.between(95, 128)
    light = level + (ramp * slope_x)[None, :] // size + (ramp * slope_y)[:, None] // size
    image = image * np.clip(light, 50, 128).astype(np.int16)[..., None] >> 7
    for _ in range(random.below(4)):
        image = _binomial(_binomial(image).swapaxes(0, 1)).swapaxes(0, 1)
    strength = random.between(1, 12)
    noise = random.bytes(2, *image.shape).astype(np.int16)
    image += ((noise[0] + noise[1] - 255) * strength) >> 7
    return np.clip(image, 0, 255).astype(np.uint8)


def _binomial(image: np.ndarray) -> np.ndarray:
    """[1 2 1] / 4 along the first axis, the border repeated."""
    padded = np.concatenate([image[:1], image, image[-1:]])
    return (padded[:-2] + 2 * image + padded[2:] + 2) >> 2
