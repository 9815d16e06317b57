"""Figures of a report, of an episode and of generated weights: what they hold, and that nothing lies over another."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers_records import EXPERIMENT, records
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from l2l_hyper import report
from l2l_hyper.errors import InputError
from l2l_hyper.experiment.records import Record
from l2l_hyper.methods import METHODS
from l2l_hyper.report.style import COLORS, looks


def many(count: int, **changes: object) -> list[Record]:
    """Records of methods with long names, whose scores differ."""
    found = []
    for i in range(count):
        for record in records(["maml"], **changes):
            run = dataclasses.replace(record.run, method=f"method@{i}")
            scores = [score * (1 - i / 100) for score in record.result.scores]
            result = dataclasses.replace(record.result, scores=scores)
            label = f"A method with a long name, variant {i} of $x_{{{i}}}$, and more that is cut off in the end"
            found.append(dataclasses.replace(record, run=run, label=label, result=result))
    return found


def summaries(found: Sequence[Record], shots: Sequence[int]) -> list[report.Summary]:
    experiments = [dataclasses.replace(EXPERIMENT, shots=n) for n in shots]
    return [
        report.summarize([dataclasses.replace(r, run=dataclasses.replace(r.run, experiment=e)) for r in found])
        for e in experiments
    ]


def texts(figure: Figure) -> list[Text]:
    """What is drawn; a figure holds more, such as labels of ticks beyond the ends of its axes."""
    drawn: list[Text] = []
    with patch.object(Text, "draw", autospec=True, side_effect=lambda text, renderer: drawn.append(text)):
        figure.draw_without_rendering()
    return [text for text in dict.fromkeys(drawn) if text.get_visible() and text.get_text().strip()]


def require_room(figure: Figure) -> None:
    """Every text is within the figure, and no two texts overlap."""
    boxes = [(text.get_text(), text.get_tightbbox()) for text in texts(figure)]
    boxes = [(text, box) for text, box in boxes if box is not None and box.width > 0]
    for text, box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text
    for i, (text, box) in enumerate(boxes):
        for other, second in boxes[:i]:
            across = min(box.x1, second.x1) - max(box.x0, second.x0)
            assert across <= 1 or min(box.y1, second.y1) - max(box.y0, second.y0) <= 1, f"{text!r} lies over {other!r}"


@pytest.mark.parametrize("count", [2, 20])
def test_texts_have_room(count):
    found = many(count, multiply_adds_per_query=14_200_000)
    first, other = summaries(found, (1, 5))
    networks = [first, report.summarize(many(count, multiply_adds_per_query=400_000))]
    for figure in (
        report.accuracy_figure(first),
        report.learning_curves_figure(first),
        report.shots_figure([first, other]),
        report.cost_figure(networks),
    ):
        require_room(figure)


def test_a_method_has_its_colour_in_every_figure():
    summary = report.summarize(records())
    expected = {row.label: looks([row.method])[row.method]["color"] for row in summary.rows}
    assert len(set(expected.values())) == 3
    bars = report.accuracy_figure(summary).axes[0]
    assert [to_hex(bar.get_color()[0]).upper() for bar in bars.collections] == [
        expected[r.label] for r in summary.rows[::-1]
    ]
    for figure in (report.learning_curves_figure(summary), report.shots_figure(summaries(records(), (1, 5)))):
        handles, labels = figure.axes[0].get_legend_handles_labels()
        lines = [getattr(handle, "lines", [handle])[0] for handle in handles]
        assert {label: line.get_color() for label, line in zip(labels, lines, strict=True)} == expected


def test_no_two_methods_look_the_same():
    names = [*METHODS, *(f"hyper-adapter@{i}" for i in range(15))]
    found = looks(names)
    assert len({tuple(look.values()) for look in found.values()}) == len(names)
    assert max(Counter(found[name]["color"] for name in METHODS._paths).values()) <= 3
    assert len({found[name]["color"] for name in ("hyper-adapter", *names[-15:])}) == 1
    together = ("anil", "hyper-adapter", "maml", "protonet", "protonet-distilled", "r2d2")
    assert len({found[name]["color"] for name in together}) == len(together)


# What a reader with no red, green or blue cones sees, in linear RGB (Machado et al. 2009, of full severity).
BLINDNESS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_colours_are_told_apart_by_colour_blind_readers(blindness):
    rgb = np.array([to_rgb(color) for color in COLORS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ np.transpose(BLINDNESS[blindness]), 0, 1) @ TO_XYZ.T / TO_XYZ.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1)
    assert distances[~np.eye(len(COLORS), dtype=bool)].min() > 15  # about 2 is just seen side by side
    luminance = linear @ TO_XYZ[1]
    assert all(1.05 / (luminance + 0.05) > 2) and all((luminance + 0.05) / 0.058 > 2)  # contrast with both pages


def test_accuracy_figure_marks_means_seeds_and_episodes():
    summary = report.summarize(records())
    means, episodes = report.accuracy_figure(summary).axes
    assert [label.get_text() for label in means.get_yticklabels()] == ["MAML", "ProtoNet", "HyperAdapter"]
    ours = summary.rows[0]
    drawn = [line.get_xdata().tolist() for line in means.lines]
    assert [pytest.approx(100 * ours.score.mean)] in drawn
    assert pytest.approx([100 * record.scores.mean() for record in ours.records]) in drawn
    middle = 100 * np.percentile(np.mean([record.scores for record in ours.records], axis=0), [25, 75])
    assert pytest.approx(middle.tolist()) in [
        line.get_xdata().tolist() for line in episodes.lines if len(line.get_xdata()) == 2
    ]


def test_learning_curves_are_means_where_every_seed_is_known():
    episodes, seconds = report.learning_curves_figure(report.summarize(records())).axes
    assert episodes.lines[0].get_xdata().tolist() == [100, 200, 300, 400]
    # Seed 0 was looked at after 2, 4, 6, 8 seconds, seed 1 a second later: both are known from 3 to 8.
    assert seconds.lines[0].get_xdata().tolist() == [3, 4, 5, 6, 7, 8]
    assert seconds.lines[0].get_ydata()[0] == pytest.approx((30 + 20) / 2)
    assert seconds.lines[2].get_xdata().tolist() == [3, 5, 7, 9]
    without = report.summarize(records(["maml"], [0], validation=[]))
    assert report.render(report.learning_curves_figure(without), "png").startswith(b"\x89PNG")


def test_curves_go_through_the_scores_of_every_network():
    small = dataclasses.replace(EXPERIMENT, channels=8, iterations=7)
    networks = [
        report.summarize(records(multiply_adds_per_query=14_000_000)),
        report.summarize(records(["maml"], experiment=small, multiply_adds_per_query=400_000)),
    ]
    figure = report.cost_figure(networks)
    (axes,) = figure.axes
    handles, labels = axes.get_legend_handles_labels()
    maml = handles[labels.index("MAML")].lines[0]
    assert (
        maml.get_xdata() == pytest.approx([0.4, 14])
        and len(handles[labels.index("ProtoNet")].lines[0].get_xdata()) == 1
    )
    assert maml.get_ydata() == pytest.approx(
        [100 * networks[1].rows[0].score.mean, 100 * networks[0].rows[2].score.mean]
    )
    assert "networks differ in iterations, channels" in figure.get_suptitle()
    elsewhere = report.summarize(records(manifest={"hash": "0" * 16}, multiply_adds_per_query=1))
    with pytest.raises(
        InputError, match="tested on the same episodes .* episodes fedcba987654 and accuracy on 000000000000"
    ):
        report.cost_figure([networks[0], elsewhere])
    with pytest.raises(InputError, match="multiply-adds per query, got none"):
        report.cost_figure([report.summarize(records())])


def test_a_vector_figure_has_text_and_is_light_on_a_dark_page():
    svg = report.render(report.accuracy_figure(report.summarize(records())), "svg").decode()
    assert ">HyperAdapter</text>" in svg and "prefers-color-scheme: dark" in svg


def episode(ways: int = 3, queries: int = 50) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    support, query = (torch.rand(n, 3, 6, 6, generator=random) for n in (7 * ways, queries))
    return support, torch.arange(ways).repeat(7), query, torch.eye(ways)[torch.arange(queries) % ways]


def test_episode_figure_says_what_is_predicted_and_what_is_left_out():
    support, labels, query, probabilities = episode()
    truth = torch.zeros(50, dtype=torch.long)
    names = ["cat", "a name that is far too long for one line", "W" * 60]
    figure = report.episode_figure(support, labels, query, probabilities, query_labels=truth, class_names=names)
    require_room(figure)
    said = [text.get_text() for text in texts(figure)]
    assert said[:1] == ["support set: 15 of 21 are drawn"] and "cat\n100 %" in said
    assert "queries: 40 of 50 are drawn; 17 of 50 right, the others have a thick frame" in said
    assert "a name that\nis far too…\n100 %\nis cat" in said
    images = figure.axes[0].images
    assert len(images) == 15 + 40
    low, high = min(support.min(), query.min()), max(support.max(), query.max())
    scaled = (support[0].movedim(0, -1) - low) / (high - low)
    np.testing.assert_allclose(images[0].get_array(), scaled.numpy(), atol=1e-6)
    gray = report.episode_figure(support[:, 0], labels, query[:, :1].movedim(1, -1), probabilities)
    assert gray.axes[0].images[0].get_array().shape == (6, 6)


def test_episode_figure_needs_images_and_labels_that_fit():
    support, labels, query, probabilities = episode()
    for arguments, message in (
        (
            (support[:, :2], labels, query, probabilities),
            r"support images .* with 1 or 3 channels, got shape \(21, 2, 6, 6\)",
        ),
        ((support, labels, query * float("nan"), probabilities), "query images of finite values"),
        ((support, labels[1:], query, probabilities), "21 support labels from 0 to 2"),
        ((support, labels + 1, query, probabilities), "21 support labels from 0 to 2"),
        ((support, labels, query, probabilities[1:]), r"shape \(50, ways\), a row per query, got \(49, 3\)"),
    ):
        with pytest.raises(InputError, match=message):
            report.episode_figure(*arguments)
    with pytest.raises(InputError, match="3 class names, one per column of the probabilities, got 1"):
        report.episode_figure(support, labels, query, probabilities, class_names=["cat"])
    with pytest.raises(InputError, match="50 query labels from 0 to 2"):
        report.episode_figure(support, labels, query, probabilities, query_labels=labels)


def test_weights_figure_is_the_plane_of_the_largest_variance():
    random = np.random.default_rng(0)
    tasks = np.arange(3).repeat(4)
    table = 10 * random.normal(size=(3, 6))[tasks] + random.normal(size=(12, 6))
    figure = report.weights_figure({"a": torch.tensor(table[:, :4]).view(12, 2, 2), "b": table[:, 4:]}, tasks)
    require_room(figure)
    (axes,) = figure.axes
    drawn = np.concatenate([np.stack(line.get_data(), axis=1) for line in axes.lines])
    centered = table - table.mean(axis=0)
    values, directions = np.linalg.eigh(centered.T @ centered)
    expected = centered @ directions[:, [-1, -2]]
    np.testing.assert_allclose(np.abs(drawn), np.abs(expected), atol=1e-9)
    assert axes.get_xlabel() == f"first component: {100 * values[-1] / values.sum():.0f} % of variance"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["task 0", "task 1", "task 2"]
    for weights, of, message in (
        (table, tasks[1:], "expected weights"),
        (table[:2], tasks[:2], "three support sets"),
        (table[:, :1], tasks, "two weights or more"),
        (table * np.inf, tasks, "finite"),
        (table, tasks - 1, "tasks from 0"),
    ):
        with np.errstate(invalid="ignore"), pytest.raises(InputError, match=message):
            report.weights_figure(weights, of)
