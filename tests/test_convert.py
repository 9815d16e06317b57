"""A user's learn2learn datasets and tasksets, converted: the same classes, pixels and distribution of tasks."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_data import (
    CLASSES,
    EACH,
    InMemory,
    Recognizer,
    global_states,
    lay_out_some_omniglot,
    same_distribution,
    seed_everything,
    small_images,
    statistics,
)
from helpers_data import theirs as usual
from ondisk import SMALL
from scipy import stats
from torch import Tensor
from torchvision import transforms

from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.bridge import convert
from l2l_hyper.bridge.learn2learn_taskset import Learn2learnTaskset
from l2l_hyper.data import TensorTaskset, get_tasksets
from l2l_hyper.errors import InputError

l2l = learn2learn()
kinds = l2l.data.transforms
rotation = l2l.vision.transforms.RandomClassRotation


class Labelled(torch.utils.data.Dataset[Any]):
    """The small images as floats, under given labels, through a transform."""

    def __init__(
        self, labels: Sequence[Any] | None = None, transform: Any = None, images: Tensor | None = None
    ) -> None:
        self.images = small_images().float() / 255 if images is None else images
        self.labels = np.arange(CLASSES).repeat(EACH).tolist() if labels is None else labels
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image = self.images[index]
        return image if self.transform is None else self.transform(image), self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)


def by_class(tasks: TensorTaskset) -> dict[str, Tensor]:
    """The images of each class, by name, with the values that the episodes have."""
    images = tasks._gather(np.arange(len(tasks._members))[None, None], np.zeros((1, 1), np.int64))[0]
    return dict(zip(tasks.class_names or [], images.split(tasks._sizes.tolist()), strict=True))


def assert_same_images(tasks: Any, dataset: Any, labels: Sequence[Any] | None = None) -> None:
    assert isinstance(tasks, TensorTaskset)
    ours = by_class(tasks)
    assert list(ours) == [str(label) for label in sorted(dataset.labels if labels is None else labels)]
    for label in dataset.labels if labels is None else labels:
        expected = torch.stack([torch.as_tensor(dataset[i][0]) for i in dataset.labels_to_indices[label]])
        torch.testing.assert_close(ours[str(label)], expected.float(), rtol=0, atol=1e-6)


def meta(*arguments: Any, **options: Any) -> Any:
    return l2l.data.MetaDataset(Labelled(*arguments, **options))


def chain(dataset: Any, *steps: Any, **options: Any) -> Any:
    """A taskset; steps are classes of transforms, with their options if they have any."""
    made = [step[0](dataset, **step[1]) if isinstance(step, tuple) else step(dataset) for step in steps]
    return l2l.data.Taskset(dataset, made, **options)


def fused(**options: Any) -> Any:
    return kinds.FusedNWaysKShots, {"n": 3, "k": 4, **options}


SHUFFLED = np.random.default_rng(0).permutation(np.arange(CLASSES).repeat(EACH)).tolist()


def datasets() -> dict[str, Any]:
    whole, shuffled = meta(), meta(SHUFFLED)
    filtered = l2l.data.FilteredMetaDataset(shuffled, labels=[9, 2, 5, 0])
    return {
        "MetaDataset": shuffled,
        "FilteredMetaDataset": filtered,
        "UnionMetaDataset": l2l.data.UnionMetaDataset([filtered, whole, l2l.data.FilteredMetaDataset(whole, [11, 1])]),
        "strings": meta([f"class {label:02d}" for label in SHUFFLED]),
        "on a device": l2l.data.MetaDataset(l2l.data.OnDeviceDataset(Labelled(SHUFFLED), transform=lambda x: 1 - x)),
    }


@pytest.mark.parametrize("kind", list(datasets()))
def test_datasets(kind: str) -> None:
    dataset = datasets()[kind]
    tasks = convert(dataset, ways=3, samples=4, seed=5, name="mine")
    assert_same_images(tasks, dataset)
    assert (tasks.ways, tasks.samples, tasks.seed, tasks.name) == (3, 4, 5, "mine")
    x, y = tasks.sample()
    assert x.shape == (12, 1, 6, 6) and y.shape == (12,)
    assert tasks.episode(3, shots=1, queries=2).query.shape == (1, 6, 1, 6, 6)


def test_datasets_of_unequal_classes() -> None:
    dataset = meta(np.arange(4).repeat([20, 30, 5, 53]).tolist())
    tasks = convert(dataset, ways=4, samples=5)
    assert_same_images(tasks, dataset)
    with pytest.raises(InputError, match="has 5 samples per class, got 6"):
        convert(dataset, ways=4, samples=6)


CHAINS: dict[str, tuple[Any, ...]] = {
    "fused": (fused(), kinds.LoadData, kinds.RemapLabels, kinds.ConsecutiveLabels),
    "apart": (
        (kinds.NWays, {"n": 3}),
        (kinds.KShots, {"k": 4}),
        kinds.LoadData,
        kinds.ConsecutiveLabels,
        kinds.RemapLabels,
    ),
    "filtered": (fused(filter_labels=[7, 3, 9, 1]), kinds.LoadData, kinds.RemapLabels, kinds.ConsecutiveLabels),
    "sorted soon": (
        (kinds.NWays, {"n": 3}),
        kinds.ConsecutiveLabels,
        (kinds.KShots, {"k": 4}),
        kinds.LoadData,
        kinds.RemapLabels,
    ),
    "rotated": (
        fused(),
        kinds.LoadData,
        (rotation, {"degrees": [90, 0, 270, 180]}),
        kinds.RemapLabels,
        kinds.ConsecutiveLabels,
    ),
    "upright": (fused(), kinds.LoadData, kinds.RemapLabels, kinds.ConsecutiveLabels, (rotation, {"degrees": [0.0]})),
}


@pytest.mark.parametrize("name", CHAINS)
def test_tasksets_are_distributed_as_learn2learns(name: str) -> None:
    taskset = chain(meta(), *CHAINS[name], num_tasks=-1)
    random.seed(1)
    expected, ours = statistics(taskset, 250), convert(taskset)
    assert type(ours) is TensorTaskset
    got = statistics(ours, 250)
    assert len(got["class"]) == (4 if name == "filtered" else CLASSES)
    assert len(got["rotation"]) == (4 if name == "rotated" else 1)
    for key in expected:
        assert same_distribution(got[key], expected[key]) > 1e-3, key


def test_tasksets_keep_their_number_of_tasks() -> None:
    assert len(list(convert(chain(meta(), *CHAINS["fused"], num_tasks=7)))) == 7
    with pytest.warns(UserWarning, match="Backwards"):
        sampled = convert(chain(meta(), *CHAINS["fused"], Backwards, num_tasks=7))
    assert len(list(sampled)) == len(sampled) == 7


def test_without_consecutive_labels_only_the_order_of_classes_differs() -> None:
    # As in learn2learn's protonet_miniimagenet.py, which sorts by label itself.
    taskset = chain(meta(), *CHAINS["apart"][:3], kinds.RemapLabels)
    assert_same_images(convert(taskset), taskset.dataset)


def test_an_unpickled_taskset() -> None:
    import pickle

    dataset = meta()
    steps = pickle.loads(pickle.dumps([kinds.NWays(dataset, 3), kinds.KShots(dataset, 4), kinds.RemapLabels(dataset)]))
    assert type(steps[0]) is not kinds.NWays
    dataset = steps[0].dataset
    steps.insert(2, kinds.LoadData(dataset))
    assert_same_images(convert(l2l.data.Taskset(dataset, steps)), dataset)


@pytest.mark.parametrize("apart", [False, True])
def test_replacement(apart: bool) -> None:
    more = {"k": 5, "replacement": True}
    select = [(kinds.NWays, {"n": 2}), (kinds.KShots, more)] if apart else [fused(n=2, **more)]
    dataset = meta(np.arange(3).repeat([4, 4, 100]).tolist())
    taskset = chain(dataset, *select, kinds.LoadData, kinds.RemapLabels, kinds.ConsecutiveLabels)
    ours = convert(taskset)
    assert_same_images(ours, dataset)
    assert isinstance(ours, TensorTaskset)
    recognize, counts = Recognizer(small_images()), []
    random.seed(4)
    for tasks in (ours, taskset):
        seen: Counter[Any] = Counter()
        for _ in range(600):
            x, y = tasks.sample()
            numbers = np.array([number for number, _ in recognize(x)]).reshape(2, 5)
            classes = np.minimum(numbers // 4, 2)
            assert (classes == classes[:, :1]).all() and classes[0, 0] < classes[1, 0]
            assert sorted(y[::5].tolist()) == [0, 1] and (y.view(2, 5) == y[::5, None]).all()
            drawn = [len(set(row)) for row in numbers.tolist()]
            seen.update((int(c), different, int(y[0])) for c, different in zip(classes[:, 0], drawn, strict=True))
        counts.append(seen)
    assert same_distribution(*counts) > 1e-3
    first = ours.batch(range(900), shots=1, queries=0).support.flatten(0, 1)
    small = Counter(number for number, _ in recognize(first))
    assert stats.chisquare([small[n] for n in range(8)]).pvalue > 1e-3
    assert torch.equal(ours.to("cpu").episode(2, shots=9, queries=9).query, ours.episode(2, shots=9, queries=9).query)
    for wrong in ({"shots": 0, "queries": 1}, {"shots": 1, "queries": -1}, {"shots": 1, "queries": 1, "ways": 4}):
        with pytest.raises(InputError, match="got"):
            ours.episode(0, **wrong)


@pytest.mark.parametrize("consecutive_first", [False, True])
def test_labels_that_are_not_shuffled(consecutive_first: bool) -> None:
    # 3, 35 and 67 fall into one place of Python's sets: which of them comes first depends on who was there first.
    names = [3, 35, 67, 1, 8, 16]
    dataset = meta(np.repeat(names, 18).tolist())
    order: list[Any] = [(kinds.RemapLabels, {"shuffle": False}), kinds.ConsecutiveLabels]
    taskset = chain(dataset, fused(k=1), kinds.LoadData, *order[:: -1 if consecutive_first else 1])
    ours = convert(taskset)
    assert_same_images(ours, dataset)
    recognize, counts = Recognizer(small_images()), []
    random.seed(2)
    for tasks in (ours, taskset):
        drawn = [tasks.sample() for _ in range(1500)]
        counts.append(Counter((*(names[n // 18] for n, _ in recognize(x)), *y.tolist()) for x, y in drawn))
    assert len(counts[0]) == len(counts[1]) == (20 if consecutive_first else len(counts[0])) >= 20
    assert same_distribution(*counts) > 1e-3
    # In episodes a position is a label: every class of a set without collisions has its own.
    tasks = convert(chain(meta(), fused(n=CLASSES, k=2), kinds.LoadData, order[0], rotation_of_nothing()))
    numbers = [number for number, _ in recognize(tasks.batch(range(4), shots=1, queries=1).query.flatten(0, 1))]
    assert [number // EACH for number in numbers] == list(range(CLASSES)) * 4


def rotation_of_nothing() -> Any:
    return rotation, {"degrees": [0]}


BYTES = np.random.default_rng(1).integers(0, 256, (CLASSES * EACH, 6, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("transform", "images"),
    [
        (None, torch.from_numpy(BYTES).permute(0, 3, 1, 2)),
        (None, torch.from_numpy(BYTES).permute(0, 3, 1, 2).float()),
        (transforms.ToTensor(), BYTES),
        (transforms.Compose([transforms.ToTensor(), lambda x: 1.0 - x]), BYTES),
        (transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.1))]), BYTES),
        (transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]), BYTES),
        (None, torch.where(torch.from_numpy(BYTES).permute(0, 3, 1, 2) > 99, 0.37, -1.1)),
        (None, torch.full((CLASSES * EACH, 2, 5, 7), -0.3)),
    ],
    ids=["uint8", "whole", "ToTensor", "inverted", "Normalize", "centered", "two values", "one value"],
)
def test_values_of_pixels(transform: Any, images: Any) -> None:
    dataset = meta(transform=transform, images=images)
    tasks = convert(dataset, ways=2, samples=2)
    assert_same_images(tasks, dataset)
    assert isinstance(tasks, TensorTaskset) and tasks.x.dtype == torch.uint8
    assert tasks.sample()[0].dtype == torch.float32


NOISE = torch.rand(CLASSES * EACH, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"transform": transforms.RandomErasing(p=0.3, value=1)}, "random transform"),
        ({"transform": transforms.RandomHorizontalFlip(p=0.1)}, "random transform"),
        ({"images": NOISE}, "more than 256 different values"),
        ({"images": NOISE.mul(10).round().sqrt()}, "not equally spaced"),
        ({"images": NOISE.mul(9).round().double()}, "torch.float64"),
        ({"images": NOISE[:, 0]}, r"of shape \(6, 6\)"),
        ({"images": NOISE.numpy()}, "but ndarray"),
    ],
)
def test_images_that_are_left_as_they_are(options: dict[str, Any], reason: str) -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=f"{reason}.*one at a time") as warned:
        tasks = convert(meta(**options), ways=3, samples=4)
    assert len(warned) == 1 and warned[0].filename == __file__
    assert isinstance(tasks, Learn2learnTaskset) and (tasks.ways, tasks.samples) == (3, 4)
    assert torch.equal(tasks.episode(5, shots=1, queries=3).query, tasks.batch([4, 5], shots=1, queries=3).query[1:])


class Backwards(kinds.ConsecutiveLabels):  # type: ignore[name-defined]
    """A user's own: labels in descending order."""

    def __call__(self, description: Any) -> Any:
        return super().__call__(description)[::-1]


