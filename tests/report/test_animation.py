"""Heat maps, and the frames of a walk."""

import jaxtyping
import pytest
import torch
from PIL import Image, ImageSequence

from steersman.errors import InputError
from steersman.guidance.guide import Update
from steersman.guidance.step import Step
from steersman.lab.report import Frames, animation, heat
from steersman.lab.report.images import LARGE
from steersman.sampling.loop import Report
from steersman.schedule import VP


def report(index: int, count: int, *, active: bool = True) -> Report:
    level = VP.cosine().at_time(500.0)
    zero = torch.zeros(())
    step = Step(index, count, 0, 0, level, level, zero, zero)
    image = torch.full((3, 3, 4, 4), index / count)
    update = Update(image, image + 1, image, torch.zeros(3), torch.ones(3, dtype=torch.bool), image) if active else None
    return Report(step, image - 1, image, (update,))


def test_heat_is_black_at_zero_and_brightest_at_the_largest_norm():
    gradient = torch.zeros(2, 3, 2, 2)
    gradient[0, :, 0, 0] = torch.tensor([3.0, 0, 4])
    gradient[0, :, 1, 1] = torch.tensor([0.0, -5, 0])
    gradient[0, :, 0, 1] = torch.tensor([0.0, 2, 0])
    shown = heat(gradient)
    bright = shown.sum(1)
    assert bright[0, 0, 0] == bright[0, 1, 1] == bright.max()
    assert bright[0, 1, 0] == bright.min() < bright[0, 0, 1] < bright.max()
    assert torch.equal(bright[1], bright.min().expand(2, 2))


def test_heat_does_not_depend_on_the_scale():
    gradient = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    # a power of two scales floating-point numbers exactly
    torch.testing.assert_close(heat(gradient * torch.tensor([2.0**-40, 2.0**20]).reshape(2, 1, 1, 1)), heat(gradient))


def test_heat_takes_what_is_not_finite_as_zero():
    gradient = torch.tensor([float("nan"), float("inf"), 1.0, 0.0]).reshape(1, 1, 2, 2)
    assert torch.equal(heat(gradient), heat(torch.tensor([0.0, 0, 1, 0]).reshape(1, 1, 2, 2)))


def test_frames_keep_every_kth_step_and_the_last():
    frames = Frames(count=2, every=3)
    for index in range(8):
        frames(report(index, 8, active=index != 3))
    assert [float(image[0, 0, 0, 0]) for image in frames.images] == [0, 3 / 8, 6 / 8, 7 / 8]
    assert all(image.shape == (2, 3, 4, 4) for image in [*frames.images, *frames.gradients])
    assert [float(gradient.max()) for gradient in frames.gradients] == [1, 0, 1 + 6 / 8, 1 + 7 / 8]
    assert frames.titles == ["step 1 of 8", "step 4 of 8", "step 7 of 8", "step 8 of 8"]
    noisy = Frames("x")
    noisy(report(4, 8))
    assert float(noisy.images[0].max()) == 4 / 8 - 1


def test_gif_has_a_frame_a_step_with_image_and_gradient(tmp_path):
    images = [torch.full((2, 3, 8, 8), value) for value in (-1.0, 0.0, 1.0)]
    gradients = [torch.ones(2, 3, 16, 16)] * 3
    animation(images, gradients, tmp_path / "walk.gif", zoom=2, titles=["a", "b", "c"], seconds=0.3, last=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["walk.gif"]
    with Image.open(tmp_path / "walk.gif") as written:
        assert written.info["loop"] == 0
        shown = [(frame.info["duration"], frame.convert("RGB")) for frame in ImageSequence.Iterator(written)]
    assert [duration for duration, _ in shown] == [100, 100, 1000]
    for value, (_, frame) in zip((0, 128, 255), shown, strict=True):
        width, height = frame.size
        assert height == 2 * LARGE + 2 * 20  # two lines of text above two rows
        assert abs(frame.getpixel((width - 28, 2 * LARGE + 10))[0] - value) <= 8  # a palette of 256 colours
        assert min(frame.getpixel((width - 10, 2 * LARGE + 10))[:2]) > 230  # the largest gradient is pale yellow
        title, left = frame.crop((0, 0, width, LARGE)), frame.crop((0, 2 * LARGE, width - 38, height))
        assert title.convert("L").getextrema()[0] < 100 and left.convert("L").getextrema()[0] < 100  # ink


@pytest.mark.parametrize(("frames", "each"), [(1, 0.5), (2, 0.5), (50, 0.1), (1000, 0.04)])
def test_a_gif_of_any_number_of_steps_lasts_long_enough_to_be_watched(tmp_path, frames, each, monkeypatch):
    seen = {}
    monkeypatch.setattr(Image.Image, "save", lambda self, path, **settings: path.touch() or seen.update(settings))
    monkeypatch.setattr("steersman.lab.report.images._frame", lambda *_: Image.new("RGB", (2, 2)))
    animation([torch.zeros(1, 3, 2, 2)] * frames, [torch.zeros(1, 3, 2, 2)] * frames, tmp_path / "walk.gif")
    assert seen["duration"] == [1000 * each] * (frames - 1) + [2000]


def test_refusals(tmp_path):
    frame = torch.zeros(1, 3, 4, 4)
    with pytest.raises(InputError, match="got 0 images"):
        animation([], [], tmp_path / "walk.gif")
    with pytest.raises(InputError, match="got 2 images and 1"):
        animation([frame, frame], [frame], tmp_path / "walk.gif")
    with pytest.raises(InputError, match="every"):
        Frames(every=0)


def test_unknown_view_lists_the_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside the tests
    with pytest.raises(InputError, match="unknown view 'x1'; .*known: x0, x"):
        Frames("x1")  # pyright: ignore[reportArgumentType]
