"""The recipe elucd-dit: ``eps_null + w (Delta - s |Delta| g / |g|)``, on the mixture and through a VAE's decoder."""

import pytest
import torch
from torch import nn

from steersman.denoise import eps_from_x0
from steersman.errors import InputError
from steersman.models.denoisers import load_denoiser
from steersman.recipes import load_recipe
from steersman.sampling import sample

F64 = torch.float64
LABEL, TARGET, W, S = torch.tensor([0, 2, 1, 0]), [1, 2, 0, 2], 1.5, 0.7
CHANGES = ["smoothing=none", f"scale={S}"]


def length(x):
    return x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def guided(eps, null, g):
    """EluCD's Algorithm 3."""
    difference = eps - null
    return null + W * (difference - S * length(difference) * g / length(g))


def log_likelihood(logits):
    """The joint's logit less half the marginal's temperature."""
    return logits[torch.arange(len(TARGET)), TARGET] - (0.5 * logits).logsumexp(1)


def ddpm(x, eps, fraction, level, next, draw):
    """One step of Ho et al., or into the clean image, of the guided noise."""
    x0 = (x - level.sigma * eps) / level.alpha
    a = (level.alpha / next.alpha) ** 2
    beta = 1 - a
    mean = (next.alpha * beta * x0 + a.sqrt() * next.sigma**2 * x) / level.sigma**2
    if not next.sigma:
        return mean
    small = beta * next.sigma**2 / level.sigma**2
    variance = small if fraction is None else beta**fraction * small ** (1 - fraction)
    return mean + variance.sqrt() * draw


def walk(denoiser, recipe, classifier, draws, condition=None):
    return sample(
        denoiser,
        recipe.sampler(),
        guides=recipe.bind_prepared(classifier),
        target=TARGET,
        seeds=range(len(TARGET)),
        noise=draws,
        dtype=F64,
        condition={"label": LABEL, "cfg_scale": W} if condition is None else condition,
        **recipe.sampling(),
    )


def test_the_formula_on_the_mixture(mixture, posterior, draw):
    """Six steps of the exact denoisers and the exact gradient of a classifier of clean images, unclipped."""
    recipe = load_recipe("elucd-dit", [*CHANGES, "sampling.steps=6", "input.clip=false", "sampling.clip=false"])
    draws = [draw(4, 2, 1, 1) for _ in range(6)]

    def classifier(image, level=None):
        return posterior(image, mixture.schedule.at_time(0))

    x, levels = draws[0], mixture.schedule.levels(6)
    for index, (level, next) in enumerate(zip(levels, levels[1:], strict=False)):
        null, alone = mixture(x, level).x0_hat, mixture(x, level, label=LABEL).x0_hat
        input = (null + W * (alone - null)).requires_grad_()
        (g,) = torch.autograd.grad(log_likelihood(classifier(input)).sum(), input)
        eps = guided(eps_from_x0(x, alone, level), eps_from_x0(x, null, level), g)
        x = ddpm(x, eps, None, level, next, draws[index + 1] if index < 5 else None)
    torch.testing.assert_close(walk(mixture, recipe, classifier, draws), x, rtol=0, atol=1e-10)


def test_two_steps_of_a_dit_pipeline(dit_folder, draw):
    """The gradient is taken at the latent, through the VAE; the classifier sees images clipped to [-1, 1]."""
    denoiser = load_denoiser(str(dit_folder), dtype=F64)
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 14**2, 4)).to(F64)
    recipe = load_recipe("elucd-dit", [*CHANGES, "sampling.steps=2"])
    draws = [draw(4, 4, 8, 8) for _ in range(2)]
    x, levels = draws[0], denoiser.schedule.levels(2)
    for level, next, noise in zip(levels, levels[1:], [draws[1], None], strict=False):
        time = level.time.expand(4)
        eps, learned = denoiser.network(x, time, class_labels=LABEL).sample.chunk(2, dim=1)
        null, _ = denoiser.network(x, time, class_labels=torch.full((4,), 4)).sample.chunk(2, dim=1)
        input = ((x - level.sigma * (null + W * (eps - null))) / level.alpha).detach().requires_grad_()
        image = denoiser.vae.decode(input / 0.18215).sample.clamp(-1, 1)
        (g,) = torch.autograd.grad(log_likelihood(network(image)).sum(), input)
        assert (g.abs().amax((1, 2, 3)) > 0).all()
        x = ddpm(x, guided(eps, null, g), (learned + 1) / 2, level, next, noise)
    found = walk(denoiser, recipe, lambda image, level=None: network(image), draws)
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)


def test_a_denoiser_without_its_unconditional_prediction_is_refused(mixture, posterior):
    recipe = load_recipe("elucd-dit", [*CHANGES, "sampling.steps=2"])
    for condition in ({}, {"label": LABEL}):
        with pytest.raises(InputError, match="weight difference needs the prediction without the label too"):
            walk(mixture, recipe, posterior, None, condition=condition)
