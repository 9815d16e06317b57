"""One learner or method used by several threads at once: each gets its own answer, and the learner stays as it is."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper import EpisodicBatchNorm, HyperAdapter
from l2l_hyper.data.episode import SupportSet
from l2l_hyper.experiment.recipe.classification import WholeClassifier, class_pass
from l2l_hyper.functional import Normalization, convert_norm, update_running
from l2l_hyper.methods import METHODS, TaskwiseNetwork
from l2l_hyper.methods.hyper_adapter import BaseLearnerName

pytestmark = pytest.mark.filterwarnings("ignore:tasks go through .* one after the other")

WAYS, TASKS = 3, 2
Y = torch.arange(WAYS).repeat(2).expand(TASKS, -1)
X, Q = torch.randn(2, TASKS, Y.shape[1], 1, 6, 6, generator=torch.Generator().manual_seed(1))
Operation = Callable[[], list[Tensor]]


class Stopped(threading.Thread):
    """A thread that stops in the middle of every pass of a network with a layer :class:`Stop`."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(daemon=True)
        self.operation, self.result = operation, []
        self._inside, self._go_on, self._ended = threading.Semaphore(0), threading.Semaphore(0), False

    def run(self) -> None:
        try:
            self.result = self.operation()
        finally:
            self._ended = True
            self._inside.release()

    def stop(self) -> None:
        self._inside.release()
        self._go_on.acquire()

    def passes(self) -> Iterator[int]:
        """Start it, and count its passes; what the loop does is done in the middle of each."""
        self.start()
        for number in itertools.count():
            if not self._inside.acquire(timeout=60) or self._ended:
                return
            yield number
            self._go_on.release()


class Stop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        thread = threading.current_thread()
        if isinstance(thread, Stopped):
            thread.stop()
        return x


def network(norm: type[nn.Module] = nn.BatchNorm2d, **options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), norm(4, **options), Stop(), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, WAYS)
    )


def instance_norm() -> nn.Sequential:
    return network(nn.InstanceNorm2d, affine=True, track_running_stats=True)


def with_noise(module: Any) -> Any:
    """On whatever is constant at the start, such as a residual."""
    torch.manual_seed(2)
    with torch.no_grad():
        for p in module.parameters():
            if (p == p.flatten()[0]).all():
                p.add_(0.1 * torch.randn_like(p))
    return module


def with_gradient(outputs: Tensor, module: nn.Module) -> list[Tensor]:
    rows = outputs.reshape(-1, WAYS)
    loss = F.cross_entropy(rows, torch.arange(len(rows)) % WAYS)
    learned = [p for p in module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, learned, allow_unused=True, retain_graph=True)
    return [outputs.detach(), *(g for g in gradients if g is not None)]


def of_learner(hyper: Any) -> dict[str, Operation]:
    adapted = hyper.clone()
    adapted.adapt(F.cross_entropy(adapted(X[0]), Y[0]))

    def adapt() -> list[Tensor]:
        learner = hyper.clone()
        learner.adapt(F.cross_entropy(learner(X[1]), Y[1]))
        return with_gradient(learner(Q[1]), hyper)

    def tasks() -> list[Tensor]:
        return with_gradient(hyper.predict_tasks(hyper.adapt_tasks(X, Y), Q), hyper)

    return {"adapt": adapt, "forward": lambda: with_gradient(adapted(Q[0]), hyper), "tasks": tasks}


def of_method(method: Any) -> dict[str, Operation]:
    def run(tasks: int) -> list[Tensor]:
        support = SupportSet(X[:tasks], Y[:tasks], WAYS)
        return with_gradient(method.predict(method.adapt(support), Q[:tasks]), method)

    def classes() -> list[Tensor]:
        return with_gradient(class_pass(method, X[0], Y[0], 0.1)[0].repeat(1, WAYS), method)

    return {"one task": lambda: run(1), "tasks": lambda: run(TASKS), "classes": classes}


def learner(model: Callable[[], nn.Module] = network, **options: Any) -> Callable[[], Any]:
    return lambda: with_noise(HyperAdapter(model(), 0.3, width=8, blocks=1, heads=2, **options))


def method(name: str) -> Callable[[], Any]:
    def make() -> Any:
        torch.manual_seed(3)
        options = {field.name: 0.0 for field in dataclasses.fields(METHODS[name].options) if "dropout" in field.name}
        teacher = convert_norm(network(), "support") if name == "protonet-distilled" else None
        made = METHODS[name].build(network(), options, "support", teacher)
        made.add_module("whole_classifier", WholeClassifier(16, WAYS))
        return with_noise(made)

    return make


