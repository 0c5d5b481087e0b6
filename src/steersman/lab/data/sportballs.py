r"""SportBalls: one textured, lit ball on a white square; class, place, rotation and size drawn independently.

**Geometry.** A ball with centre ``c`` and radius ``r`` (fractions of the canvas) covers the canvas points ``q`` with
``|q - c| <= r``. There the sphere's normal is ``n = (x, y, z)`` with ``(x, -y) = (q - c) / r`` (canvas rows run
downwards) and ``z = sqrt(1 - x² - y²)`` towards the viewer. A ball turned by ``R`` shows there the point ``p = R^T n``
of its own surface, ``|p| = 1``, and the textures below are functions of ``p``.

**Lines.** A seam is the zero set of some ``f(p)``. To first order ``p`` lies ``d = f / |∇f - (p·∇f) p|`` from it,
measured along the sphere; for a plane through the centre with unit normal, ``f = d`` is the sine of the distance. A
line of half width ``h`` then covers of a sample that is ``w`` wide the share ``|[-h, h] ∩ [d - w/2, d + w/2]| / w``:
the box filter, exact for straight lines, so thin lines fade instead of breaking up.

**Baseball.** With ``a + b = 1`` and ``c = 2 sqrt(ab)`` the seam is

    ``(a cos t + b cos 3t,  a sin t - b sin 3t,  c sin 2t)``,

which lies on the unit sphere exactly. Eliminating ``t`` gives it as the zero set of
``f = 2xy - (a - 3b) z/c - 4 b² (z/c)³``. Stitches follow ``t``: ``sin 2t = z/c``, while ``v = x² - y²`` on the seam is
``(1 - 4b²) C + 4b² C³`` with ``C = cos 2t``, inverted closely by ``C = v / (1 - 4b² + 4b² v²)``. A stitch is a short
line across one side of the seam; its phase ``t + k |d|`` slants with the distance, which makes the chevrons.

**Basketball.** Two great circles ``x = 0`` and ``y = 0``, and the two side seams ``x² = k² + m y²``.

**Volleyball.** The faces of a cube, face ``i`` where ``|p_i|`` is largest, each cut into three strips of equal angle by
the great circles ``|p_j| = tan(π/12) |p_i|`` with ``j = i + 1 mod 3``, so that neighbouring faces are cut across each
other; the faces meet where the two largest ``|p_i|`` are equal. Strips are coloured by one of several match schemes.

**Soccer ball.** A truncated icosahedron. The icosahedral group folds ``p`` into one triangle, bounded by the mirrors
``x = 0``, ``y = 0`` and ``m·p = 0``. Its corners are the centre ``g`` of a pentagon, the centre ``s`` of a hexagon and
the middle of the edge between two hexagons. With the distances ``h`` of the flat faces from the centre, the pentagon is
where ``g·p / h_5 > s·p / h_6``; two hexagons meet in ``y = 0``.

**Light.** With albedo ``A``, direction ``l`` to the light and halfway vector ``u = (l + e_z) / |l + e_z|``, the colour
is

    ``A (ambient + diffuse max(0, n·l)) (1 - limb (1 - z)²) + specular max(0, n·u)^shininess``

in display values, clipped to [0, 1]. Every pixel averages ``SAMPLES²`` samples, each weighed by its cover of the disc.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.errors import InputError, unknown

__all__ = ["CLASSES", "PRESETS", "SportBalls", "render"]

CLASSES = ("baseball", "basketball", "volleyball", "soccer ball")
PRESETS = {"large": (0.45, 0.95), "nrcg": (9 / 64, 25 / 64)}
"""Smallest and largest diameter, as fractions of the canvas, by name."""

SAMPLES = 2
CHUNK = 16  # images rendered at once: their samples fit in the cache
AMBIENT, DIFFUSE, LIMB, SPECULAR, SHININESS = 0.5, 0.55, 0.35, 0.12, 24
LIGHT, SPREAD = (-0.4, 0.6, 0.75), 0.12  # towards the upper left and the viewer

LEATHER, STITCH, GROOVE = (0.96, 0.95, 0.93), (0.80, 0.10, 0.12), (0.78, 0.72, 0.68)
SEAM_A = 0.70
STITCHES = 72

ORANGE, RUBBER = (0.85, 0.42, 0.14), (0.12, 0.08, 0.06)
SIDE_K, SIDE_M = 0.42, 0.5

HEXAGON, PENTAGON, THREAD = (0.97, 0.97, 0.97), (0.07, 0.07, 0.08), (0.25, 0.25, 0.27)
H_PENTAGON, H_HEXAGON = 2.32744, 2.26728  # inradii of the truncated icosahedron's faces, in edges

WHITE, YELLOW, BLUE = (0.97, 0.97, 0.96), (0.98, 0.82, 0.12), (0.10, 0.25, 0.62)
AMBER, SKY = (0.95, 0.72, 0.10), (0.25, 0.50, 0.85)
SCHEMES = (  # for each pair of opposite faces: middle strip, outer strips; all chosen as a classifier recognises them
    ((WHITE, YELLOW), (BLUE, WHITE), (YELLOW, BLUE)),
    ((WHITE, BLUE), (YELLOW, WHITE), (BLUE, YELLOW)),
    ((WHITE, AMBER), (SKY, WHITE), (AMBER, SKY)),
    ((WHITE, SKY), (AMBER, WHITE), (SKY, AMBER)),
)

Points = Float[Tensor, "3 P"]
Values = Float[Tensor, "P"]
Texture = Callable[[Points, Values, Int[Tensor, "P"]], Points]


def _line(d: Values, h: float, w: Values) -> Values:
    """Returns the share of a sample of width ``w`` at distance ``d`` that a line of half width ``h`` covers."""
    overlap = torch.minimum(d + w / 2, torch.full_like(w, h)) - (d - w / 2).clamp_min(-h)
    return overlap.clamp_min_(0).div_(w)


def _edge(d: Values, w: Values) -> Values:
    """Returns the share of a sample of width ``w`` that lies on the positive side of an edge at distance ``d``."""
    return (d / w + 0.5).clamp_(0, 1)


def _paint(under: Points, colour: tuple[float, float, float], cover: Values) -> Points:
    """Returns ``under`` with ``colour`` laid over it where ``cover`` is 1."""
    return under + (under.new_tensor(colour)[:, None] - under) * cover


def _plain(p: Points, colour: tuple[float, float, float]) -> Points:
    return p.new_tensor(colour)[:, None].expand(3, p.shape[1])


def _distance(f: Values, gradient: Sequence[Values], p: Points) -> Values:
    """Returns ``f / |∇f - (p·∇f) p|``, the signed distance to ``f = 0`` along the sphere to first order."""
    gx, gy, gz = gradient
    radial = gx * p[0] + gy * p[1] + gz * p[2]
    return f * (gx * gx + gy * gy + gz * gz - radial * radial).clamp_min(1e-4).rsqrt()


def _baseball(p: Points, w: Values, look: Int[Tensor, "P"]) -> Points:
    x, y, z = p
    a, b = SEAM_A, 1 - SEAM_A
    c = 2 * math.sqrt(a * b)
    sine = z / c
    f = 2 * x * y - (a - 3 * b) * sine - 4 * b * b * sine**3
    d = _distance(f, (2 * y, 2 * x, -((a - 3 * b) + 12 * b * b * sine**2) / c), p).abs()
    v = x * x - y * y
    t = torch.atan2(sine, v / (1 - 4 * b * b + 4 * b * b * v * v)) / 2
    pitch = 2 * math.pi / STITCHES
    speed = 1.7  # |dp/dt| is within 8 % of this
    phase = (t + 0.55 * d) / pitch
    along = (phase - phase.round()) * (pitch * speed)
    stitch = _line(along, 0.042, w) * _edge(0.135 - d, w) * _edge(d - 0.012, w)
    return _paint(_paint(_plain(p, LEATHER), GROOVE, _line(d, 0.018, w)), STITCH, stitch)


def _basketball(p: Points, w: Values, look: Int[Tensor, "P"]) -> Points:
    x, y, _ = p
    f = x * x - SIDE_M * y * y - SIDE_K**2
    side = _distance(f, (2 * x, -2 * SIDE_M * y, torch.zeros_like(x)), p)
    d = torch.minimum(torch.minimum(x.abs(), y.abs()), side.abs())
    return _paint(_plain(p, ORANGE), RUBBER, _line(d, 0.028, w))


def _volleyball(p: Points, w: Values, look: Int[Tensor, "P"]) -> Points:
    x, y, z = q = p.abs()
    size, face = q.max(dim=0)
    second = x + y + z - size - torch.minimum(torch.minimum(x, y), z)
    across = torch.where(face == 0, y, torch.where(face == 1, z, x))
    k = math.tan(math.pi / 12)
    cut = (across - k * size) / math.sqrt(1 + k * k)
    border = (size - second) / math.sqrt(2)
    colours = p.new_tensor(SCHEMES).flatten(0, 1)[look * 3 + face]  # (P, 2, 3)
    middle, outer = colours[:, 0].T, colours[:, 1].T
    panels = middle + (outer - middle) * _edge(cut, w)
    seam = torch.maximum(_line(cut, 0.012, w), _line(border, 0.016, w))
    return panels + panels * (-0.35 * seam)


def _mirror() -> tuple[float, float, float]:
    """Returns the unit normal that meets ``x = 0`` at 60 and ``y = 0`` at 36 degrees."""
    cosine = math.cos(math.pi / 5)
    return (-0.5, -cosine, math.sqrt(0.75 - cosine**2))


def _fold(p: Points) -> Sequence[Values]:
    """Returns ``p`` moved by the icosahedral group into the triangle ``x, y, m·p >= 0``."""
    mx, my, mz = _mirror()
    x, y, z = p.abs()
    for _ in range(3):
        step = (mx * x + my * y + mz * z).clamp_max_(0).mul_(-2)
        x, y, z = (x + mx * step).abs_(), (y + my * step).abs_(), z + mz * step
    return x, y, z


def _soccer_ball(p: Points, w: Values, look: Int[Tensor, "P"]) -> Points:
    mx, my, mz = _mirror()
    x, y, z = _fold(p)
    g = np.array([mz, 0, -mx]) / math.hypot(mz, mx)
    s = np.array([0, mz, -my]) / math.hypot(mz, my)
    normal = g / H_PENTAGON - s / H_HEXAGON
    nx, ny, nz = (normal / np.linalg.norm(normal)).tolist()
    inside = nx * x + ny * y + nz * z
    leather = _paint(_plain(p, HEXAGON), THREAD, _line(y, 0.013, w))
    return _paint(leather, PENTAGON, _edge(inside + 0.01, w))


TEXTURES: tuple[Texture, ...] = (_baseball, _basketball, _volleyball, _soccer_ball)


def _shade(albedo: Points, z: Values, facing: Values, shine: Values) -> Points:
    """Returns the lit colour of the module's formula, with ``facing = n·l`` and ``shine = n·u``."""
    lit = (AMBIENT + DIFFUSE * facing.clamp_min(0)) * (1 - LIMB * (1 - z) ** 2)
    return (albedo * lit + SPECULAR * shine.clamp_min(0) ** SHININESS).clamp_(0, 1)


