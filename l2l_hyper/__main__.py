"""``python -m l2l_hyper`` is ``l2l-hyper``."""

from l2l_hyper.cli import main

if __name__ == "__main__":
    main()
