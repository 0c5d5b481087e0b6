import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    # Depthwise convolutions lose far more by threads that wait for each other on a busy machine than they gain.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def picture():
    """Makes 8-bit pictures within the middle of the range, so that bicubic resizing overshoots neither end."""

    def make(height, width, mode="RGB"):
        draws = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(height))
        return Image.fromarray((64 + 128 * draws).to(torch.uint8).numpy()).convert(mode)

    return make


@pytest.fixture
def in_range():
    """Turns a picture into an image in [-1, 1]."""

    def image(picture):
        values = torch.tensor(list(picture.tobytes()), dtype=torch.float32)
        return (values.reshape(1, picture.height, picture.width, -1) / 127.5 - 1).permute(0, 3, 1, 2)

    return image


@pytest.fixture
def agrees(in_range):
    """Checks a classifier against a library's logits and input for a picture, and that its gradient can guide."""

    def check(classifier, picture, pixels, logits, resized=False):
        image = in_range(picture).requires_grad_()
        std = torch.tensor(classifier.preprocess.std).reshape(-1, 1, 1)
        # Libraries resize in 8 bits in two passes, each rounds to half of a 255th; a kernel's lobes enlarge it.
        room = 2 / 255 if resized else 1e-6
        assert ((classifier.preprocess(image) - pixels) * std).abs().max() < room
        found = classifier(image)
        if not resized:
            torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5 * logits.abs().max().item())
        (g,) = torch.autograd.grad(found[:, -1].sum(), image)
        assert g.isfinite().all() and (g != 0).any()

    return check
