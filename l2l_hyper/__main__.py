"""``python -m l2l_hyper`` is ``l2l-hyper``."""

from __future__ import annotations

from .allocator import keep_memory
from .stopping import catch_signals
from .terminal import open_streams

__all__ = ["main"]


def main() -> None:
    """Run the command line; the signals are caught before all that takes long to load."""
    catch_signals()
    open_streams()
    keep_memory()
    from .cli import main

    main()


if __name__ == "__main__":
    main()
