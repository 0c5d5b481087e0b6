"""ADM's noise-aware classifiers: each is the network that is written out for the denoisers' tests."""

import pytest
import torch

from denoisers.adm_reference import Reference, apart
from steersman.errors import InputError, Notice
from steersman.models.classifiers import load_classifier
from steersman.models.denoisers.adm import CLASSIFIERS, DENOISERS, read_layout
from steersman.schedule import EDM, VP, Flow

CLOSE = 1e-5  # float32's rounding through some ten layers, and back, measured 4e-6
TIMES = torch.tensor([7.0, 500.0, 999.0])
NETWORKS = {
    "legacy": {"head_channels": 16, "multipliers": (1, 2, 2), "blocks": 2, "attended": (1,)},
    "new": {"head_channels": 8, "attended": (0, 1), "new": True},
    "half a multiplier": {"width": 64, "multipliers": (0.5, 1), "head_channels": 32, "size": 16},
    "mean": {"heads": 4, "pool": "mean", "size": 16},
    "convolutions, added time": {"heads": 2, "residual": False, "scale_shift": False, "blocks": 3},
}


def made(tmp_path, **settings):
    reference = Reference(**{"pool": "attention", "outputs": 5} | settings)
    torch.save(reference.tensors, tmp_path / "mine.pt")
    return reference, f"adm-classifier:{tmp_path / 'mine.pt'}?{reference.settings()}"


@pytest.mark.few(3)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_network(name, tmp_path):
    reference, spec = made(tmp_path, **NETWORKS[name])
    classifier = load_classifier(spec)
    assert classifier.names == tuple("01234")
    assert classifier.noise_aware
    assert torch.equal(classifier.schedule.alpha_bar, VP.linear().alpha_bar)
    assert classifier.preprocess.size == reference.size
    x_t = torch.randn(3, 3, reference.size, reference.size, generator=torch.Generator().manual_seed(1))
    theirs, ours = x_t.clone().requires_grad_(), x_t.clone().requires_grad_()
    expected, found = reference(theirs, TIMES), classifier(ours, VP.linear().at_time(TIMES))
    assert apart(found, expected) < CLOSE
    gradients = [
        torch.autograd.grad(logits.log_softmax(1)[:, 2].sum(), at)[0]
        for logits, at in ((expected, theirs), (found, ours))
    ]
    assert apart(*gradients) < CLOSE
    assert not any(weight.requires_grad for weight in classifier.parameters())
    for change in ({"attention": "legacy" if reference.new else "new"}, {"heads": 1, "head_channels": None}):
        other = load_classifier(f"adm-classifier:{tmp_path / 'mine.pt'}?{reference.settings(**change)}")
        assert apart(other(x_t, VP.linear().at_time(TIMES)), expected) > 0.01


def test_it_is_told_of_any_schedule_on_its_own(tmp_path):
    reference, spec = made(tmp_path, head_channels=16)
    own, x_t = VP.cosine().at_time(TIMES), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = reference(x_t, TIMES)
    for schedule in (VP.linear(), EDM(), Flow()):
        level = schedule.at_ratio(own.sigma / own.alpha)
        image = x_t * (level.alpha / own.alpha).float()[:, None, None, None]
        # time 999 of the cosine is beyond the linear schedule's noise
        rows = slice(2) if isinstance(schedule, VP) else slice(3)
        found = load_classifier(f"{spec}&schedule=cosine")(image, level)
        assert apart(found[rows], expected[rows]) < CLOSE
        assert apart(load_classifier(spec)(image, level)[rows], expected[rows]) > 0.01


@pytest.mark.parametrize(("steps", "schedule"), [(2000, "linear"), (4000, "cosine"), (1000, "cosine")])
def test_one_that_was_trained_on_more_times_is_told_those(steps, schedule, tmp_path, recwarn):
    reference, spec = made(tmp_path, head_channels=16)
    spec = f"{spec}&diffusion_steps={steps}&noise_schedule={schedule}"
    classifier, scaled = (load_classifier(f"{spec}&rescale_timesteps={each}") for each in ("False", "True"))
    assert not [each for each in recwarn if issubclass(each.category, Notice)]
    assert len(classifier.schedule.alpha_bar) == steps
    x_t = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([3.0, steps / 2, steps - 1])
    level = classifier.schedule.at_time(times)
    assert apart(classifier(x_t, level), reference(x_t, times)) < CLOSE
    assert apart(scaled(x_t, level), reference(x_t, times * 1000 / steps)) < CLOSE


def test_what_is_left_open_is_taken_with_a_notice(tmp_path, recwarn):
    _, spec = made(tmp_path, head_channels=16)
    load_classifier(spec)
    (said,) = (str(each.message) for each in recwarn if issubclass(each.category, Notice))
    assert "diffusion_steps=1000, schedule=linear, rescale_timesteps=False taken" in said