def _balls(
    texture: Texture,
    centre: Float[Tensor, "B 2"],
    radius: Float[Tensor, "B"],
    rotation: Float[Tensor, "B 3 3"],
    light: Float[Tensor, "B 3"],
    look: Int[Tensor, "B"],
    resolution: int,
) -> Float[Tensor, "B 3 H W"]:
    """Renders balls of one class: samples on the ball only, shaded, then averaged over each pixel."""
    fine = resolution * SAMPLES
    q = (torch.arange(fine, device=centre.device, dtype=torch.float32) + 0.5) / fine
    column = (q - centre[:, :1]) / radius[:, None]
    row = (centre[:, 1:] - q) / radius[:, None]
    width = 1 / (fine * radius)
    rho = (column[:, None, :] ** 2 + row[:, :, None] ** 2).sqrt_()
    b, j, i = (rho < 1 + width[:, None, None] / 2).nonzero(as_tuple=True)
    across, down = b * fine + i, b * fine + j
    cells = down * fine + i
    rho, w = rho.flatten()[cells], width[b]
    n = torch.stack([column.flatten()[across], row.flatten()[down], (1 - rho * rho).clamp_min_(0).sqrt_()])
    half = torch.nn.functional.normalize(light + light.new_tensor([0.0, 0.0, 1.0]), dim=1)
    frames = torch.cat([rotation.mT, light[:, None], half[:, None]], dim=1)
    counts = torch.bincount(b, minlength=len(centre)).tolist()
    # an image at a time, so that no other image in the batch can change how its sums are rounded
    seen = torch.cat([frame @ part for frame, part in zip(frames, n.split(counts, dim=1), strict=True)], dim=1)
    colour = _shade(texture(seen[:3], w, look[b]), n[2], seen[3], seen[4])
    canvas = torch.ones(3, len(centre) * fine * fine, device=centre.device)
    canvas.scatter_(1, cells.expand(3, -1), 1 + (colour - 1) * _edge(1 - rho, w))
    pixels = torch.nn.functional.avg_pool2d(canvas.view(3, -1, fine, fine), SAMPLES)
    return pixels.transpose(0, 1) * 2 - 1


