"""A model card beside trained weights: what they are, in Markdown."""

from __future__ import annotations

import json
from pathlib import Path

from ..files import plain, write_atomically
from ..statistics import episode_interval
from ..terminal import one_line
from .checkpoint import checkpoint_path
from .config import Run
from .progress import score_text
from .records import Record

__all__ = ["card_path", "write_card"]

_CARD = """\
---
library_name: l2l_hyper
tags: [few-shot-learning, meta-learning]
---

# {label}, {tasksets} {form}

- Test: {score} (95 % interval over {test_episodes:,} episodes).
- Training: seed {seed}, {iterations:,} iterations, {episodes:,} episodes, {seconds:,.0f} s.
- Weights: those of iteration {selected:,}, with {validation} on {validation_episodes:,} validation episodes the best.
- Parameters: {parameters}.
- Made by l2l_hyper {version}, commit {commit}, on {finished}: `{command}`

```python
import l2l_hyper

learner = l2l_hyper.load("{file}")
```

## Configuration

```json
{configuration}
```
"""


def card_path(folder: Path, run: Run) -> Path:
    """Where the card of a run lies in the folder of its comparison."""
    return checkpoint_path(folder, run).with_suffix(".md")


def write_card(folder: Path, record: Record) -> None:
    """Write ``checkpoints/METHOD-seedN.md`` of a run that was tested and whose weights are kept.

    Raises:
        InputError: when the file cannot be written.
    """
    run, result, provenance = record.run, record.result, record.provenance
    interval, checkpoint = episode_interval(record.scores), checkpoint_path(folder, run)
    if not checkpoint.exists():
        return
    card = _CARD.format(
        label=one_line(record.label),
        tasksets=one_line(run.experiment.tasksets),
        form=record.form,
        score=score_text(result.metric, interval.mean, interval.half_width),
        test_episodes=len(result.scores),
        seed=run.seed,
        iterations=result.iterations,
        episodes=result.episodes,
        seconds=result.seconds_to_train,
        selected=result.selected_iteration,
        validation=score_text(result.metric, result.best_validation_score),
        validation_episodes=run.experiment.validation_episodes,
        parameters=", ".join(f"{count:,} {kind}" for kind, count in result.parameters.items()),
        version=provenance.package_version,
        commit=f"{provenance.commit or 'unknown'}{' with changes' * bool(provenance.dirty)}",
        finished=record.finished,
        command=one_line(provenance.command).replace("`", "'"),
        file=checkpoint.name,
        configuration=json.dumps(plain(run.to_dict()), indent=2, ensure_ascii=False),
    )
    write_atomically(card_path(folder, run), card)
