"""What makes no sense as infinity or NaN is refused in one line by whatever is built with it, also in Python."""

import dataclasses
import math

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from steersman.errors import InputError
from steersman.guidance import Chain, Cone, Constant, Ema, Guide, Product, Sum, Switch, TargetLogit, Toward
from steersman.lab.run import Run
from steersman.lab.train.classifier import ClassificationLoss
from steersman.lab.train.denoiser import DenoisingLoss, EDMLoss
from steersman.lab.train.loop import Training
from steersman.lab.tune import Bounds
from steersman.lab.tune.search import Range
from steersman.models.classifiers.preprocess import Preprocess
from steersman.recipes.axes import AXES, FIXED
from steersman.sampling import DDIM, DiffusersSampler, Heun, Particles, Recurrence, levels_of, sample
from steersman.schedule import EDM, VP, Flow

REGISTERED = [(axis, kind) for axis, kinds in AXES.items() for kind in kinds]
NOT_FINITE = (math.inf, -math.inf, math.nan)


def logits(image, level=None):
    return image.flatten(1)


def numbers(made):
    """The fields of a dataclass that are numbers, by their defaults."""
    fields = [each for each in dataclasses.fields(made) if each.init]
    return [each for each in fields if isinstance(each.default, int | float) and not isinstance(each.default, bool)]


def refused(build):
    with pytest.raises(InputError) as said:
        build()
    assert "\n" not in str(said.value)
    return str(said.value)


@pytest.mark.parametrize(("axis", "kind"), REGISTERED, ids=lambda name: name)
def test_every_registered_class_refuses_numbers_that_are_not_finite(axis, kind, unchecked):
    made = AXES[axis][kind]
    parts = {each.name: logits for each in dataclasses.fields(made) if each.name in FIXED}
    for each in numbers(made):
        for value in NOT_FINITE:
            if value == each.default:  # a limit that is none
                assert getattr(made(**parts, **{each.name: value}), each.name) == value
            else:
                assert each.name in refused(lambda: made(**parts, **{each.name: value}))  # noqa: B023


OTHERS = {
    Guide: {"objective": TargetLogit(classifier=logits)},
    EDM: {},
    Flow: {},
    Preprocess: {},
    Run: {"targets": ("baseball",)},
    Training: {"images": 1},
    EDMLoss: {},
    DenoisingLoss: {"schedule": VP.cosine()},
    ClassificationLoss: {},
}


@pytest.mark.parametrize("made", OTHERS, ids=lambda made: made.__name__)
def test_other_settings_do_as_well(made, unchecked):
    made(**OTHERS[made])
    for each in numbers(made):
        for value in NOT_FINITE:
            refused(lambda: made(**OTHERS[made] | {each.name: value}))  # noqa: B023


@pytest.mark.parametrize("value", NOT_FINITE)
def test_so_does_what_holds_several(value, unchecked):
    objective = TargetLogit(classifier=logits)
    for build in (
        lambda: Sum([(1.0, objective), (value, objective)]),
        lambda: Switch(above=objective, below=objective, at=value),
        lambda: Cone(around=objective, within=objective, angle=value),
        lambda: Toward(objective=objective, target=value),
        lambda: Guide(objective=objective, scale=value, stabilizer=Chain([Ema()]), weight=Product([Constant()])),
        lambda: Preprocess(mean=(0.0, value, 0.0)),
        lambda: Run(blend={"baseball": value}),
        lambda: Run(targets=("baseball",), cfg_scale=value),
        lambda: Range(low=0.0, high=value, integer=False),
        lambda: Bounds(budget=value),
        lambda: DiffusersSampler(EulerDiscreteScheduler(), s_noise=value),
        lambda: AXES["sampler"]["diffusers"](scheduler="EulerDiscrete", settings={"s_noise": value}),
        lambda: VP(alpha_bar=torch.tensor([0.9, value])),
    ):
        refused(build)


def test_a_limit_that_is_none_may_be_said():
    EulerDiscreteScheduler()
    assert DiffusersSampler(EulerDiscreteScheduler(), s_tmax=math.inf).settings == {"s_tmax": math.inf}
    assert AXES["sampler"]["diffusers"](scheduler="EulerDiscrete", settings={"s_tmax": math.inf})
    assert Particles(ratio_max=math.inf) == Particles() and Recurrence(ratio_max=math.inf) == Recurrence()
    assert Heun(ratio_max=math.inf) == Heun()


@pytest.mark.parametrize("value", NOT_FINITE)
def test_the_classifier_free_scale_is_finite(mixture, value, unchecked):
    with pytest.raises(InputError, match="cfg_scale must be a finite number, got"):
        sample(mixture, DDIM(), condition={"label": torch.tensor([0]), "cfg_scale": value}, steps=1)


@pytest.mark.parametrize(
    ("ratio_min", "ratio_max"), [(math.nan, 1.0), (0.0, math.nan), (math.inf, math.inf), (1.0, 0.5)]
)
def test_so_is_the_range_of_levels(mixture, ratio_min, ratio_max):
    with pytest.raises(InputError, match="ratio_min and ratio_max must satisfy 0 <= ratio_min < ratio_max, got"):
        sample(mixture, DDIM(), ratio_min=ratio_min, ratio_max=ratio_max, steps=2)
    assert levels_of(DDIM(), VP.cosine(), 2, ratio_min=0.0, ratio_max=math.inf)


@pytest.mark.parametrize("option", ["cfg-scale", "scale"])
def test_on_the_command_line(denoiser, tmp_path, call, option):
    for value in ("inf", "nan"):
        code, _, said = call(
            "sample", "--denoiser", denoiser, f"--{option}", value, "--target", 0, "--out", tmp_path / "x"
        )
        assert code == 2 and said.count("\n") == 1 and "must be a finite number" in said
    assert not (tmp_path / "x").exists()
