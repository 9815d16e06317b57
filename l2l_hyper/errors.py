"""The one exception for bad input: its message says what was expected, what arrived and what to try."""

__all__ = ["InputError"]


class InputError(ValueError):
    """What the user gave cannot be used.

    The command line prints the message on one line and exits with code 2; library code raises it where a
    plain ``ValueError`` would be raised, so ``except ValueError`` keeps working.
    """