def darken(description: Any) -> Any:
    for sample in description:
        sample.transforms.append(lambda data: (data[0] / 2, data[1]))
    return description


def test_a_transform_that_cannot_be_vectorised_is_applied_as_it_is() -> None:
    dataset = meta()
    steps = [kinds.FusedNWaysKShots(dataset, n=3, k=4), kinds.LoadData(dataset), kinds.RemapLabels(dataset)]
    taskset = l2l.data.Taskset(dataset, [*steps, darken])
    with pytest.warns(UserWarning, match="task transform darken cannot be vectorised: .* slower") as warned:
        tasks = convert(taskset, seed=3, name="dark")
    assert len(warned) == 1
    assert isinstance(tasks, Learn2learnTaskset) and (tasks.ways, tasks.samples) == (3, 4)
    assert len(tasks) == 1 and tasks.sample()[0].max() <= 0.5 and tasks[0][0].max() <= 0.5
    assert next(iter(tasks))[1].shape == (12,)

    seed_everything(0)
    states = random.getstate(), torch.get_rng_state()
    episodes = tasks.batch(range(40), shots=1, queries=2)
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    seed_everything(1)
    again = tasks.batch([17, 3], shots=1, queries=2)
    assert torch.equal(again.support[0], episodes.support[17]) and torch.equal(again.query[1], episodes.query[3])

    recognize = Recognizer(small_images())
    for episode in episodes:
        assert episode.support_labels.tolist() == [[0, 1, 2]] and episode.query_labels.tolist() == [[0, 0, 1, 1, 2, 2]]
        support, query = ([number for number, _ in recognize(2 * x[0])] for x in (episode.support, episode.query))
        assert len({*support, *query}) == 9
        assert [number // EACH for number in query] == [number // EACH for number in support for _ in range(2)]
    different = [tasks.episode(0, shots=1, queries=0, seed=seed).support for seed in (3, 4)]
    assert torch.equal(different[0], episodes.support[:1]) and not torch.equal(*different)


def test_episodes_seed_every_random_state_and_put_it_back() -> None:
    def noise(image: Tensor) -> Tensor:
        return image + torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()]).view(3, 1, 1)  # noqa: NPY002

    with pytest.warns(UserWarning, match="random transform|256 different values"):
        tasks = convert(meta(transform=noise), ways=2, samples=2)
    seed_everything(0)
    states = global_states()
    first = tasks.episode(8, shots=1, queries=1).query
    assert global_states() == states
    seed_everything(1)
    torch.testing.assert_close(tasks.episode(8, shots=1, queries=1).query, first, rtol=0, atol=0)
    assert first.shape == (1, 2, 3, 6, 6)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (CHAINS["fused"] + (Backwards,), "transform Backwards cannot"),
        (CHAINS["fused"] + ((rotation, {"degrees": [0, 180]}),), r"RandomClassRotation by \[0, 180\]"),
        (((kinds.KShots, {"k": 4}), *CHAINS["fused"][1:]), "sequence of .* KShots, LoadData, RemapLabels, Cons"),
        ((*CHAINS["rotated"], CHAINS["rotated"][2]), "sequence of .* Cons.*, RandomClassRotation cannot"),
        (((kinds.FilterLabels, {"labels": [5, 1]}), (kinds.KShots, {"k": 4}), *CHAINS["fused"][1:]), "FilterLabels"),
        ((fused(filter_labels=[1, 2, 3, 3, 4, 5, 6, 7, 8]), *CHAINS["fused"][1:]), "a label twice"),
    ],
)
def test_tasksets_that_are_left_as_they_are(steps: Any, reason: str) -> None:
    random.seed(0)
    taskset = chain(meta(), *steps)
    with pytest.warns(UserWarning, match=reason):
        tasks = convert(taskset)
    assert isinstance(tasks, Learn2learnTaskset) and tasks.taskset is taskset