Subjects = dict[str, tuple[Callable[[], Any], Callable[[Any], dict[str, Operation]]]]
SUBJECTS: Subjects = {
    "gaussian": (learner(base_learner="gaussian", normalization="support"), of_learner),
    "cosine": (learner(base_learner="cosine"), of_learner),
    "gradient": (learner(base_learner="gradient", generate="*"), of_learner),
    "InstanceNorm": (learner(instance_norm, base_learner="ridge"), of_learner),
    "maml": (method("maml"), of_method),
    "protonet": (method("protonet"), of_method),
    "frn": (method("frn"), of_method),
}
every_subject = pytest.mark.parametrize(("make", "operations"), SUBJECTS.values(), ids=SUBJECTS)
CAMPAIGN: Subjects = {
    **{
        f"{base}, {normalization}": (learner(base_learner=base, normalization=normalization), of_learner)
        for base in get_args(BaseLearnerName)
        for normalization in get_args(Normalization)
    },
    **{name: (method(name), of_method) for name in METHODS},
}


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Which tensors it holds, but for running averages."""
    held = dict([*module.named_parameters(), *module.named_buffers()])
    return {name: t for name, t in held.items() if "running" not in name and "tracked" not in name}


def hooks(module: nn.Module) -> list[int]:
    return [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]


def assert_untouched(module: nn.Module, before: dict[str, Tensor], hooks_before: list[int]) -> None:
    after = tensors(module)
    assert after.keys() == before.keys() and all(t is before[name] for name, t in after.items())
    assert hooks(module) == hooks_before


@every_subject
def test_whatever_is_done_in_the_middle_of_a_pass_is_right_and_so_is_the_pass(
    make: Callable[[], Any], operations: Callable[[Any], dict[str, Operation]]
) -> None:
    expected = {name: run() for name, run in operations(make()).items()}
    others = itertools.cycle(expected)
    for name in expected:
        subject = make()
        runs, before, hooks_before = operations(subject), tensors(subject), hooks(subject)
        thread = Stopped(runs[name])
        for _ in thread.passes():
            assert_untouched(subject, before, hooks_before)
            other = next(others)
            torch.testing.assert_close(runs[other](), expected[other])
        torch.testing.assert_close(thread.result, expected[name])
        assert_untouched(subject, before, hooks_before)


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads take turns a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hurried")
@every_subject
def test_sixteen_threads_at_once_are_all_right(
    make: Callable[[], Any], operations: Callable[[Any], dict[str, Operation]]
) -> None:
    expected = {name: run() for name, run in operations(make()).items()}
    subject = make()
    runs, before, hooks_before = operations(subject), tensors(subject), hooks(subject)
    with ThreadPoolExecutor(16) as pool:
        for name, found in [(name, pool.submit(runs[name])) for _ in range(-(-16 // len(runs))) for name in runs]:
            torch.testing.assert_close(found.result(), expected[name])
    assert_untouched(subject, before, hooks_before)


@pytest.mark.campaign
@pytest.mark.parametrize(("make", "operations"), CAMPAIGN.values(), ids=CAMPAIGN)
@pytest.mark.usefixtures("hurried")
def test_campaign_of_every_base_learner_and_method(
    make: Callable[[], Any], operations: Callable[[Any], dict[str, Operation]]
) -> None:
    for _ in range(5):
        test_sixteen_threads_at_once_are_all_right(make, operations)


def test_running_averages_take_up_one_batch_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cumulative ones are then the mean of all batches, in whatever order these come."""
    norm, means = EpisodicBatchNorm(3, "running"), torch.randn(8, 3)
    monkeypatch.setattr(EpisodicBatchNorm, "momentum", property(lambda _: time.sleep(0.01)), raising=False)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda mean: update_running(norm, {"": (mean[None], torch.ones(1, 3))}), means))
    torch.testing.assert_close(norm.running_mean, means.mean(0))


def test_running_averages_of_instance_norm_take_up_both_of_two_batches() -> None:
    model, moves = instance_norm(), []
    network, mean = TaskwiseNetwork(model), model[1].running_mean
    for x in (X, Q):
        network(x)
        moves.append(mean.clone())
        mean.zero_()
    for done in Stopped(lambda: list(network(X)[:1])).passes():
        if done == 0:
            network(Q)
    torch.testing.assert_close(mean, moves[0] + moves[1])
