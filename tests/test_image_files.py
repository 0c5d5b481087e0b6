"""Images as people have them are read as they look, or refused in one line; those made to do harm are refused."""

import io
import os
import resource
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from steersman.errors import InputError
from steersman.files import open_image, read_image
from steersman.lab.data.images import read_images

GREY = np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4)
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, bits, colour, rows, *chunks):
    """A PNG by hand: of any depth, with any chunks before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def of(pixels, mode=None):
    return Image.fromarray(pixels) if mode is None else Image.fromarray(pixels).convert(mode)


def with_alpha(pixels, mode, alpha):
    made = of(pixels).convert(mode)
    made.putalpha(Image.fromarray(np.full(pixels.shape[:2], alpha, np.uint8)))
    return made


def palette(transparent):
    made = Image.new("P", (4, 4), 1)
    made.putpalette([9, 9, 9, 200, 100, 50])
    made.info["transparency"] = transparent
    return made


def grey16(scale=257):
    return Image.fromarray(GREY.astype(np.uint16) * scale)


def three(grey):
    return np.repeat(grey[..., None], 3, 2)


MANY = zlib.compress(bytes(100 << 20))  # a hundred MiB of zeros
SIXTEEN = COLOURS.astype(">u2") * 257
READ = {
    "1": (of(GREY).point(lambda value: 255 * (value > 127), "1"), "png", three(np.where(GREY > 127, 255, 0))),
    "L": (of(GREY), "png", three(GREY)),
    "LA, opaque": (with_alpha(GREY, "L", 255), "png", three(GREY)),
    "P": (of(COLOURS).quantize(256), "png", COLOURS),
    "P, GIF": (of(COLOURS).quantize(256), "gif", COLOURS),
    "P, another colour transparent": (palette(0), "png", np.broadcast_to([200, 100, 50], (4, 4, 3))),
    "RGB": (of(COLOURS), "png", COLOURS),
    "RGB, WebP": (of(COLOURS), "webp", COLOURS),
    "RGB, TIFF": (of(COLOURS), "tiff", COLOURS),
    "RGBA, opaque": (with_alpha(COLOURS, "RGB", 255), "png", COLOURS),
    "CMYK": (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "tiff", np.broadcast_to([255, 0, 0], (4, 4, 3))),
    "I;16": (grey16(), "png", three(GREY)),
    "I;16, TIFF": (grey16(), "tiff", three(GREY)),
    "16 bits, PPM": (grey16(), "ppm", three(GREY)),
    "2 bits": (png(4, 1, 2, 0, [bytes([0b00011011])]), None, three(np.array([[0, 85, 170, 255]]))),
    "16 bits a colour": (png(4, 6, 16, 2, [row.tobytes() for row in SIXTEEN]), None, COLOURS),
}
REFUSED = {
    "LA": (with_alpha(GREY, "L", 100), "png", "opaque"),
    "P": (palette(1), "png", "opaque"),
    "RGBA": (with_alpha(COLOURS, "RGB", 254), "png", "opaque"),
    "RGBA, WebP": (with_alpha(COLOURS, "RGB", 100), "webp", "opaque"),
    "L with a transparent grey": (png(4, 1, 8, 0, [bytes([1, 2, 3, 4])], chunk(b"tRNS", b"\0\3")), None, "opaque"),
    "16 bits with one": (png(2, 1, 16, 0, [b"\0\1\0\2"], chunk(b"tRNS", b"\0\2")), None, "opaque"),
    "I": (of(GREY, "I"), "tiff", "got the mode I"),
    "F": (of(GREY, "F"), "tiff", "got the mode F"),
    "LAB": (
        ImageCms.profileToProfile(of(COLOURS), *(ImageCms.createProfile(e) for e in ("sRGB", "LAB")), outputMode="LAB"),
        "tiff",
        "LAB",
    ),
}


def written(path, made, kind):
    if isinstance(made, bytes):
        path.write_bytes(made)
    else:
        lossless = {"lossless": True} if kind == "webp" else {}
        with path.open("wb") as file:
            made.save(file, format=kind.upper(), **lossless)
    return path


@pytest.mark.parametrize("name", READ)
def test_modes_that_are_read(name, tmp_path):
    made, kind, expected = READ[name]
    path = written(tmp_path / "a.png", made, kind)
    assert np.array_equal(np.asarray(read_image(path)), expected)
    assert torch.equal(
        next(read_images(tmp_path).pixels())[0].permute(1, 2, 0), torch.from_numpy(expected.astype(np.uint8))
    )


@pytest.mark.parametrize("name", REFUSED)
def test_modes_that_are_refused(name, tmp_path):
    made, kind, said = REFUSED[name]
    path = written(tmp_path / "a.png", made, kind)
    with pytest.raises(InputError, match=said) as error:
        read_image(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["RGB", "YCbCr", "CMYK", "L"])
def test_jpegs_are_read_as_pillow_decodes_them(mode, tmp_path):
    of(COLOURS).resize((32, 48)).convert(mode).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.jpg")), expected)


@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "jpeg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(orientation, kind, tmp_path):
    back = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.transpose(1, 0, 2)}
    back |= {6: np.rot90, 7: lambda x: np.rot90(x, 2).transpose(1, 0, 2), 8: lambda x: np.rot90(x, -1)}
    upright = COLOURS.repeat(16, 0).repeat(16, 1)  # blocks, which JPEG keeps apart
    made = Image.fromarray(np.ascontiguousarray(back[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"jpeg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}
    made.save(tmp_path / f"a.{kind}", exif=exif, **settings.get(kind, {}))
    images = read_images(tmp_path)
    seen = next(images.pixels())[0].permute(1, 2, 0).numpy()
    assert images.side == upright.shape[:2] == seen.shape[:2]
    assert np.abs(seen.astype(int) - upright).max() <= (0 if kind != "jpeg" else 4)


def test_photographs_of_one_upright_size_are_one_set(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "0.jpg", exif=exif)
    Image.new("RGB", (4, 6)).save(tmp_path / "1.jpg")
    assert next(read_images(tmp_path).pixels()).shape == (2, 3, 6, 4)


def animated(kind):
    stream = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green")]
    frames[0].save(stream, format=kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


HARM = {
    "a size that its bytes cannot hold": png(2**31 - 1, 2**31 - 1, 8, 2, []),
    "a size above the limit": png(60_000, 60_000, 1, 0, []),
    "a GIF with a huge canvas": b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\2\1\0\0;",
    "text that unpacks to 100 MiB": png(1, 1, 8, 0, [b"\0"], chunk(b"zTXt", b"a\0\0" + MANY)),
    "many texts": png(1, 1, 8, 0, [b"\0"], *(90 * [chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20)))])),
    "a profile that unpacks to 100 MiB": png(1, 1, 8, 0, [b"\0"], chunk(b"iCCP", b"a\0\0" + MANY)),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
    "PDF": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "an animated GIF": animated("GIF"),
    "an animated WebP": animated("WEBP"),
    "pages": animated("TIFF"),
    "nothing": b"",
}


@pytest.mark.parametrize("name", HARM)
def test_images_that_are_made_to_do_harm(name, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program is run"))
    path = tmp_path / "0.png"
    path.write_bytes(HARM[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_image, lambda path: list(read_images(path.parent).pixels())):
        with pytest.raises(InputError) as error:
            read(path)
        assert str(path) in str(error.value) and len(str(error.value)) < 800 and "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "0.png")
    with pytest.raises(InputError, match=r"0.png' must be a regular file, got a pipe"):
        read_images(tmp_path)
    with pytest.raises(InputError, match="got a pipe"), open_image(tmp_path / "0.png"):
        pass
