"""What every test starts from: one thread, and no window for plots."""

from __future__ import annotations

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import torch  # noqa: E402

# The tensors of the tests are small: more threads only wait for each other, and the order of sums is fixed with one.
torch.set_num_threads(1)
