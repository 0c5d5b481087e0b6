import pytest
import torch


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
