"""The renderer: whose draws an image depends on, where the ball lies, and what is on it."""

import numpy as np
import pytest
import torch

from steersman.errors import InputError
from steersman.lab.data import CLASSES, SportBalls, render
from steersman.lab.data.sportballs import SEAM_A, STITCH, TEXTURES


def one_of_each(resolution: int, radius: float = 0.4, centre: float = 0.5) -> torch.Tensor:
    """All four classes, unturned, lit from the front."""
    return render(
        torch.arange(4),
        torch.full((4, 2), centre),
        torch.full((4,), radius),
        torch.eye(3).expand(4, 3, 3),
        torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3),
        resolution,
    )


def test_image_depends_on_seed_and_index_alone():
    balls = SportBalls(num=1000, seed=3)
    together, labels = balls.batch([7, 500, 2, 31, 8, 900, 41, 77])
    for row, i in enumerate([7, 500, 2, 31]):
        alone, label = balls[i]
        assert label == labels[row]
        torch.testing.assert_close(alone, together[row], rtol=0, atol=1e-6)
    longer = SportBalls(num=2000, seed=3)
    assert torch.equal(longer[7][0], balls[7][0])
    assert not torch.equal(SportBalls(num=1000, seed=4)[7][0], balls[7][0])


def test_contract():
    balls = SportBalls(num=5, resolution=32)
    images, labels = balls.batch(range(5))
    assert len(balls) == 5 and balls.classes == CLASSES
    assert images.shape == (5, 3, 32, 32) and images.dtype == torch.float32
    assert images.min() >= -1 and images.max() <= 1
    assert labels.dtype == torch.int64
    assert balls.batch([])[0].shape == (0, 3, 32, 32)
    loaded = next(iter(torch.utils.data.DataLoader(balls, batch_size=5)))
    torch.testing.assert_close(loaded[0], images, rtol=0, atol=1e-6)
    assert len(list(balls)) == 5
    with pytest.raises(IndexError):
        balls[5]


def test_factors_are_uniform_and_independent():
    n = 4000
    draws = [SportBalls(num=n)._draw(i) for i in range(n)]
    label = np.array([d.label for d in draws])
    # four standard deviations of a binomial count
    assert np.abs(np.bincount(label, minlength=4) - n / 4).max() < 4 * (n * 3 / 16) ** 0.5
    factors = np.stack([[*np.eye(4)[d.label][:3], d.look, d.size, *d.place, *d.quaternion, *d.light] for d in draws])
    correlation = np.corrcoef(factors.T)
    correlation[:3, :3] = 0  # the classes exclude each other
    np.fill_diagonal(correlation, 0)
    # 105 pairs of standard deviation 1/sqrt(n): 4.5 of them
    assert np.abs(correlation).max() < 4.5 / n**0.5


def test_place_and_size_do_not_depend_on_the_class():
    """The ball's bounding box tells its size and place: each class has the same mean of both."""
    images, labels = SportBalls(num=800, resolution=32).batch(range(800))
    covered = (images < 0.999).any(dim=1).float()
    size = covered.any(dim=1).sum(dim=1) / 32
    column = (covered.any(dim=1) * torch.arange(32)).sum(1) / covered.any(dim=1).sum(1)
    for values in (size, column):
        spread = values.std() / 200**0.5
        for k in range(4):
            assert abs(values[labels == k].mean() - values.mean()) < 4 * spread


@pytest.mark.parametrize("resolution", [32, 96])
@pytest.mark.parametrize("name", ["large", "nrcg"])
def test_whole_ball_lies_on_a_white_canvas(name: str, resolution: int):
    balls = SportBalls.preset(name, num=24, seed=1, resolution=resolution)
    images, _ = balls.batch(range(24))
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.equal(corners, torch.ones_like(corners))
    smallest, largest = balls.diameter
    for lit in images.mean(dim=1) < 0.999:
        rows, columns = lit.any(dim=1).sum(), lit.any(dim=0).sum()
        # a cut ball would be narrower one way; the rim's cover of a pixel may be too faint to count
        assert abs(rows - columns) <= 2
        assert smallest * resolution - 2 <= rows <= largest * resolution + 2


