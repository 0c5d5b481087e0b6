"""Saved statistics give what the images give, in whatever order and batches those are read."""

from dataclasses import astuple

import numpy as np
import pytest
import torch

from metrics.written import write
from steersman.errors import InputError
from steersman.lab.data.images import read_images
from steersman.lab.metrics.distances import frechet
from steersman.lab.metrics.evaluate import evaluate
from steersman.lab.metrics.features import Extractor, read_reference, statistics_of, write_statistics


@pytest.fixture
def sets(pixels, tmp_path):
    """Samples, and a reference with labels."""
    write(tmp_path / "reference" / "dark", pixels(12))
    write(tmp_path / "reference" / "light", pixels(13, bright=40))
    return read_images(write(tmp_path / "samples", pixels(14, bright=20))), read_images(tmp_path / "reference")


def test_mean_and_covariance(sets, quarters):
    statistics = statistics_of(sets[0], quarters)
    rows = quarters.embed(torch.cat(list(sets[0].batches()))).double()
    torch.testing.assert_close(statistics.moments.mean, rows.mean(0))
    root = statistics.moments.root
    torch.testing.assert_close(root.T @ root, rows.T.cov())


def test_saved_statistics_give_what_the_images_give(sets, quarters, tmp_path):
    samples, reference = sets
    write_statistics(tmp_path / "new" / "reference.npz", statistics_of(reference, quarters))
    saved = read_reference(tmp_path / "new" / "reference.npz")
    found = evaluate(samples, saved, features=quarters, target="dark", resamples=10)
    assert found == evaluate(samples, reference, features=quarters, target="dark", resamples=10)
    assert None not in [found[name].value for name in ("fid", "cfid", "kid", "recall", "coverage")]


def test_edms_file_gives_the_distance(sets, quarters, tmp_path):
    """Of mean and covariance alone, as EDM's script writes them, and reads ours."""
    samples, reference = sets
    write_statistics(tmp_path / "ours.npz", statistics_of(reference, quarters))
    with np.load(tmp_path / "ours.npz") as held:
        np.savez(tmp_path / "edm.npz", mu=held["mu"], sigma=held["sigma"], extractor=held["extractor"])
    found = evaluate(samples, read_reference(tmp_path / "edm.npz"), features=quarters, resamples=2)
    expected = evaluate(samples, reference, features=quarters, resamples=2)
    assert found["fid"].value == pytest.approx(expected["fid"].value, rel=1e-6)
    assert [name for name, figure in found.items() if figure.value is not None] == ["fid"]


def test_2048_features_without_an_extractor_are_inceptions(tmp_path):
    np.savez(tmp_path / "edm.npz", mu=np.zeros(2048), sigma=np.zeros((2048, 2048)))
    assert read_reference(tmp_path / "edm.npz").extractor == "inception"
    np.savez(tmp_path / "other.npz", mu=np.zeros(12), sigma=np.eye(12))
    with pytest.raises(InputError, match="must name its extractor or have the 2048 features of Inception, it has 12"):
        read_reference(tmp_path / "other.npz")


def test_order_and_batch_size_do_not_matter(pixels, quarters, tmp_path):
    """Nor does the order matter to the intervals, whose halves are drawn from an order of their own."""
    content, real = pixels(14, bright=20), pixels(15)
    reference = read_images(write(tmp_path / "reference", real))
    one = read_images(write(tmp_path / "one", content))
    other = read_images(write(tmp_path / "other", content[::-1]))
    found = evaluate(one, reference, features=quarters, resamples=10, batch_size=64)
    compared = ("fid", "kid", "precision", "recall", "density", "coverage")
    again = evaluate(other, reference, features=quarters, resamples=10, batch_size=3)
    for name in compared:
        assert astuple(again[name])[:3] == pytest.approx(astuple(found[name])[:3], rel=1e-6, abs=1e-6)
    assert found["fid"].low < found["fid"].value < found["fid"].high


def test_features_that_are_not_finite_are_refused(sets):
    nothing = Extractor(name="nothing", embed=lambda images: images.flatten(1) / 0)
    with pytest.raises(InputError, match="features must be finite, but 'nothing' returned values that are not"):
        statistics_of(sets[0], nothing)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mean": np.zeros(3)}, "must hold images as arr_0, or mu and sigma; it holds mean"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"must have the shapes \(D,\) and \(D, D\), got \(3,\) and \(4, 4\)"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "must be finite, but some values are not"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "extractor": np.array("x"), "features": np.eye(2)}, r"\(2, 2\)"),
        (
            {"mu": np.zeros(2), "sigma": np.eye(2), "extractor": np.array("x"), "labels": np.array(["a"])},
            r"must be one for each row of features, got shape \(1,\)",
        ),
    ],
)
def test_damaged_statistics(content, message, tmp_path):
    np.savez(tmp_path / "damaged.npz", **content)
    with pytest.raises(InputError, match=message):
        read_reference(tmp_path / "damaged.npz")


def test_a_file_that_cannot_be_written(sets, quarters, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_statistics(tmp_path / "file" / "x.npz", statistics_of(sets[0], quarters))


def test_distance_of_a_set_from_itself(sets, quarters):
    statistics = statistics_of(sets[1], quarters)
    assert frechet(statistics.moments, statistics.moments) == pytest.approx(0, abs=1e-12)


def test_adms_references_give_the_distance_to_the_whole_set(pixels, quarters, monkeypatch, tmp_path):
    """Its batches are some of the set whose moments stand beside them, by Inception's features and no others."""
    monkeypatch.setattr("steersman.lab.metrics.features.WIDTH", 12)
    inception = Extractor(name="inception", embed=quarters.embed)
    samples = read_images(write(tmp_path / "samples", pixels(14, bright=20)))
    whole = statistics_of(read_images(write(tmp_path / "whole", pixels(40, bright=40))), quarters).moments
    some = np.stack(pixels(13))
    np.savez(tmp_path / "adm.npz", arr_0=some, mu=whole.mean, sigma=whole.root.T @ whole.root)
    np.savez(tmp_path / "some.npz", arr_0=some)
    for features in (inception, quarters):
        found = evaluate(samples, read_reference(tmp_path / "adm.npz"), features=features, resamples=2)
        expected = evaluate(samples, read_reference(tmp_path / "some.npz"), features=features, resamples=2)
        held = statistics_of(samples, features).moments
        distance = frechet(held, whole) if features is inception else expected["fid"].value
        assert found["fid"].value == pytest.approx(distance, rel=1e-6)
        assert found["recall"] == expected["recall"]
        assert found["kid"] == expected["kid"]
    assert found["fid"].value != pytest.approx(frechet(held, whole), rel=1e-2)
    write_statistics(tmp_path / "ours.npz", statistics_of(read_images(tmp_path / "adm.npz"), inception))
    saved = evaluate(samples, read_reference(tmp_path / "ours.npz"), features=inception, resamples=2)
    assert saved["fid"].value == pytest.approx(frechet(held, whole), rel=1e-6)
    assert saved["recall"] == found["recall"]
