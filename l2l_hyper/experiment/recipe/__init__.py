"""The training recipe: options that every method of a comparison gets, and what each of them does."""

from .options import Recipe

__all__ = ["Recipe"]
