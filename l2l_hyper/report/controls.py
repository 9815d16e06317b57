"""The controls of a comparison: the same trained weights, tested with something else than what they generated."""

from __future__ import annotations

import numpy as np

from .columns import Scale
from .summary import Summary, paired

__all__ = ["CONTROLS_NOTE", "control_table"]

CONTROLS_NOTE = (
    "Controls: the same trained weights, tested with something else than what they generated, on the first test "
    "episodes. Difference: from the method itself on these episodes ± 95 % interval, as in the table above."
)


def control_table(summary: Summary) -> list[list[str]]:
    """Titles and rows of the table of controls; empty where no method has any."""
    scale, rows = Scale.of(summary), []
    for row in summary.rows:
        held = [
            (c.control, np.asarray(c.scores), record.scores)
            for record in row.records
            for c in record.result.controls
            if c.shots == summary.experiment.shots
        ]
        for control in dict.fromkeys(name for name, _, _ in held):
            pairs = [(scores, own) for name, scores, own in held if name == control]
            episodes = min(len(scores) for scores, _ in pairs)
            if episodes < 2:
                continue
            ours, theirs = zip(*((scores[:episodes], own[:episodes]) for scores, own in pairs), strict=True)
            difference, _ = paired(ours, theirs)
            rows.append(
                [row.label, control, f"{episodes:,}", scale.number(float(np.mean(ours))), scale.signed(difference)]
            )
    metric = summary.metric
    return [["method", "control", "episodes", metric.name + " %" * metric.percent, "difference"], *rows] if rows else []