def test_all_flags_of_a_training_script_can_be_stated(tmp_path):
    _, spec = made(tmp_path, head_channels=16)
    flags = "image_size=8&classifier_width=32&classifier_depth=1&classifier_attention_resolutions=4"
    flags += "&classifier_use_scale_shift_norm=True&classifier_resblock_updown=True&classifier_pool=attention"
    assert load_classifier(f"{spec}&{flags}&classifier_use_fp16=True&num_classes=5").names == tuple("01234")
    for wrong in ("classifier_pool=adaptive", "num_classes=4", "classifier_width=64", "attention_resolutions=8"):
        with pytest.raises(InputError, match="by the file's tensors"):
            load_classifier(f"{spec}&{wrong}")


def test_the_features_are_what_the_last_layer_sees(tmp_path):
    reference, spec = made(tmp_path, head_channels=16)
    classifier, x_t, level = load_classifier(spec), torch.ones(2, 3, 8, 8), VP.linear().at_time(5)
    weight, bias = (reference.tensors[f"out.2.c_proj.{kind}"] for kind in ("weight", "bias"))
    features = classifier.features(x_t, level)
    assert apart(features @ weight[..., 0].T + bias, classifier(x_t, level)) < CLOSE


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_released_files_are_known(size):
    multipliers = {
        64: (1, 2, 3, 4),
        128: (1, 1, 2, 3, 4),
        256: (1, 1, 2, 2, 4, 4),
        512: (0.5, 1, 1, 2, 2, 4, 4),
    }[size]
    levels, blocks = len(multipliers), 4 if size == 64 else 2
    reference = Reference(
        width=128,
        multipliers=multipliers,
        blocks=blocks,
        attended=range(levels - 3, levels),
        head_channels=64,
        pool="attention",
        outputs=1000,
        size=size,
        device="meta",
    )
    known = CLASSIFIERS[f"{size}x{size}_classifier.pt"]
    found = read_layout(reference.tensors, blocks)
    assert found == read_layout(reference.tensors) and known.other_than(found) is None
    assert (known.size, known.head_channels, known.heads, known.attention) == (size, 64, None, "legacy")
    denoiser = DENOISERS[f"{size}x{size}_diffusion.pt"]
    assert (known.diffusion_steps, known.schedule) == (denoiser.diffusion_steps, denoiser.schedule)
    assert known.schedule == ("cosine" if size == 64 else "linear")


def test_how_many_blocks_a_level_has_is_asked_where_no_shape_says_it(tmp_path):
    """Six blocks of one width, none with an attention: levels of one, two or five, and what halves the size."""
    settings = {"head_channels": 16, "multipliers": (1, 1), "blocks": 2, "attended": ()}
    reference, spec = made(tmp_path, **settings)
    with pytest.raises(InputError, match="blocks must be 1 or 2 or 5, the residual blocks in each level, got none"):
        load_classifier(spec)
    x_t, level = torch.ones(1, 3, 8, 8), VP.linear().at_time(5)
    expected = reference(x_t, level.time[None].float())
    assert apart(load_classifier(f"{spec}&blocks=2")(x_t, level), expected) < CLOSE
    with pytest.raises(InputError, match="blocks must be .*, got 4"):
        load_classifier(f"{spec}&blocks=4")


@pytest.mark.parametrize(
    ("settings", "asked", "message"),
    [
        ({"pool": None, "outputs": 6}, "", "it must be a classifier, got a denoiser"),
        ({}, "&size=32", "size must be 8, by the number of its attention pool's positions, got 32"),
        ({}, "&depth=2", "unknown setting of adm-classifier 'depth'"),
    ],
)
def test_what_cannot_be_is_refused(settings, asked, message, tmp_path):
    _, spec = made(tmp_path, heads=4, **settings)
    with pytest.raises(InputError, match=message) as error:
        load_classifier(spec + asked)
    assert "\n" not in str(error.value)


def test_the_size_is_asked_where_no_pool_tells_it(tmp_path):
    reference, spec = made(tmp_path, heads=4, pool="mean")
    assert load_classifier(spec).preprocess.size == 8
    with pytest.raises(InputError, match="size=N must be .* a multiple of 2, got none"):
        load_classifier(f"adm-classifier:{tmp_path / 'mine.pt'}?{reference.settings(size=None)}")


def test_another_head_or_a_missing_file_is_refused(tmp_path):
    reference, spec = made(tmp_path, heads=4)
    head = {key: tensor for key, tensor in reference.tensors.items() if not key.startswith("out.2")}
    torch.save(head, tmp_path / "mine.pt")
    with pytest.raises(InputError, match="its head must be an attention pool, or the mean .*, got another"):
        load_classifier(spec)
    with pytest.raises(InputError, match="fetch https://.*/64x64_classifier.pt and put it there"):
        load_classifier(f"adm-classifier:{tmp_path}/64x64_classifier.pt")


def test_images_of_another_size_are_resized_or_refused(tmp_path):
    _, spec = made(tmp_path, heads=4)
    level = VP.linear().at_time(5)
    assert load_classifier(spec)(torch.ones(1, 3, 32, 32), level).shape == (1, 5)
    with pytest.raises(InputError, match="images must be of its own size, of 16 positions, got 8 x 8"):
        load_classifier(spec, preprocess="raw")(torch.ones(1, 3, 16, 16), level)
