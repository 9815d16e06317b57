"""A clone is a model of its own: what is done to it stays there, and adapted it saves, loads, moves and exports."""

from __future__ import annotations

import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper import HyperAdapter, HyperSGD
from l2l_hyper._learn2learn import learn2learn

# torch looks at the gradient of whatever it converts or exports, and the tensors of a clone are no leaves.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

l2l = learn2learn()
WAYS = 3
Y = torch.arange(WAYS).repeat(4)
Make = Callable[[], Any]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, WAYS))


def samples() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x, q = torch.randn(2, len(Y), 6)
    return x, q


def adapter(base_learner: str, **options: Any) -> Make:
    """With a residual that has left zero."""

    def make() -> HyperAdapter:
        model = network()
        hyper = HyperAdapter(model, 0.3, base_learner=base_learner, width=16, **options)
        with torch.no_grad():
            for p in hyper.parameters():
                if not p.any() and p is not model[3].bias:
                    p.normal_(0, 0.1)
        return hyper

    return make


def hyper_sgd() -> HyperSGD:
    return HyperSGD(network(), 0.3)


def maml() -> Any:
    return l2l.algorithms.MAML(network(), 0.3)


ADAPTERS = {
    **{name: adapter(name) for name in ("gaussian", "prototype", "ridge", "gradient", "own")},
    **{f"{name} with statistics": adapter(name, normalization="support") for name in ("gaussian", "gradient")},
    "modulated": adapter("gaussian", generate="0.*"),
    "modulated with statistics": adapter("gradient", generate="*", normalization="support"),
}
LEARNERS = {"HyperSGD": hyper_sgd, **ADAPTERS}
every_learner = pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)


def adapted(hyper: Any, steps: int = 1) -> Any:
    learner, (x, _) = hyper.clone(), samples()
    for _ in range(steps):
        learner.adapt(F.cross_entropy(learner(x), Y))
    return learner


def optimize(learner: Any) -> None:
    """Under learn2learn an optimizer refuses the tensors of a clone, as they are no leaves."""
    with pytest.raises(ValueError, match="non-leaf"):
        torch.optim.Adam(learner.parameters(), 1.0)


def reset(learner: Any) -> None:
    for module in learner.modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            with torch.no_grad():
                module.reset_parameters()


def change(learner: Any) -> None:
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(1.0)


def load_another(learner: Any) -> None:
    state = {name: torch.full_like(t, 2) for name, t in learner.state_dict().items()}
    learner.load_state_dict(
        {name: t for name, t in state.items() if "running" not in name and "tracked" not in name}, False
    )


def freeze(learner: Any) -> None:
    """Which torch refuses for tensors that are no leaves, in learn2learn's clones too."""
    with pytest.raises(RuntimeError, match="leaf variables"):
        learner.requires_grad_(False)


DONE: dict[str, Callable[[Any], Any]] = {
    "an optimizer": optimize,
    "reset_parameters": reset,
    "a change in place": change,
    "load_state_dict": load_another,
    "requires_grad_": freeze,
    "double": lambda learner: learner.double(),
    "eval": lambda learner: learner.eval(),
    "zero_grad": lambda learner: learner.zero_grad(),
}


# What is done to a clone


@pytest.mark.parametrize("after_adapting", [False, True])
@pytest.mark.parametrize("done", DONE.values(), ids=DONE)
@pytest.mark.parametrize("make", [maml, *LEARNERS.values()], ids=["MAML", *LEARNERS])
def test_what_is_done_to_a_clone_stays_there(make: Make, done: Callable[[Any], None], after_adapting: bool) -> None:
    hyper = make()
    before = {name: t.clone() for name, t in hyper.state_dict().items()}
    clone = adapted(hyper) if after_adapting else hyper.clone()
    averages = {name: t.clone() for name, t in hyper.state_dict().items()}
    done(clone)
    after = hyper.state_dict()
    assert after.keys() == before.keys()
    for name, t in after.items():
        moved = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        torch.testing.assert_close(t, averages[name] if moved else before[name], rtol=0, atol=0)
    assert all(p.requires_grad and p.is_leaf and p.grad is None for p in hyper.parameters())
    assert all(module.training for module in hyper.modules())


@every_learner
def test_zero_grad_on_clones_keeps_the_gradients_of_the_other_tasks(make: Make) -> None:
    """What four tasks leave is four times what one leaves, as under MAML."""

    def gradients(tasks: int, zero: bool) -> list[Tensor]:
        hyper, (x, q) = make().eval(), samples()
        for _ in range(tasks):
            clone = hyper.clone()
            if zero:
                clone.zero_grad()
            clone.adapt(F.cross_entropy(clone(x), Y))
            F.cross_entropy(clone(q), Y).backward()
        return [p.grad for p in hyper.parameters() if p.grad is not None]

    one, four = gradients(1, False), gradients(4, True)
    torch.testing.assert_close(four, [4 * g for g in one])


@every_learner
def test_the_meta_learners_own_gradients_are_zeroed(make: Make) -> None:
    hyper, (_, q) = make(), samples()
    F.cross_entropy(adapted(hyper)(q), Y).backward()
    assert any(p.grad is not None for p in hyper.parameters())
    hyper.zero_grad()
    assert all(p.grad is None for p in hyper.parameters())