def render(
    label: Int[Tensor, "B"],
    centre: Float[Tensor, "B 2"],
    radius: Float[Tensor, "B"],
    rotation: Float[Tensor, "B 3 3"],
    light: Float[Tensor, "B 3"],
    resolution: int,
    *,
    look: Int[Tensor, "B"] | None = None,
) -> Float[Tensor, "B 3 H W"]:
    """Renders one ball an image on white, by the geometry and the light of this module's docstring."""
    look = torch.zeros_like(label) if look is None else look
    for name, values, count in (("label", label, len(CLASSES)), ("look", look, len(SCHEMES))):
        if ((values < 0) | (values >= count)).any():
            raise InputError(f"{name} must be 0 to {count - 1}, got {values.tolist()}")
    images = torch.empty(len(label), 3, resolution, resolution, device=label.device)
    for k, texture in enumerate(TEXTURES):
        mine = (label == k).nonzero().flatten()
        for of in mine.split(CHUNK) if len(mine) else ():
            images[of] = _balls(texture, centre[of], radius[of], rotation[of], light[of], look[of], resolution)
    return images


def _rotation(quaternion: Float[Tensor, "B 4"]) -> Float[Tensor, "B 3 3"]:
    """Returns the rotation of a quaternion of any length; of four standard normals, uniform over SO(3)."""
    w, x, y, z = (quaternion / quaternion.norm(dim=1, keepdim=True)).unbind(1)
    entries = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(entries, dim=1).unflatten(1, (3, 3))


