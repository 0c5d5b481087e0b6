"""Sets of images: what is read from where, and what is refused in one line."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from metrics.written import write
from steersman.errors import InputError
from steersman.lab.data import SportBalls, load_data
from steersman.lab.data.images import read_images, write_folder
from steersman.lab.run import Run


def all_of(images, batch_size=64):
    return torch.cat(list(images.batches(batch_size)))


def test_a_folder(pixels, tmp_path):
    content = pixels(5)
    images = read_images(write(tmp_path / "own", content))
    (tmp_path / "own" / "notes.txt").write_text("no image")
    assert (len(images), images.labels, images.side) == (5, None, (8, 8))
    expected = torch.from_numpy(content).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.equal(all_of(images), expected)
    assert torch.equal(all_of(images, 2), expected)


def test_a_folder_a_class(pixels, tmp_path):
    write(tmp_path / "cat", pixels(2))
    write(tmp_path / "dog", pixels(3, seed=1))
    images = read_images(tmp_path)
    assert images.labels == ("cat", "cat", "dog", "dog", "dog")
    assert torch.equal(all_of(images.of("Dog")), all_of(images)[2:])
    with pytest.raises(InputError, match=r"unknown class of .*'dig'; did you mean 'dog'"):
        images.of("dig")


def test_a_class_without_images_is_not_trained_on(pixels, tmp_path):
    write(tmp_path / "cat", pixels(2))
    assert load_data(str(tmp_path))[1] == ("cat",)
    write(tmp_path / "dog" / "corgi", pixels(1))
    with pytest.raises(InputError, match="must hold a folder of images a class, 'dog' holds none"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([(8, 8), (8, 8)], None),
        ([(8, 8), (10, 10)], "not all squares of one size: 8 by 8, 10 by 10 pixels; with --resolution 64"),
        ([(8, 10)] * 2, "not all squares of one size: 8 by 10 pixels"),
    ],
)
def test_the_resolution_of_a_folder_is_that_of_its_images(sizes, said, tmp_path):
    (tmp_path / "cat").mkdir()
    for index, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / "cat" / f"{index}.png")
    assert load_data(str(tmp_path), resolution=4)[0][0][0].shape == (3, 4, 4)
    if said is None:
        assert load_data(str(tmp_path))[0][0][0].shape == (3, 8, 8)
    else:
        with pytest.raises(InputError, match=f"resolution must be given, as the images are {said}"):
            load_data(str(tmp_path))


def run_of(folder, *targets):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(Run(targets=targets).record()))
    return folder


def test_a_run_of_one_target(pixels, tmp_path):
    write(run_of(tmp_path, "baseball"), pixels(3))

    Image.fromarray(pixels(1, side=16)[0]).save(tmp_path / "grid.png")
    images = read_images(tmp_path)
    assert images.labels == ("baseball",) * 3


def test_a_run_of_several_targets(pixels, tmp_path):

    from steersman.files import file_name

    run_of(tmp_path, "a ball: red", "cube")
    write(tmp_path / file_name("a ball: red"), pixels(2))
    write(tmp_path / "cube", pixels(1))
    Image.fromarray(pixels(1, side=16)[0]).save(tmp_path / "grid.png")
    assert read_images(tmp_path).labels == ("a ball: red", "a ball: red", "cube")


def test_a_batch_of_adms(pixels, tmp_path):
    content = pixels(4)
    np.savez(tmp_path / "batch.npz", content, np.array([3, 7, 3, 7]))
    images = read_images(tmp_path / "batch.npz")
    assert images.labels == ("3", "7", "3", "7")
    assert torch.equal(all_of(images.of("7"), 1), torch.from_numpy(content[[1, 3]]).permute(0, 3, 1, 2) / 127.5 - 1)


def test_a_rendered_set_is_its_folder(tmp_path):
    list(write_folder(SportBalls.preset("nrcg", num=12, seed=3, resolution=16), tmp_path))
    drawn, read = read_images("sportballs:nrcg?num=12&seed=3&resolution=16"), read_images(tmp_path)
    for name in read.classes:
        assert torch.equal(all_of(drawn.of(name)), all_of(read.of(name)))


def test_a_rendered_class():
    images = read_images("sportballs:soccer ball?num=3&resolution=16&seed=2")
    assert images.labels == ("soccer ball",) * 3
    more = read_images("sportballs?num=30&resolution=16&seed=2").of("soccer ball")
    assert torch.equal(all_of(images), all_of(more)[:3])


def test_another_resolution(pixels, tmp_path):
    content = np.full((2, 8, 20, 3), 90, np.uint8)
    content[:, :, :2], content[:, :, 18:] = 0, 255  # what the square does not hold
    images = read_images(f"{write(tmp_path, content)}?resolution=4")
    assert images.side == (4, 4)
    assert (all_of(images) == torch.tensor(90) / 127.5 - 1).all()


def damaged(pixels, tmp_path, kind):
    folder = tmp_path / "set"
    if kind == "empty":
        folder.mkdir()
    elif kind == "no image":
        write(folder, pixels(2))
        (folder / "x.png").write_text("no image")
    elif kind == "sizes":
        write(folder, pixels(2))
        write(folder, pixels(1, side=12), first=2)
    elif kind == "mixed":
        write(folder, pixels(1))
        write(folder / "cat", pixels(1))
    elif kind == "nested":
        write(folder / "cat", pixels(1))
        write(folder / "cat" / "tabby", pixels(1))
    elif kind == "pickled":
        np.savez(tmp_path / "set.npz", arr_0=np.array([{}], dtype=object))
        return tmp_path / "set.npz"
    elif kind == "other array":
        np.savez(tmp_path / "set.npz", arr_0=np.zeros((2, 3, 8, 8), np.float32))
        return tmp_path / "set.npz"
    elif kind == "labels":
        np.savez(tmp_path / "set.npz", arr_0=pixels(2), arr_1=np.zeros(3))
        return tmp_path / "set.npz"
    elif kind == "no archive":
        (tmp_path / "set.npz").write_text("no archive")
        return tmp_path / "set.npz"
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "must hold at least 1 image"),
        ("no image", "x.png' cannot be used; it must be an image: PNG, JPEG"),
        ("sizes", "000002.png' has 12 by 12 pixels and 000000.png has 8 by 8; resize them with"),
        ("mixed", "must hold either images or a folder of images for each class"),
        ("nested", "cat' must hold no folder beside its images, but it holds 'tabby'"),
        ("pickled", "set.npz' cannot be used; its array 'arr_0.npy' claims object"),
        ("other array", r"must hold arr_0 of shape \(N, H, W, 3\) in uint8, got arr_0 \(2, 3, 8, 8\) float32"),
        ("labels", r"must have the shape \(2,\), got \(3,\)"),
        ("no archive", "set.npz' cannot be read"),
    ],
)
def test_damaged_sets(kind, message, pixels, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        read_images(damaged(pixels, tmp_path, kind))
    assert "\n" not in str(error.value)


def test_a_truncated_image(pixels, tmp_path):
    write(tmp_path, pixels(1, side=64))
    file = tmp_path / "000000.png"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InputError, match="000000.png' cannot be read"):
        all_of(read_images(tmp_path))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "images must be a folder"),
        ("sportballs:golf", "unknown preset or class of sportballs 'golf'"),
        ("sportballs?num=0", "num must be a whole number of at least 1, got '0'"),
        ("sportballs?nmu=3", "unknown option of 'sportballs.nmu=3' 'nmu'"),
    ],
)
def test_specs_that_are_refused(spec, message):
    with pytest.raises(InputError, match=message):
        read_images(spec)


def test_without_labels_there_is_no_class(pixels, tmp_path):
    with pytest.raises(InputError, match="from a set with labels, but .* has none"):
        read_images(write(tmp_path, pixels(1))).of("cat")


def test_a_published_set_with_its_labels_in_three_channels(mnist):
    images, (data, classes) = read_images(mnist), load_data(mnist)
    assert len(images) == 20 and images.side == (28, 28)
    assert images.labels == tuple(classes[label] for _, label in data)
    whole = all_of(images)
    for channel in range(3):
        assert torch.equal(whole[:, channel], torch.stack([image[0] for image, _ in data]))
    assert torch.equal(all_of(images.of("3 - three")), whole[[3, 13]])


def test_some_of_a_published_set_by_a_seed_and_its_test_images(mnist):
    whole, some = read_images(f"{mnist}?split=test"), read_images(f"{mnist}?split=test&num=5&seed=1")
    assert len(whole) == 8 and len(some) == 5 and len(set(some.indices)) == 5
    assert torch.equal(all_of(some), all_of(whole)[list(some.indices)])
    assert some.labels == tuple(whole.labels[index] for index in some.indices)
    assert read_images(f"{mnist}?num=2&resolution=32").side == (32, 32)


@pytest.mark.parametrize(
    ("options", "said"),
    [("?num=21", "num must be at most 20"), ("?split=all", "unknown split"), ("?size=3", "unknown option")],
)
def test_what_a_published_set_does_not_have_is_refused(mnist, options, said):
    with pytest.raises(InputError, match=said):
        read_images(mnist + options)


def test_a_split_is_only_of_published_sets(pixels, tmp_path):
    write(tmp_path / "own", pixels(1))
    for spec in (f"{tmp_path / 'own'}?split=test", "sportballs?split=test"):
        with pytest.raises(InputError, match="images must be"):
            read_images(spec)