@pytest.mark.parametrize(
    "make",
    [hyper_sgd, lambda: HyperAdapter(network(), 0.3, base_learner="gradient", generate="*", residual=False)],
    ids=["HyperSGD", "gradient"],
)
def test_a_clone_that_is_changed_in_place_goes_on_from_there(make: Make) -> None:
    """As under MAML, in value and gradient."""
    (x, q), found = samples(), []
    for build in (make, maml):
        hyper = build()
        clone = hyper.clone()
        with torch.no_grad():
            for p in clone.module.parameters():
                p.mul_(1.5)
        clone.adapt(F.cross_entropy(clone(x), Y))
        outputs = clone(q)
        found.append((outputs, torch.autograd.grad(F.cross_entropy(outputs, Y), list(hyper.module.parameters()))))
    torch.testing.assert_close(*found)


@every_learner
def test_clones_share_nothing_but_running_averages(make: Make) -> None:
    hyper = make()
    for clone in (hyper.clone(), adapted(hyper), adapted(hyper).clone()):
        own = {t.data_ptr() for t in hyper.state_dict().values() if t.numel()}
        shared = [name for name, t in clone.state_dict().items() if t.numel() and t.data_ptr() in own]
        assert not [
            name for name in shared if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        ]


# An adapted clone


@pytest.mark.parametrize("steps", [1, 2])
@every_learner
def test_an_adapted_clone_saves_and_loads(make: Make, steps: int) -> None:
    learner, (_, q) = adapted(make(), steps), samples()
    saved = io.BytesIO()
    torch.save(learner.state_dict(), saved)
    saved.seek(0)
    other = make()
    change(other)
    other = other.clone()
    other.load_state_dict(torch.load(saved, weights_only=True))
    torch.testing.assert_close(other(q), learner(q))
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(q), learner.eval()(q))
    fresh = make()
    adapted(fresh)
    fresh.load_state_dict(other.state_dict())
    torch.testing.assert_close(fresh.eval()(q), learner(q))


@every_learner
def test_a_clone_is_pickled_whole(make: Make) -> None:
    learner, (_, q) = adapted(make()), samples()
    saved = io.BytesIO()
    torch.save(learner, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    torch.testing.assert_close(loaded(q), learner(q))


@every_learner
def test_its_module_alone_answers_as_the_clone(make: Make) -> None:
    learner, (_, q) = adapted(make()), samples()
    torch.testing.assert_close(learner.module(q), learner(q))
    learner.eval()
    torch.testing.assert_close(learner.module(q), learner(q))
    with torch.no_grad():
        torch.testing.assert_close(learner.module(q), learner(q))


WITH_STATISTICS = [make for name, make in ADAPTERS.items() if "statistics" in name]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", WITH_STATISTICS)
def test_its_module_alone_answers_for_one_query(make: Make, training: bool) -> None:
    """With the statistics of the support set."""
    learner, (_, q) = adapted(make()).train(training), samples()
    torch.testing.assert_close(torch.cat([learner.module(one.unsqueeze(0)) for one in q]), learner(q))


@every_learner
def test_an_adapted_clone_follows_double(make: Make) -> None:
    """And goes on from there."""
    x, q = (t.double() for t in samples())
    hyper, reference = make(), make().double().clone()
    learner = adapted(hyper)
    learner.double()
    assert {t.dtype for t in learner.state_dict().values()} <= {torch.double, torch.long}
    reference.adapt(F.cross_entropy(reference(x), Y))
    torch.testing.assert_close(learner(q), reference(q), rtol=1e-3, atol=1e-4)
    if make is ADAPTERS["modulated with statistics"]:  # whose statistics lead back to the weights before
        return
    for one in (learner, reference):
        one.adapt(F.cross_entropy(one(x[:9]), Y[:9]))
    torch.testing.assert_close(learner(q), reference(q), rtol=1e-3, atol=1e-4)
    assert learner(q).dtype is torch.double


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
@every_learner
def test_its_module_is_traced(make: Make) -> None:
    learner, (_, q) = adapted(make()).eval(), samples()
    with torch.no_grad():
        traced = torch.jit.trace(learner.module, (q,))
        torch.testing.assert_close(traced(q[:5]), learner(q[:5]))


@every_learner
def test_a_learner_that_loads_its_state_is_exported(make: Make) -> None:
    """``torch.export`` takes parameters alone, and the tensors of a clone are none."""
    learner, (_, q) = adapted(make()).eval(), samples()
    loaded = make().eval()
    loaded.load_state_dict(learner.state_dict())
    with torch.no_grad():
        program = torch.export.export(loaded.module, (q,))
        torch.testing.assert_close(program.module()(q), learner(q))


# Memory


@every_learner
def test_passes_are_freed_with_their_outputs(make: Make) -> None:
    """Whatever number of query batches has passed."""
    learner, (_, q) = adapted(make()), samples()
    seen: list[weakref.ref[Tensor]] = []
    hook = learner.module[0].register_forward_hook(lambda *call: seen.append(weakref.ref(call[2])))
    for _ in range(20):
        learner(q)
    hook.remove()
    gc.collect()
    assert len(seen) == 20
    assert all(reference() is None for reference in seen)


@every_learner
def test_a_task_is_freed_with_its_clone(make: Make) -> None:
    hyper, (_, q) = make(), samples()
    learner = adapted(hyper)
    F.cross_entropy(learner(q), Y).backward()
    weight = weakref.ref(learner.module[3].weight)
    del learner
    gc.collect()
    assert weight() is None
