import pytest


class Recording:
    """The mixture, and what it was asked."""

    def __init__(self, mixture):
        self.mixture, self.schedule, self.shape, self.classes = mixture, mixture.schedule, mixture.shape, ()
        self.decode, self.asked, self.predicted = mixture.decode, [], []

    def __call__(self, x_t, level, **condition):
        prediction = self.mixture(x_t, level, **condition)
        self.asked.append((x_t.detach().clone(), level))
        self.predicted.append(prediction.x0_hat.detach().clone())
        return prediction


@pytest.fixture
def recording(mixture):
    return Recording(mixture)