def test_more_tasksets_that_are_left_as_they_are() -> None:
    dataset, names = meta(), meta([f"class {label}" for label in SHUFFLED])

    class Own(l2l.data.Taskset):  # type: ignore[name-defined]
        pass

    def steps(of: Any, **remap: Any) -> list[Any]:
        return [
            kinds.FusedNWaysKShots(of, n=3, k=4),
            kinds.LoadData(of),
            kinds.RemapLabels(of, **remap),
            kinds.ConsecutiveLabels(of),
        ]

    other = [*steps(dataset)[:3], kinds.ConsecutiveLabels(meta())]
    oblong = meta(images=torch.zeros(CLASSES * EACH, 1, 4, 6))
    for taskset, reason in (
        (Own(dataset, steps(dataset)), "class"),
        (l2l.data.Taskset(dataset, steps(dataset), task_collate=torch.utils.data.default_convert), "task_collate"),
        (l2l.data.Taskset(dataset, other), "of different datasets"),
        (l2l.data.Taskset(names, steps(names, shuffle=False)), "labels not integers"),
        (l2l.data.Taskset(oblong, [*steps(oblong), rotation(oblong, [0, 90, 180, 270])]), "not square"),
        (l2l.data.Taskset(dataset, transforms.Compose(steps(dataset))), "transform Compose"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if reason == "task_collate":
                with pytest.raises(InputError, match="two tensors"):
                    convert(taskset)
            else:
                assert isinstance(convert(taskset), Learn2learnTaskset)
        assert len(caught) == 1 and reason in str(caught[0].message)


def test_wrong_sources() -> None:
    taskset = chain(meta(), *CHAINS["fused"])
    for wrong, message in (
        (lambda: convert(InMemory(), ways=3, samples=4), "got InMemory; wrap a dataset in learn2learn.data.MetaDat"),
        (lambda: convert(meta()), "got ways=None, samples=None"),
        (lambda: convert(meta(), ways=3), "got ways=3, samples=None"),
        (lambda: convert(taskset, ways=3), "leave them out"),
        (lambda: convert(meta(), ways=13, samples=4), "12 classes, got ways=13"),
        (lambda: convert(meta(), ways=3, samples=10), "9 samples per class, got 10"),
        (lambda: convert(chain(meta(), fused(filter_labels=[1, 2, 99]), *CHAINS["fused"][1:])), "empty classes"),
        (lambda: convert(l2l.data.FilteredMetaDataset(meta(), []), ways=1, samples=1), "classes with images, got none"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()


@pytest.mark.filterwarnings("ignore:.*one at a time")
def test_wrong_tasks() -> None:
    unequal = meta(np.arange(3).repeat([50, 30, 28]).tolist())
    to_pil = transforms.ToPILImage()
    for taskset, message in (
        (chain(meta(), fused(), kinds.LoadData), r"labels 0 to ways - 1, got labels .* RemapLabels missing"),
        (chain(meta(), fused()), "is LoadData missing"),
        (chain(meta(), fused(), kinds.RemapLabels, kinds.LoadData), "make a task, got TypeError"),
        (chain(unequal, (kinds.NWays, {"n": 2}), kinds.LoadData, kinds.RemapLabels), "KShots or RemapLabels missing"),
        (chain(meta(transform=to_pil), *CHAINS["fused"]), "make a task, got TypeError.*PIL"),
        (chain(meta(), fused(), CHAINS["rotated"][2], *CHAINS["fused"][1:]), "make a task, got TypeError"),
        (chain(meta()), "make a task"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            convert(taskset)
        assert "\n" not in str(raised.value)
    sampled = convert(chain(meta(), *CHAINS["fused"], Backwards))
    for wrong in (
        {"shots": 0, "queries": 1},
        {"shots": 1, "queries": -1},
        {"shots": 2, "queries": 3},
        {"shots": 1, "queries": 1, "ways": 4},
    ):
        with pytest.raises(InputError, match="expected ways=3 and up to 4 shots and queries per class"):
            sampled.batch([0], **wrong)
    with pytest.raises(InputError, match="non-negative episode numbers"):
        sampled.batch([], shots=1, queries=1)


def test_tasks_of_changing_size() -> None:
    dataset = meta()
    sizes = iter([2, 2, 3])

    def growing(_: Any) -> Any:
        return kinds.RemapLabels(dataset)(
            kinds.LoadData(dataset)(kinds.FusedNWaysKShots(dataset, n=next(sizes), k=1)(None))
        )

    with pytest.warns(UserWarning, match="growing cannot be vectorised"):
        tasks = convert(l2l.data.Taskset(dataset, growing))
    assert tasks.episode(0, shots=1, queries=0).ways == 2
    with pytest.raises(InputError, match="expected tasks of 2 x 1 samples"):
        tasks.episode(0, shots=1, queries=0)


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in SMALL), ("mini-imagenet", {"data_augmentation": "normalize"})]
)
def test_learn2learns_benchmarks(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    SMALL[name](tmp_path)
    tasksets = l2l.vision.benchmarks.get_tasksets(name, test_samples=3, root=str(tmp_path), **options)
    for ours, theirs, classes in zip(get_tasksets(name, root=tmp_path, **options), tasksets, (7, 5, 6), strict=True):
        converted = convert(theirs)
        assert converted.ways == 5 and converted.samples == (10 if classes == 7 else 3)
        assert_same_images(converted, theirs.dataset)
        assert isinstance(converted, TensorTaskset) and converted.num_classes == classes
        assert converted.scale == ours.scale
        for mine, other in zip(by_class(ours).values(), by_class(converted).values(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)
        known = {image.numpy().tobytes() for images in by_class(ours).values() for image in images.mul(1e3).round()}
        x, _ = theirs.sample()
        assert all(image.numpy().tobytes() in known for image in x.mul(1e3).round())


def test_learn2learns_omniglot(tmp_path: Path) -> None:
    with lay_out_some_omniglot(tmp_path).offline_omniglot(tmp_path):
        tasksets = l2l.vision.benchmarks.get_tasksets("omniglot", 3, 2, root=str(tmp_path))
    whole = tasksets.train.task_transforms[0].dataset
    ours = convert(tasksets.train)
    # The transforms of learn2learn's Omniglot hold all the classes, and so do its tasks.
    assert_same_images(ours, whole, labels=list(range(43)))
    assert isinstance(ours, TensorTaskset) and ours.rotations == "task"
    turned = {
        torch.rot90(image, k, (1, 2)).mul(255).round().numpy().tobytes()
        for images in by_class(ours).values()
        for image in images
        for k in range(4)
    }
    for _ in range(10):
        x, _ = tasksets.train.sample()
        assert all(image.mul(255).round().numpy().tobytes() in turned for image in x)


def test_the_usual_taskset() -> None:
    ours = convert(usual(rotations=True, remap_first=False))
    assert isinstance(ours, TensorTaskset) and ours.rotations == "task"
