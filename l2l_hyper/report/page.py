"""A whole report as one HTML file that needs nothing else: tables, figures, protocol, commands and environment."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from .columns import columns, describe, notes
from .controls import CONTROLS_NOTE, control_table
from .escape import for_html
from .summary import Summary

__all__ = ["Picture", "to_html"]


@dataclass(frozen=True)
class Picture:
    """A figure of the page: an SVG file, and what it shows."""

    svg: bytes
    caption: str

    @property
    def source(self) -> str:
        """The figure as an address."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


def to_html(summaries: Sequence[Summary], pictures: Sequence[Picture]) -> str:
    """The page of an experiment, with one summary for each number of shots.

    No text of a record becomes markup: each goes through :func:`~l2l_hyper.report.escape.for_html`.
    """
    template = resources.files(__package__).joinpath("page.html.jinja").read_text("utf-8")
    environment = Environment(undefined=StrictUndefined, finalize=for_html, trim_blocks=True, lstrip_blocks=True)
    first = summaries[0]
    records = [record for row in first.rows for record in row.records]
    environments = {json.dumps(record.provenance.environment): record.provenance.environment for record in records}
    return environment.from_string(template).render(
        summary=first,
        tables=[
            {
                "shots": summary.experiment.shots,
                "about": describe(summary),
                "columns": columns(summary),
                "rows": summary.rows,
                "notes": notes(summary),
                "controls": control_table(summary),
            }
            for summary in summaries
        ],
        controls_note=CONTROLS_NOTE,
        pictures=pictures,
        settings=_texts(asdict(first.experiment)),
        options={row.label: _texts(row.records[0].run.options) for row in first.rows},
        commands=list(dict.fromkeys(record.provenance.command for record in records)),
        environments=[_texts(values) for values in environments.values()],
        finished=max(record.finished for record in records),
    )


def _texts(values: Any) -> dict[str, str]:
    return {str(name): value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
