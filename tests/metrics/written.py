"""Image folders of given pixels."""

from PIL import Image


def write(folder, pixels, first=0):
    """Writes images, (N, H, W, 3) in 8 bits, as a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, each in enumerate(pixels, first):
        Image.fromarray(each).save(folder / f"{number:06d}.png")
    return folder
