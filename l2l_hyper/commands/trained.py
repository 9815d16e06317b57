"""The commands that use a trained checkpoint: evaluate, predict."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from ..experiment.plan import from_flags
from ..stopping import raised
from .common import as_folder, require_folders, session, stdout, with_settings

__all__ = ["evaluate", "predict"]

OptionalOut = Annotated[
    Path | None,
    typer.Option("--out", parser=as_folder, metavar="DIR", help="For the record, table and plots, if kept."),
]
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Trained weights: OUT/checkpoints/METHOD-seedN.safetensors, or hf://owner/name of the Hugging Face Hub.",
    ),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Import the code that the checkpoint names, as package.module:object.")
]


@with_settings(
    *("tasksets", "tasksets_options", "ways", "shots", "test_shots", "queries", "unbalanced_queries"),
    *("test_episodes", "split_seed", "metric", "data_root", "device", "memory_limit"),
    defaults=False,
)
def evaluate(*, checkpoint: Checkpoint, out: OptionalOut = None, trust: Trust = False, **flags: Any) -> None:
    """Test a trained checkpoint on the test tasks of any tasksets; what is not given is as in its training."""
    from ..experiment.trained import located, read_trained
    from ..experiment.transfer import record_of, transfer_plan

    file = located(checkpoint, trust=trust)
    trained = read_trained(file, trust=trust)
    plan = transfer_plan(trained, from_flags(flags))
    require_folders(plan, out, flags)

    from ..experiment.distributed import from_first, is_first
    from ..experiment.parts import Parts
    from ..experiment.records import write_record
    from ..experiment.runner import existing
    from ..report import print_summary, summarize, write_report

    parts = Parts(plan, trains=False)
    (run,) = plan.runs(parts.options)
    with session(plan, out) as (provenance, _):
        if (record := existing(run, parts, out)) is None:
            record = record_of(trained, file, parts, provenance)
            if out is not None:
                from_first(functools.partial(write_record, out, record))
        if not is_first():
            return
    with raised():
        if out is None:
            print_summary(summarize([record]), stdout())
        else:
            write_report(out, stdout())


def predict(
    *,
    checkpoint: Checkpoint,
    support: Annotated[Path, typer.Option(parser=as_folder, metavar="DIR", help="Folder of one sub-folder per class.")],
    query: Annotated[Path, typer.Option(parser=as_folder, metavar="DIR", help="Folder of the files to classify.")],
    out: Annotated[
        Path | None, typer.Option(parser=as_folder, metavar="DIR", help="For predictions.csv and a picture, if kept.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device to compute on, such as cuda.")] = "cpu",
    trust: Trust = False,
) -> None:
    """Classify your own files by a trained checkpoint, from a few examples of each class."""
    from rich.table import Table

    from ..experiment.prediction import predict
    from ..experiment.trained import load
    from ..report.escape import for_screen
    from ..report.predictions import write_predictions

    with raised():
        found, screen = predict(load(checkpoint, device=device, trust=trust), support, query), stdout()
        written = None if out is None else write_predictions(out, found)
    table = Table("file", "predicted", "probability %", box=None, pad_edge=False, header_style="bold")
    shares = (100 * found.probabilities.amax(-1)).tolist()
    for path, name, share in zip(found.files, found.predicted, shares, strict=True):
        table.add_row(for_screen(path.name, screen), for_screen(name, screen), f"{share:.1f}")
    screen.print(table)
    if written is not None:
        screen.print(f"written to {out}: {', '.join(written)}", markup=False)
