"""The search: it finds an optimum that is known, and goes on as if it had not been stopped."""

import math

import pytest
import torch

from steersman.lab.tune.search import ANY, Search
from steersman.mixture import Mixture
from steersman.recipes import load_recipe
from steersman.sampling import sample

SPACE = {"kind": {ANY: {"near": {"x": "0.001..1000.0"}, "far": {"x": "0.001..1000.0", "y": "0..9"}}}}


def worth(values):
    """Of nearness to x = 3, and of cost: far is dearer and no better."""
    far = "y" in values["kind"]
    return -abs(math.log10(values["kind"]["x"] / 3)), 1.0 + far


def searched(file, count, **settings):
    search = Search(SPACE, file=file, larger=(True, False), **settings)
    while len(search.rows()) < count:
        proposal = search.ask()
        search.tell(worth(proposal.values), {"values": proposal.values})
    return search


def test_a_known_optimum_is_found(tmp_path):
    search = searched(tmp_path / "log", 40)
    best = max((row["values"] for row in search.rows()), key=lambda values: worth(values))
    assert worth(best)[0] > -0.1  # within a quarter of the optimum, in six decades
    late = [row["values"] for row in search.rows()[20:]]
    assert sum("y" not in values["kind"] for values in late) > 0.6 * len(late)
    assert all(worth(search.rows()[number]["values"])[1] == 1 for number in search.front())


def test_a_search_that_was_stopped_proposes_what_it_would_have(tmp_path):
    whole = searched(tmp_path / "whole", 16).rows()
    searched(tmp_path / "log", 12)
    stopped = Search(SPACE, file=tmp_path / "log", larger=(True, False))
    proposal = stopped.ask()
    again = Search(SPACE, file=tmp_path / "log", larger=(True, False)).ask()
    assert again == proposal and proposal.number == 12
    assert searched(tmp_path / "log", 16).rows() == whole


def test_a_journal_that_was_cut_off_is_mended(tmp_path):
    file, whole = tmp_path / "log", searched(tmp_path / "whole", 8).rows()
    searched(file, 5)
    (tmp_path / "log.lock").symlink_to(file)
    with file.open("ab") as journal:
        journal.write(b'{"op_code":5,"worker_i')
    assert searched(file, 8).rows() == whole


def test_points_come_first_and_are_not_lost_or_doubled(tmp_path):
    points = [{"kind": "near", "kind=near.x": 2.0}, {"kind": "far", "kind=far.x": 5.0}]
    searched(tmp_path / "log", 1, points=points)
    found = [row["values"] for row in searched(tmp_path / "log", 4, points=points).rows()]
    assert found[0] == {"kind": {"x": 2.0}}
    assert found[1]["kind"]["x"] == 5.0 and 0 <= found[1]["kind"]["y"] <= 9
    assert all(values["kind"]["x"] not in (2.0, 5.0) for values in found[2:])


def test_what_is_refused_is_proposed_less(tmp_path):
    search = Search(SPACE, file=tmp_path / "log", larger=(True, False))
    kinds = []
    for _ in range(40):
        values = search.ask().values
        kinds.append("y" in values["kind"])
        search.tell(None if kinds[-1] else worth(values), {})
    assert sum(kinds[20:]) <= 6  # of 20, where chance has half
    assert all(not kinds[number] for number in search.front())


@pytest.mark.long
def test_the_exact_scale_of_the_mixture_is_found(mixture, posterior, tmp_path):
    """With the exact classifier of noisy images, at scale 1, the samples are those of the model of the class alone."""
    recipe = load_recipe(
        "flow", ["input=noisy", "weight=constant", "sampling={steps: 6, spacing: logsnr, clip: false}"]
    )
    target = 2
    alone = Mixture(
        weights=torch.ones(1, dtype=torch.float64),
        means=mixture.means[target : target + 1],
        covariances=mixture.covariances[target : target + 1],
    )

    def drawn(denoiser, guides):
        walk = recipe.sampling() | {"ratio_min": 0.02, "ratio_max": 50.0}
        return sample(
            denoiser, recipe.sampler(), guides=guides, target=target, seeds=range(8), dtype=torch.float64, **walk
        )

    exact = drawn(alone, [])
    search = Search({"scale": "0.01..100.0"}, file=tmp_path / "log", larger=(False,))
    while len(search.rows()) < 25:
        scale = search.ask().values["scale"]
        away = drawn(mixture, recipe.changed({"scale": scale}).bind_prepared(posterior)) - exact
        search.tell([float(away.square().mean())], {"scale": scale})
    (best,) = search.front()
    assert search.rows()[best]["scale"] == pytest.approx(1, rel=0.25)