@pytest.mark.parametrize(("resolution", "radius"), [(8, 0.45), (64, 0.3), (40, 0.45)])
def test_disc_covers_its_area(resolution: int, radius: float):
    """Pictures of any resolution are the same picture, and the disc covers pi r² of the canvas."""
    balls = one_of_each(resolution, radius=radius)
    finer = torch.nn.functional.avg_pool2d(one_of_each(resolution * 4, radius=radius), 4)
    # the same picture at four times the resolution, averaged down
    assert (balls - finer).abs().mean() < 0.03
    finest = one_of_each(512, radius=radius)[1, 2] < 1  # an orange ball is dark in blue
    # a pixel counts if any of it is covered: at most one pixel's rim too many, 2 / (512 r)
    assert finest.float().mean() == pytest.approx(torch.pi * radius**2, rel=0.02)


def test_ball_turned_about_the_view_is_the_picture_turned():
    """Lit from the front, a ball turned a quarter about the viewer's axis gives its picture turned."""
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    still = one_of_each(64)
    turned = render(
        torch.arange(4),
        torch.full((4, 2), 0.5),
        torch.full((4,), 0.4),
        quarter.expand(4, 3, 3),
        torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3),
        64,
    )
    torch.testing.assert_close(torch.rot90(still, 1, (2, 3)), turned, rtol=0, atol=1e-3)


def test_seam_runs_along_its_parametric_curve():
    """On the curve of the docstring a baseball is redder than leather, away from it is is not."""
    a, b, resolution = SEAM_A, 1 - SEAM_A, 256
    t = torch.linspace(0, 2 * torch.pi, 2000)
    x, y = a * t.cos() + b * (3 * t).cos(), a * t.sin() - b * (3 * t).sin()
    z = 2 * (a * b) ** 0.5 * (2 * t).sin()
    torch.testing.assert_close(x**2 + y**2 + z**2, torch.ones_like(t))
    front = z > 0.3
    column = ((0.5 + 0.4 * x[front]) * resolution).long()
    row = ((0.5 - 0.4 * y[front]) * resolution).long()
    ball = one_of_each(resolution)[0]
    red = ball[0] - ball[1]
    near = torch.nn.functional.max_pool2d((red > 0.5 * (2 * (STITCH[0] - STITCH[1])))[None].float(), 21, 1, 10)[0]
    assert near[row, column].min() == 1
    apart = torch.full((resolution, resolution), 1.0)
    apart[row, column] = 0
    apart = -torch.nn.functional.max_pool2d(-apart[None], 41, 1, 20)[0]
    inner = torch.zeros_like(apart)
    inner[90:166, 90:166] = 1
    assert red[(apart * inner).bool()].abs().max() < 0.2


def test_soccer_ball_has_twelve_black_pentagons():
    """The black share of the whole sphere, over many turns, is twelve spherical pentagons' less the seam."""
    p = torch.nn.functional.normalize(torch.randn(3, 20000, generator=torch.Generator().manual_seed(0)), dim=0)
    w = torch.full((20000,), 1e-3)
    black = (TEXTURES[3](p, w, torch.zeros(20000, dtype=torch.int64))[0] < 0.1).float().mean()
    # an icosahedral cap of solid angle 0.2952 sr each; widened by 0.01 at its edge of about 3.7 % of its inradius
    assert 12 * 0.2952 / (4 * torch.pi) < black < 12 * 0.2952 * 1.1 / (4 * torch.pi)


@pytest.mark.parametrize(
    "bad",
    [
        {"num": -1},
        {"num": 1, "seed": -1},
        {"num": 1, "resolution": 7},
        {"num": 1, "diameter": (0.0, 0.5)},
        {"num": 1, "diameter": (0.5, 1.01)},
        {"num": 1, "diameter": (0.9, 0.5)},
        {"num": 1, "diameter": (float("nan"), 0.5)},
    ],
)
def test_settings_that_cannot_be_rendered_are_refused(bad: dict):
    with pytest.raises(InputError):
        SportBalls(**bad)


def test_unknown_preset_lists_the_known():
    with pytest.raises(InputError, match="nrcg"):
        SportBalls.preset("huge", num=1)


def test_unknown_label_is_refused():
    with pytest.raises(InputError, match="label"):
        render(
            torch.tensor([4]), torch.full((1, 2), 0.5), torch.tensor([0.4]), torch.eye(3)[None], torch.eye(3)[2:], 16
        )
