"""What every test starts from: one thread, no window for plots, and nothing to go through that no test has made."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("MPLBACKEND", "Agg")

import torch  # noqa: E402

# The tensors of the tests are small: more threads only wait for each other, and the order of sums is fixed with one.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What has been imported by then stays, so that collecting garbage need not go through it."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # at the end some libraries complain of what has not been collected
