"""Edited and foreign records: each is refused in one line, or reported with its text escaped for every medium."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_records import records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from l2l_hyper import report
from l2l_hyper.errors import InputError
from l2l_hyper.experiment.config import Run
from l2l_hyper.experiment.records import read_record, read_records, write_record
from l2l_hyper.experiment.result import ControlScores, MetricInfo, Point, ScoresAtShots
from l2l_hyper.report import write
from l2l_hyper.report.escape import for_csv, for_markdown, for_plot, for_screen

TYPES = [None, True, 0, 1, -1, 1.5, "text", "", [], {}, [1], {"a": 1}, [None], ["0"]]
EXTREMES = [1e308, -1e308, 1e99, 5e-324, 10**18, 10**30, 10**400, float("nan"), float("inf"), 2**63, 2**32]
HOSTILE = [
    "x\n\\input{/etc/passwd}",
    "a|b\r| c |",
    "<script>alert(1)</script>",
    '=HYPERLINK("http://example.org")',
    "\x1b[31mred\x1b[2J",
    "$\\frac{$",
    "[/bold] :smile: [link=x]",
    "_hidden",
    "\ud800",
    "\u202eback",
    "# heading\n---\n",
    "\0",
    "w" * 5000,
    "ä é ± – ×",
    "os:system",
]
Place = tuple[Any, ...]


def places(value: Any, before: Place = ()) -> Iterator[Place]:
    """Every place in a record; of a list its first and its last."""
    if before:
        yield before
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys if isinstance(value, dict) else {*keys[:1], *keys[-1:]}:
        yield from places(value[key], (*before, key))


def edits(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every edit of one place, with what it is: another type, an extreme or hostile value, taken away, renamed."""

    def edited(place: Place, **change: Any) -> dict[str, Any]:
        new = inside = copy.deepcopy(content)
        for key in place[:-1]:
            inside = inside[key]
        old = inside.pop(place[-1])
        if "value" in change:
            inside.insert(place[-1], change["value"]) if isinstance(inside, list) else inside.update(
                {place[-1]: change["value"]}
            )
        elif "name" in change:
            inside[change["name"]] = old
        return new

    for place in places(content):
        found = content
        for key in place:
            found = found[key]
        extreme = EXTREMES if found is None or isinstance(found, int | float) else []
        hostile = HOSTILE if found is None or isinstance(found, str) else []
        for value in [*TYPES, *extreme, *hostile]:
            yield f"{place} = {value!r:.40}", edited(place, value=value)
        yield f"{place} taken away", edited(place)
        if isinstance(place[-1], str):
            yield f"{place} renamed", edited(place, name=f"{place[-1]}_")


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two records that have everything a record may have."""
    folder = tmp_path_factory.mktemp("whole")
    more: dict[str, Any] = {
        "metric": MetricInfo(),
        "training": [Point(iteration=25 * i, seconds=2.0 * i, loss=1 / i, score=0.2 * i) for i in range(1, 3)],
        "other_shots": [ScoresAtShots(shots=5, scores=[0.9] * 40, losses=[0.1] * 40, manifest={"hash": "5" * 16})],
        "controls": [ControlScores(control="mean", shots=1, scores=[0.7] * 10)],
        "pretrained": "0" * 64,
    }
    for record in records(["maml", "protonet"], [0], **more):
        write_record(folder, record)
    return [json.loads((folder / "records" / f"{method}-seed0.json").read_text()) for method in ("maml", "protonet")]


def folder_of(folder: Path, found: list[dict[str, Any]]) -> Path:
    """A folder of such records, each under the name that its run gives it, where it gives any."""
    (folder / "records").mkdir(exist_ok=True)
    for path in (folder / "records").iterdir():
        path.unlink()
    for i, content in enumerate(found):
        name = str(i)
        try:
            path = folder / "records" / f"{Run.from_dict(content['run']).name}.json"
            path.touch()
        except (KeyError, TypeError, ValueError, AttributeError, OSError):
            path = folder / "records" / f"{name}.json"
        path.write_text(json.dumps(content))
    return folder


def outcome(folder: Path) -> str:
    """Whether a report refuses the records or takes them; fails where a table breaks its medium."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    try:
        report.write_report(folder, Console(width=140, file=screen))
    except InputError as error:
        assert str(error)
        return "refused"
    screen.seek(0)
    require_safe(folder, screen.read())
    return "reported"


def draw(figure: Figure) -> bytes:
    figure.draw_without_rendering()
    return b""


def require_safe(folder: Path, screen: str) -> None:
    latex, markdown = (folder / "results.tex").read_text(), (folder / "results.md").read_text()
    assert latex.count("\\begin{tabular}") == 1 and latex.startswith("% needs ") and latex.count("\n%") == 0
    assert "\\input" not in latex and "\\frac" not in latex and not re.search(r"\\\\\s*[\[*]", latex)
    page = (folder / "results.html").read_text()
    assert "<script" not in page.lower() and len(re.findall("<h1>", page)) == 1
    assert all(character == "\n" or character.isprintable() for character in latex + markdown + screen + page)
    tables = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    assert len(tables[0]) == 1 + len(read_records(folder)[:1]) + len({r.run.method for r in read_records(folder)})
    assert all(len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1 for rows in tables)
    assert not re.search(r"<[a-z/!]|(?<!\\)\$|^#", markdown, re.IGNORECASE)
    for cell in (cell for row in csv.reader(io.StringIO((folder / "results.csv").read_text())) for cell in row):
        assert not cell.startswith(("=", "@")) and (not cell.startswith(("+", "-")) or float(cell) < 0)


