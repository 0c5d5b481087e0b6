import pytest
import torch

from steersman.errors import InputError
from steersman.guidance import Adam, Chain, Clip, Ema, Identity, Momentum, Rms

F64 = torch.float64
ROUNDING = {"rtol": 1e-13, "atol": 1e-14}
"""Float64's, through sums of a few terms of order 1."""

EVERY = [
    Identity(),
    Ema(beta=0.9),
    Momentum(beta=0.9),
    Adam(),
    Adam(corrected=True),
    Rms(),
    Rms(by="rms"),
    Clip(norm=0.5),
    Chain([Rms(), Ema(beta=0.5), Clip()]),
]


def run(stabilizer, gradients):
    state, used = stabilizer.init(gradients[0]), []
    for g in gradients:
        out, state = stabilizer.update(g, state)
        used.append(out)
    return used


@pytest.fixture
def gradients(draw):
    return list(draw(5, 2, 3, 4, 4))


def norm(x):
    return x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def test_identity(gradients):
    assert run(Identity(), gradients) == gradients


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.99])
def test_ema_is_a_geometric_sum(gradients, beta):
    """nrCG eq. 7 from ``m = 0``, without bias correction: ``m_n = (1 - beta) sum_k beta^(n-k) g_k``."""
    for n, used in enumerate(run(Ema(beta=beta), gradients)):
        expected = sum((1 - beta) * beta ** (n - k) * gradients[k] for k in range(n + 1))
        torch.testing.assert_close(used, expected, **ROUNDING)


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_momentum_is_the_heavy_ball(gradients, beta):
    """``m_n = sum_k beta^(n-k) g_k``: the first gradient in full, a steady one grown to ``1 / (1 - beta)``."""
    for n, used in enumerate(run(Momentum(beta=beta), gradients)):
        torch.testing.assert_close(used, sum(beta ** (n - k) * gradients[k] for k in range(n + 1)), **ROUNDING)
    *_, last = run(Momentum(beta=0.9), [torch.ones(1, 1, 1, 1, dtype=F64)] * 400)
    assert float(last) == pytest.approx(10, rel=1e-12)  # 0.9^400 = 5e-19


@pytest.mark.parametrize(("beta1", "beta2", "eps"), [(0.9, 0.999, 1e-4), (0.5, 0.7, 1e-2)])
def test_adam_is_a_ratio_of_geometric_sums(gradients, beta1, beta2, eps):
    """nrCG eq. 8, likewise, with eps outside of the root."""
    for n, used in enumerate(run(Adam(beta1=beta1, beta2=beta2, eps=eps), gradients)):
        m = sum((1 - beta1) * beta1 ** (n - k) * gradients[k] for k in range(n + 1))
        v = sum((1 - beta2) * beta2 ** (n - k) * gradients[k] ** 2 for k in range(n + 1))
        torch.testing.assert_close(used, m / (v.sqrt() + eps), rtol=1e-12, atol=1e-14)  # eps enlarges the rounding


def test_adams_defaults_are_the_papers():
    """For a gradient of 1 always: ``m_n = 1 - 0.9^n``, ``v_n = 1 - 0.999^n``."""
    for n, used in enumerate(run(Adam(), [torch.ones(1, 1, 1, 1, dtype=F64)] * 5), start=1):
        assert float(used) == pytest.approx((1 - 0.9**n) / ((1 - 0.999**n) ** 0.5 + 1e-4), rel=1e-12)


@pytest.mark.parametrize(("beta1", "beta2", "eps"), [(0.9, 0.999, 1e-8), (0.0, 0.817, 1e-8), (0.254, 0.726, 1e-2)])
def test_adam_corrected_is_the_optimisers(gradients, beta1, beta2, eps):
    """Kingma & Ba's algorithm as torch has it: at a rate of 1, its steps upwards are what is used."""
    weight = torch.zeros_like(gradients[0], requires_grad=True)
    optimiser = torch.optim.Adam([weight], lr=1.0, betas=(beta1, beta2), eps=eps, maximize=True)
    for g, used in zip(gradients, run(Adam(beta1=beta1, beta2=beta2, eps=eps, corrected=True), gradients), strict=True):
        before = weight.detach().clone()
        weight.grad = g.clone()
        optimiser.step()
        torch.testing.assert_close(used, weight.detach() - before, rtol=1e-11, atol=1e-13)