class _Draw(NamedTuple):
    """The independent draws of one image: integers, uniforms in [0, 1) and standard normals."""

    label: int
    look: int
    size: float
    place: np.ndarray
    quaternion: np.ndarray
    light: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SportBalls(torch.utils.data.Dataset):
    """Rendered sport balls as a map-style dataset; image ``i`` depends on ``seed``, ``i`` and the settings alone."""

    num: int
    seed: int = 0
    resolution: int = 64
    diameter: tuple[float, float] = (0.45, 0.95)

    classes = CLASSES

    def __post_init__(self) -> None:
        """Refuses settings that cannot be rendered."""
        if self.num < 0 or self.seed < 0:
            raise InputError(f"num and seed must be at least 0, got num {self.num} and seed {self.seed}")
        if self.resolution < 8:
            raise InputError(f"resolution must be at least 8, got {self.resolution}")
        smallest, largest = self.diameter
        if not 0 < smallest <= largest <= 1:
            raise InputError(f"diameter must be two numbers, 0 < smallest <= largest <= 1, got {self.diameter}")

    @classmethod
    def preset(cls, name: str, *, num: int, seed: int = 0, resolution: int = 64) -> "SportBalls":
        """Returns the set with the diameters of a preset."""
        if name not in PRESETS:
            raise unknown("preset", name, PRESETS)
        return cls(num=num, seed=seed, resolution=resolution, diameter=PRESETS[name])

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, i: int) -> tuple[Float[Tensor, "3 H W"], int]:
        images, labels = self.batch([i])
        return images[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Float[Tensor, "3 H W"], int]]:
        """Returns several images at once, rendered together: what a `DataLoader` asks for."""
        images, labels = self.batch(indices)
        return list(zip(images, labels.tolist(), strict=True))

    def label(self, i: int) -> int:
        """Returns the class of an image, an index into ``classes``, without rendering it."""
        return self._draw(i).label

    def _draw(self, i: int) -> _Draw:
        rng = np.random.default_rng([self.seed, i])
        label, look = rng.integers(len(CLASSES)), rng.integers(len(SCHEMES))
        size, place = rng.random(), rng.random(2)
        return _Draw(int(label), int(look), size, place, rng.standard_normal(4), rng.standard_normal(3))

    def batch(
        self, indices: Sequence[int], device: torch.device | str = "cpu"
    ) -> tuple[Float[Tensor, "B 3 H W"], Int[Tensor, "B"]]:
        """Renders the images of the given indices."""
        if any(not 0 <= i < self.num for i in indices):
            raise IndexError(f"indices must be within 0 to {self.num - 1}")
        drawn = [self._draw(i) for i in indices]

        def column(name: str, *shape: int) -> Tensor:
            values = np.array([getattr(draw, name) for draw in drawn]).reshape(len(drawn), *shape)
            return torch.as_tensor(values, device=device)

        label, look = column("label").long(), column("look").long()
        smallest, largest = self.diameter
        radius = (smallest + (largest - smallest) * column("size")) / 2
        centre = radius[:, None] + (1 - 2 * radius[:, None]) * column("place", 2)
        light = torch.tensor(LIGHT, device=device) + SPREAD * column("light", 3)
        light = torch.nn.functional.normalize(light, dim=1)
        rotation = _rotation(column("quaternion", 4))
        images = render(
            label, centre.float(), radius.float(), rotation.float(), light.float(), self.resolution, look=look
        )
        return images, label
