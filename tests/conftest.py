import os

import pytest
import torch
from hypothesis import settings

os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody answers there: no test reaches the Hub by accident

# The same examples on every machine and in every run: a failure is one of the code, never of the draw.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.fixture
def one_thread():
    """Two threads that wait for each other on a busy machine take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