def test_normalise_keeps_the_direction(gradients):
    for g, by_norm, by_rms in zip(gradients, run(Rms(), gradients), run(Rms(by="rms"), gradients), strict=True):
        torch.testing.assert_close(by_norm * norm(g), g, **ROUNDING)
        torch.testing.assert_close(by_rms, by_norm * (3 * 4 * 4) ** 0.5, **ROUNDING)


def test_clip_shortens_what_is_too_long_and_nothing_else(draw):
    direction = draw(3, 3, 4, 4)
    g = direction / norm(direction) * torch.tensor([0.3, 0.7, 50.0]).reshape(3, 1, 1, 1)
    (used,) = run(Clip(norm=0.7), [g])
    expected = torch.tensor([0.3, 0.7, 0.7], dtype=F64).reshape(3, 1, 1, 1)
    torch.testing.assert_close(norm(used), expected, rtol=1e-7, atol=0)  # g was scaled by float32 numbers
    torch.testing.assert_close(used, g * expected / norm(g), rtol=1e-7, atol=0)
    assert torch.equal(used[0], g[0])


def test_a_chain_shows_the_gradient_to_its_first_link_first(gradients):
    clipped = run(Clip(norm=2.0), gradients)
    first = run(Chain([Clip(norm=2.0), Ema(beta=0.5)]), gradients)
    last = run(Chain([Ema(beta=0.5), Clip(norm=2.0)]), gradients)
    averaged = run(Ema(beta=0.5), gradients)
    for n in range(5):
        torch.testing.assert_close(first[n], sum(0.5 ** (n - k + 1) * clipped[k] for k in range(n + 1)), **ROUNDING)
        torch.testing.assert_close(last[n], averaged[n] * (2 / norm(averaged[n])).clamp(max=1), **ROUNDING)
    assert not torch.allclose(first[4], last[4], rtol=1e-2)


def test_the_links_of_a_chain_have_states_of_their_own(gradients):
    used = run(Chain([Ema(beta=0.9), Ema(beta=0.5)]), gradients)
    twice = run(Ema(beta=0.5), run(Ema(beta=0.9), gradients))
    assert all(torch.equal(one, other) for one, other in zip(used, twice, strict=True))


@pytest.mark.parametrize("stabilizer", EVERY, ids=repr)
def test_a_zero_gradient_stays_zero(stabilizer):
    for used in run(stabilizer, [torch.zeros(2, 1, 3, 3)] * 3):
        assert torch.equal(used, torch.zeros(2, 1, 3, 3))


@pytest.mark.parametrize("stabilizer", EVERY, ids=repr)
def test_an_image_is_stabilised_by_itself(stabilizer, gradients):
    together = run(stabilizer, gradients)
    for row in range(2):
        alone = run(stabilizer, [g[row : row + 1] for g in gradients])
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[row : row + 1], other, **ROUNDING)


@pytest.mark.parametrize("stabilizer", EVERY, ids=repr)
def test_states_lead_with_the_batch(stabilizer):
    def leaves(state):
        return [leaf for each in state for leaf in (leaves(each) if isinstance(each, tuple) else [each])]

    assert all(leaf.shape[0] == 7 for leaf in leaves(stabilizer.init(torch.zeros(7, 1, 2, 2))))


@pytest.mark.parametrize(
    ("stabilizer", "settings", "message"),
    [
        (Ema, {"beta": 1.0}, "stabilizer.beta must be at least 0 and below 1, got 1.0"),
        (Ema, {"beta": -0.1}, "stabilizer.beta must be at least 0 and below 1, got -0.1"),
        (Momentum, {"beta": 1.0}, "stabilizer.beta must be at least 0 and below 1, got 1.0"),
        (Adam, {"beta1": 1.0}, "stabilizer.beta1 must be at least 0 and below 1, got 1.0"),
        (Adam, {"beta2": 2.0}, "stabilizer.beta2 must be at least 0 and below 1, got 2.0"),
        (Adam, {"eps": 0.0}, "stabilizer.eps must be above 0, got 0.0"),
        (Clip, {"norm": 0.0}, "stabilizer.norm must be above 0, got 0.0"),
        (Clip, {"norm": float("nan")}, "Clip.norm must be a finite number, got nan"),
        (Rms, {"by": "nrom"}, "unknown stabilizer.by 'nrom'; did you mean 'norm'"),
    ],
)
def test_refuses_settings(stabilizer, settings, message, unchecked):
    with pytest.raises(InputError, match=message):
        stabilizer(**settings)
