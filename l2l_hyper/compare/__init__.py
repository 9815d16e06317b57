"""Comparisons: records -> statistics -> tables, plots and reports; and the command line."""

__all__: list[str] = []
