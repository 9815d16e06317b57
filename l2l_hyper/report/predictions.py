"""Predictions for files: a CSV file and a picture of the episode."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ..experiment.prediction import Prediction
from ..files import cannot_write, write_atomically
from .episode import episode_figure
from .escape import for_csv
from .style import render

__all__ = ["predictions_csv", "write_predictions"]


def predictions_csv(prediction: Prediction) -> str:
    """One line per file: its name, the predicted class, and the probability of each class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(for_csv, ["file", "predicted", *prediction.classes]))
    for path, name, shares in zip(
        prediction.files, prediction.predicted, prediction.probabilities.tolist(), strict=True
    ):
        writer.writerow(map(for_csv, [path.name, name, *shares]))
    return text.getvalue()


def write_predictions(folder: Path, prediction: Prediction) -> list[str]:
    """Write ``predictions.csv``, ``episode.png`` and ``episode.pdf``, and return these names.

    Raises:
        InputError: when a file cannot be written.
    """
    figure = episode_figure(
        prediction.support,
        prediction.support_labels,
        prediction.query,
        prediction.probabilities,
        class_names=prediction.classes,
    )
    files: dict[str, str | bytes] = {
        "predictions.csv": predictions_csv(prediction),
        "episode.png": render(figure, "png"),
        "episode.pdf": render(figure, "pdf"),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    for name, content in files.items():
        write_atomically(folder / name, content)
    return list(files)