def test_a_sample_of_edits(tmp_path, contents, monkeypatch):
    monkeypatch.setattr(write, "render", lambda figure, form: b"")  # drawing takes longer than all the rest
    maml, protonet = contents
    chosen = random.Random(0).sample(list(edits(maml)), 60)
    assert Counter(outcome(folder_of(tmp_path, [edited, protonet])) for _, edited in chosen).keys() == {
        "refused",
        "reported",
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_in_any_place_is_read_or_refused(tmp_path, contents, data):
    content = copy.deepcopy(contents[0])
    *before, last = data.draw(st.sampled_from(list(places(content))))
    inside = content
    for key in before:
        inside = inside[key]
    inside[last] = data.draw(JSON)
    path = tmp_path / "maml-seed0.json"
    path.write_text(json.dumps(content))
    try:
        record = read_record(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        write_record(tmp_path, record)


@given(st.text())
def test_any_text_is_text_in_every_medium(text):
    markdown = for_markdown(text)
    assert "\n" not in markdown and not re.search(r"(?<!\\)(\\\\)*[|$`*\[\]~]|<[a-z/!?]", markdown, re.IGNORECASE)
    assert not str(for_csv(text)).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert for_screen(text, Console(file=io.TextIOWrapper(io.BytesIO(), "ascii"))).plain.isascii()
    assert not is_math_text(for_plot(text)) and not for_plot(text).startswith("_")


@pytest.mark.parametrize("text", [text for text in HOSTILE if text != "\ud800"])
def test_a_hostile_name_is_text_everywhere(tmp_path, contents, monkeypatch, text):
    for_figures = text in ("$\\frac{$", "_hidden", "w" * 5000)  # drawing takes longer than all the rest
    monkeypatch.setattr(write, "render", lambda figure, form: draw(figure) if for_figures else b"")
    (content, _) = copy.deepcopy(contents)
    content["run"]["experiment"].update(tasksets=text, backbone=text)
    content.update(label=text, normalization=text, environment={"cpu": text, "torch_threads": 1}, commit=None)
    content["package_version"] = content["metric"]["name"] = text
    assert outcome(folder_of(tmp_path, [content])) == "reported"


def test_no_module_that_a_record_names_is_imported(tmp_path, contents, monkeypatch):
    (tmp_path / "named_by_a_record.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(write, "render", lambda figure, form: b"")
    (content, _) = copy.deepcopy(contents)
    content["run"]["experiment"]["backbone"] = "named_by_a_record:net"
    assert outcome(folder_of(tmp_path, [content])) == "reported"
    assert "backbone named_by_a_record:net;" in (tmp_path / "results.md").read_text()


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, contents, monkeypatch):
    folder_of(tmp_path, contents)

    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(InputError, match=r"cannot read .*\.json \(Permission denied\)") as error:
        read_records(tmp_path)
    assert "delete" not in str(error.value)


def test_a_metric_called_as_another_column_has_one_of_its_own(contents, tmp_path):
    summary = report.summarize(records(["maml"], [0], metric=MetricInfo(name="loss", percent=False)))
    (row,) = csv.DictReader(io.StringIO(report.to_csv(summary)))
    assert float(row["loss"]) == pytest.approx(0.1)
    assert float(row["loss_of_the_metric"]) == pytest.approx(summary.rows[0].score.mean)


@pytest.mark.campaign
@pytest.mark.parametrize("all_records", [False, True])
def test_many_edits(tmp_path, contents, monkeypatch, all_records):
    drawn: set[str] = set()

    def draw_what_is_new(figure: Figure) -> bytes:
        shown = repr([text.get_text() for text in figure.findobj(Text)] + [axes.dataLim for axes in figure.axes])
        return b"" if shown in drawn or drawn.add(shown) else draw(figure)

    monkeypatch.setattr(write, "render", lambda figure, form: draw_what_is_new(figure))
    maml, protonet = contents
    counts: Counter[str] = Counter()
    for what, edited in random.Random(int(all_records)).sample(list(edits(maml)), 800):
        other = protonet
        if all_records and isinstance(edited.get("run"), dict):  # as from someone else, who has other settings
            other = {**edited, "run": {**edited["run"], "method": "protonet"}}
        try:
            counts[outcome(folder_of(tmp_path, [edited, other]))] += 1
        except Exception as error:
            raise AssertionError(what) from error
    print(
        f"{sum(counts.values())} edited records, a traceback from none: {dict(counts)}, {len(drawn)} different figures"
    )
