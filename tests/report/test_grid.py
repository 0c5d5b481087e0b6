"""What stands where on a contact sheet."""

import pytest
import torch
from PIL import Image

from steersman.errors import InputError
from steersman.lab.report import grid, sheet
from steersman.lab.report.images import GAP, pixels


def flat(*values: float, side: int = 6) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None].expand(-1, 3, side, side)


def test_bytes_of_the_range_and_beyond():
    image = torch.tensor([-5.0, -1, 0, 1, 5, float("nan")]).reshape(1, 1, 2, 3)
    values = pixels(image)
    assert values.shape == (1, 3, 2, 3)
    assert values[0, 0].flatten().tolist() == [0, 0, 128, 255, 255, 128]


def test_images_stand_in_order_and_the_rest_of_a_row_is_white():
    drawn = sheet({"": flat(-1, 0, -1)}, columns=2, zoom=2)
    pitch = 2 * 6 + GAP
    assert drawn.size == (2 * pitch + GAP, 2 * pitch + GAP)

    def middle(row: int, column: int) -> int:
        return drawn.getpixel((GAP + 6 + column * pitch, GAP + 6 + row * pitch))[0]

    assert [middle(0, 0), middle(0, 1), middle(1, 0), middle(1, 1)] == [0, 128, 0, 255]


def test_captions_have_a_margin_of_their_own():
    rows = {"baseball": flat(-1, 0, side=32), "soccer ball": flat(0, side=32)}
    drawn = sheet(rows)
    plain = sheet({"": torch.cat([*rows.values()])}, columns=2)
    margin = drawn.width - plain.width
    assert margin > 0 and drawn.height == 2 * (32 + 2 * GAP)
    for top in (0, 32 + 2 * GAP):
        left = drawn.crop((0, top, margin, top + 32 + 2 * GAP)).convert("L")
        dark, _ = left.getextrema()
        assert dark < 100  # ink
        assert left.getpixel((margin - 1, 16)) == 255  # that does not reach the images


def test_writes_a_png_and_nothing_beside_it(tmp_path):
    grid({"a": flat(-1, 1)}, tmp_path / "grid.png")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    with Image.open(tmp_path / "grid.png") as written:
        assert written.format == "PNG"
        assert written.tobytes() == sheet({"a": flat(-1, 1)}).tobytes()


@pytest.mark.parametrize(
    ("rows", "settings", "told"),
    [
        ({}, {}, "at least 1 image, got 0"),
        ({"a": flat()}, {}, "at least 1 image, got 0"),
        ({"a": flat(1), "b": flat(1, side=7)}, {}, "3x6x6, 3x7x7"),
        ({"a": flat(1)}, {"zoom": 0}, "zoom"),
    ],
)
def test_refusals(rows: dict, settings: dict, told: str):
    with pytest.raises(InputError, match=told):
        sheet(rows, **settings)
