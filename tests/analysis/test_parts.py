"""Parts on disk: one order, one set of settings."""

import numpy as np
import pytest
import torch

from steersman.errors import InputError
from steersman.lab.analysis.parts import Parts

SETTINGS = {"denoiser": "a", "views": ("noisy",), "high": float("inf")}
KEY = ("a/b", "τ 1, ?")


def test_what_is_left_and_what_was_measured(tmp_path):
    parts = Parts(tmp_path / "out", SETTINGS, 7)
    assert not (tmp_path / "out").exists()  # nothing before there is something
    assert parts.missing(3) == [[0, 1, 2], [3, 4, 5], [6]]
    parts.write([0, 1, 2], {KEY: torch.arange(6).reshape(3, 2)})
    again = Parts(tmp_path / "out", SETTINGS, 7)
    assert again.missing(2) == [[3, 4], [5, 6]]  # any other batch size
    again.write([5, 6], {KEY: torch.arange(10, 14).reshape(2, 2)})
    again.write([3, 4], {KEY: torch.arange(6, 10).reshape(2, 2)})
    assert again.missing(2) == []
    assert list(again.read()) == [KEY]
    np.testing.assert_array_equal(again.read()[KEY], np.arange(14).reshape(7, 2))


def test_a_part_that_was_being_written_is_not_read(tmp_path):
    parts = Parts(tmp_path, SETTINGS, 4)
    parts.write([0, 1], {KEY: torch.zeros(2, 1)})
    (tmp_path / "parts" / ".000002-000003.npz.1.part").write_bytes(b"half")
    assert parts.missing(4) == [[2, 3]]


def test_other_settings_are_refused(tmp_path):
    Parts(tmp_path, SETTINGS, 4).write([0], {KEY: torch.zeros(1, 1)})
    with pytest.raises(InputError, match="with denoiser 'a', not 'b'; give another --out"):
        Parts(tmp_path, SETTINGS | {"denoiser": "b"}, 4)
    with pytest.raises(InputError, match="with high"):
        Parts(tmp_path, {key: SETTINGS[key] for key in ("denoiser", "views")}, 4)


def test_refusals(tmp_path):
    with pytest.raises(InputError, match="batch-size must be at least 1, got 0"):
        Parts(tmp_path, SETTINGS, 4).missing(0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        Parts(tmp_path / "file", SETTINGS, 4).write([0], {KEY: torch.zeros(1, 1)})
