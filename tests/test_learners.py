"""HyperAdapter: learn2learn's protocol, the equalities with its baselines, and what it refuses."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper import HyperAdapter, InputError
from l2l_hyper._learn2learn import learn2learn

WAYS, SHOTS, QUERIES, TASKS = 4, 2, 3, 3
BASE_LEARNERS = ["gaussian", "prototype", "ridge", "gradient", "own"]


def network(ways: int = WAYS) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 8), nn.Linear(8, ways)
    )


def adapter(base_learner: str = "prototype", *, model: nn.Module | None = None, **options: object) -> HyperAdapter:
    """A small adapter in float64 whose residual has left zero."""
    torch.manual_seed(1)
    learner = HyperAdapter(
        network() if model is None else model, 0.4, base_learner=base_learner, width=16, **options
    ).double()
    with torch.no_grad():
        for p in learner.parameters():
            if not p.any():
                p.normal_(0, 0.3)
    return learner


def tasks(ways: int = WAYS, shots: int = SHOTS, count: int = TASKS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    x = torch.randn(count, ways * shots, 1, 8, 8, dtype=torch.double)
    q = torch.randn(count, ways * QUERIES, 1, 8, 8, dtype=torch.double)
    labels = torch.arange(ways)
    return x, labels.repeat_interleave(shots).expand(count, -1), q, labels.repeat_interleave(QUERIES).expand(count, -1)


def gradients(loss: Tensor, learner: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(learner.parameters())))


# One math path


@pytest.mark.parametrize("normalization", ["support", "transductive"])
@pytest.mark.parametrize("generate", [(), ["0.*", "1.*"]], ids=["head", "head+body"])
@pytest.mark.parametrize("base_learner", BASE_LEARNERS)
def test_learner_and_engine_agree_in_value_and_gradient(
    base_learner: str, generate: list[str], normalization: str
) -> None:
    hyper = adapter(base_learner, generate=generate, normalization=normalization)
    x, y, q, qy = tasks()
    adapted = hyper.adapt_tasks(x, y)
    batched = hyper.predict_tasks(adapted, q)
    loss = F.cross_entropy(batched.transpose(1, 2), qy, reduction="none").mean(1) + hyper.method.penalty(adapted)
    batched_gradients = gradients(loss.sum(), hyper)
    total = torch.zeros((), dtype=torch.double)
    for i in range(TASKS):
        learner = hyper.clone()
        learner.adapt(F.cross_entropy(learner(x[i]), y[i]))
        outputs = learner(q[i])
        torch.testing.assert_close(outputs, batched[i])
        total = total + F.cross_entropy(outputs, qy[i])
    for a, b in zip(gradients(total, hyper), batched_gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("base_learner", BASE_LEARNERS)
def test_explicit_support_gives_what_the_loss_gives(base_learner: str) -> None:
    hyper = adapter(base_learner, generate=["0.weight"])
    x, y, q, _ = tasks()
    by_loss, by_support, without_graph = hyper.clone(), hyper.clone(), hyper.clone()
    for _ in range(2):
        by_loss.adapt(F.cross_entropy(by_loss(x[0]), y[0]))
        by_support.adapt(support=(x[0], y[0]))
        with torch.no_grad():
            without_graph.adapt(support=(x[0], y[0]))
    torch.testing.assert_close(by_loss(q[0]), by_support(q[0]))
    with torch.no_grad():
        torch.testing.assert_close(by_loss(q[0]), without_graph(q[0]))


# Equalities with the baselines


@pytest.mark.parametrize(
    ("generate", "steps", "residual"),
    [
        pytest.param((), 1, True, id="ANIL, untrained residual"),
        pytest.param((), 3, True, id="ANIL, three steps, untrained residual"),
        pytest.param((), 3, False, id="ANIL, three steps"),
        pytest.param("*", 1, True, id="MAML, untrained residual"),
        pytest.param("*", 1, False, id="MAML"),
        pytest.param("*", 3, False, id="MAML, three steps"),
    ],
)
@pytest.mark.parametrize("first_order", [False, True])
def test_gradient_start_is_learn2learns_maml(first_order: bool, generate: str, steps: int, residual: bool) -> None:
    """On the generated layers, in value and in gradient of every parameter of the network."""
    l2l = learn2learn()
    torch.manual_seed(0)
    model = network().double()
    reference = copy.deepcopy(model)
    hyper = HyperAdapter(
        model,
        0.4,
        first_order,
        base_learner="gradient",
        generate=generate,
        residual=residual,
        normalization="transductive",
    ).double()
    head = l2l.algorithms.MAML(reference[-1], lr=0.4, first_order=first_order)
    maml = l2l.algorithms.MAML(reference, lr=0.4, first_order=first_order)
    x, y, q, qy = tasks()
    ours = hyper.clone()
    theirs = maml.clone() if generate else head.clone()

    def features(x: Tensor) -> Tensor:
        return x if generate else reference[:-1](x)

    for _ in range(steps):
        ours.adapt(F.cross_entropy(ours(x[0]), y[0]))
        theirs.adapt(F.cross_entropy(theirs(features(x[0])), y[0]))
    outputs, expected = ours(q[0]), theirs(features(q[0]))
    torch.testing.assert_close(outputs, expected)
    mine = torch.autograd.grad(F.cross_entropy(outputs, qy[0]), list(model.parameters()))
    other = torch.autograd.grad(F.cross_entropy(expected, qy[0]), list(reference.parameters()))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b)


def test_untrained_prototype_start_is_learn2learns_protonet() -> None:
    l2l = learn2learn()
    model = network().double()
    hyper = HyperAdapter(model, base_learner="prototype", normalization="transductive").double()
    x, y, q, qy = tasks()
    learner = hyper.clone()
    learner.adapt(F.cross_entropy(learner(x[0]), y[0]))
    ours = F.cross_entropy(learner(q[0]), qy[0])
    classifier = l2l.nn.PrototypicalClassifier(model[:-1](x[0]), y[0])
    theirs = F.cross_entropy(classifier(model[:-1](q[0])), qy[0])
    torch.testing.assert_close(ours, theirs)
    body = list(model[:-1].parameters())
    for a, b in zip(torch.autograd.grad(ours, body), torch.autograd.grad(theirs, body), strict=True):
        torch.testing.assert_close(a, b)


# Symmetries


@pytest.mark.parametrize("base_learner", ["prototype", "gaussian", "ridge"])
def test_relabelling_permutes_and_support_order_does_not_matter(base_learner: str) -> None:
    hyper = adapter(base_learner)
    x, y, q, _ = tasks()
    relabel, order = torch.randperm(WAYS), torch.randperm(WAYS * SHOTS)
    outputs = hyper.predict_tasks(hyper.adapt_tasks(x, y), q)
    relabelled = hyper.predict_tasks(hyper.adapt_tasks(x, relabel[y]), q)
    torch.testing.assert_close(relabelled[..., relabel], outputs)
    reordered = hyper.predict_tasks(hyper.adapt_tasks(x[:, order], y[:, order]), q)
    torch.testing.assert_close(reordered, outputs)


def test_ways_and_shots_that_training_never_saw() -> None:
    hyper = adapter()
    for ways, shots in ((2, 1), (7, 3)):
        x, y, q, _ = tasks(ways, shots)
        batched = hyper.predict_tasks(hyper.adapt_tasks(x, y, ways=ways), q)
        assert batched.shape == (TASKS, ways * QUERIES, ways)
        learner = hyper.clone()
        learner.adapt(support=(x[0], y[0]), ways=ways)
        torch.testing.assert_close(learner(q[0]), batched[0])


def test_queries_do_not_see_each_other_unless_declared() -> None:
    x, y, q, _ = tasks()
    for normalization, independent in (("support", True), ("transductive", False)):
        hyper = adapter(generate=["0.*"], normalization=normalization)
        adapted = hyper.adapt_tasks(x, y)
        together = hyper.predict_tasks(adapted, q)
        alone = torch.cat([hyper.predict_tasks(adapted, q[:, i : i + 1]) for i in range(q.shape[1])], 1)
        assert torch.allclose(together, alone) is independent


# The protocol


def test_nothing_that_is_done_to_a_clone_reaches_the_meta_learner() -> None:
    hyper = adapter(normalization="support")
    x, y, q, _ = tasks()
    first, second = hyper.clone(), hyper.clone()
    assert type(first) is HyperAdapter
    before = {n: t.clone() for n, t in hyper.state_dict().items()}
    first.adapt(F.cross_entropy(first(x[0]), y[0]))
    nested = first.clone()
    torch.testing.assert_close(nested(q[0]), first(q[0]))
    first.eval()
    with torch.no_grad():
        for tensor in (*first.parameters(), *first.buffers()):
            tensor.add_(1)
    assert all(torch.equal(t, before[n]) for n, t in hyper.state_dict().items())
    assert hyper.training and all(m.training for m in second.modules())
    torch.testing.assert_close(second(q[0]), hyper(q[0]))


def test_the_users_model_is_shared_but_not_rebuilt() -> None:
    model = network()
    hyper = HyperAdapter(model)
    assert isinstance(model[1], nn.BatchNorm2d) and isinstance(model[-1].weight, nn.Parameter)
    assert hyper.module[0].weight is model[0].weight
    assert hyper.method.network.head.out_features == WAYS


@pytest.mark.parametrize("generate", [(), ["0.*"]], ids=["head", "head+body"])
@pytest.mark.parametrize("modulation", ["feature-wise", "low-rank", "both"])
@pytest.mark.parametrize("base_learner", BASE_LEARNERS)
def test_every_parameter_gets_a_gradient(base_learner: str, modulation: str, generate: list[str]) -> None:
    hyper = HyperAdapter(network(), base_learner=base_learner, generate=generate, modulation=modulation, width=16)
    x, y, q, qy = (t.float() if t.is_floating_point() else t for t in tasks())
    optimizer = torch.optim.SGD(hyper.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        learner = hyper.clone()
        learner.adapt(F.cross_entropy(learner(x[0]), y[0]))
        F.cross_entropy(learner(q[0]), qy[0]).backward()
        missing = [n for n, p in hyper.named_parameters() if p.grad is None]
        assert not missing
        optimizer.step()
    dead = [n for n, p in hyper.named_parameters() if not p.grad.any()]
    # A bias before a normalization layer cancels.
    assert not [n for n in dead if not n.endswith("module.0.bias")], dead


def test_penalty_is_the_mean_square_of_the_scaled_residual_of_each_task() -> None:
    hyper = adapter(penalty=0.7)
    x, y, *_ = tasks()
    deltas: list[Tensor] = []
    hyper.method.residual.generator.linear.register_forward_hook(lambda *call: deltas.append(call[2]))
    penalty = hyper.method.penalty(hyper.adapt_tasks(x, y))
    (delta,) = deltas
    scale = hyper.method.options.scale
    expected = sum(0.7 * (scale * part).square().flatten(1).mean(1) for part in (delta[..., :-1], delta[..., -1]))
    torch.testing.assert_close(penalty, expected)


@pytest.mark.parametrize("factors", [(1.0, 1.0), (1 / 16, 1 / 16), (0.5, 3.0)], ids=["sum", "accumulated", "weighted"])
@pytest.mark.parametrize(
    ("loss", "share"),
    [
        (F.cross_entropy, 1),
        (lambda o, y: F.cross_entropy(o, y, reduction="sum"), WAYS * QUERIES),
        (lambda o, y: F.cross_entropy(o, y, label_smoothing=0.1), 1),
        (lambda o, y: F.cross_entropy(o, y, weight=torch.linspace(0.5, 3, WAYS, dtype=o.dtype)), 1),
        (lambda o, y: F.cross_entropy(o[:3], y[:3]) / 4 + F.cross_entropy(o[3:], y[3:]) * 3 / 4, 1),
    ],
    ids=["mean", "sum", "smoothed", "class weights", "in parts"],
)
def test_the_penalty_follows_the_loss_of_a_script(
    loss: Callable[[Tensor, Tensor], Tensor], share: int, factors: tuple[float, float]
) -> None:
    """Its gradient is that of the explicit term under the same factors."""
    hyper, free, term = adapter(penalty=0.7), adapter(penalty=0.0), adapter(penalty=0.7)
    x, y, q, qy = tasks()

    def script(hyper: HyperAdapter) -> Tensor:
        total = torch.zeros((), dtype=torch.double)
        for t, factor in enumerate(factors):
            learner = hyper.clone()
            learner.adapt(F.cross_entropy(learner(x[t]), y[t]))
            total = total + factor * loss(learner(q[t]), qy[t])
        return total

    penalties = term.method.penalty(term.adapt_tasks(x[:2], y[:2]))
    explicit = torch.autograd.grad(
        (share * torch.tensor(factors) * penalties).sum(), list(term.parameters()), allow_unused=True
    )
    for a, b, c in zip(gradients(script(hyper), hyper), gradients(script(free), free), explicit, strict=True):
        torch.testing.assert_close(a, b if c is None else b + c)


def test_a_query_loss_that_is_no_cross_entropy_says_that_the_penalty_is_left_out() -> None:
    hyper, (x, y, q, _) = adapter(), tasks()
    learner = hyper.clone()
    learner.adapt(F.cross_entropy(learner(x[0]), y[0]))
    with pytest.warns(UserWarning, match=r"add learner.penalty\(\) to the loss"):
        learner(q[0]).square().mean().backward()


def test_state_dict_pickle_and_deepcopy() -> None:
    hyper, other = adapter(generate=["0.*"]), adapter("prototype", generate=["0.*"])
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    other.load_state_dict(hyper.state_dict())
    x, y, q, _ = tasks()
    expected = hyper.predict_tasks(hyper.adapt_tasks(x, y), q)
    hyper(x[0])  # an open record must not get in the way
    for same in (other, copy.deepcopy(hyper), pickle.loads(pickle.dumps(hyper))):
        torch.testing.assert_close(same.predict_tasks(same.adapt_tasks(x, y), q), expected)
    assert "ClassAttention" in repr(hyper)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at it
@pytest.mark.parametrize("options", [{}, {"generate": ["0.*"]}, {"base_learner": "gradient"}])
def test_what_makes_the_weights_compiles(options: dict[str, object]) -> None:
    hyper, (x, y, *_) = adapter(**options, blocks=1), tasks()

    def run(learner: HyperAdapter) -> list[Tensor]:
        weights = list(learner.adapt_tasks(x, y).weights.values())
        loss = sum(w.square().sum() for w in weights)
        learned = [p for name, p in learner.named_parameters() if "residual" in name or "modulation" in name]
        return [*weights, *torch.autograd.grad(loss, learned)]

    expected = run(hyper)
    hyper.compile(backend="aot_eager")  # the default one needs a C++ compiler
    torch.testing.assert_close(run(hyper), expected)
    torch.testing.assert_close(run(pickle.loads(pickle.dumps(hyper))), expected)
    learner = hyper.clone()
    learner.adapt(support=(x[0], y[0]))
    torch.testing.assert_close(learner.module[5].weight, hyper.adapt_tasks(x, y).weights["5.weight"][0])


def test_a_script_written_for_maml_runs_with_mamls_arguments() -> None:
    """The loop of learn2learn's maml_omniglot.py, with the line that builds the algorithm changed."""
    torch.manual_seed(0)
    maml = HyperAdapter(network(), lr=0.5, first_order=False, allow_unused=None, allow_nograd=False)
    opt = torch.optim.Adam(maml.parameters(), 0.01)
    loss = nn.CrossEntropyLoss(reduction="mean")
    centers = torch.randn(WAYS, 1, 8, 8)
    errors = []
    for _ in range(15):
        opt.zero_grad()
        total = 0.0
        for _ in range(4):
            learner = maml.clone()
            labels = torch.randperm(WAYS).repeat_interleave(2)
            data = centers[torch.arange(WAYS).repeat_interleave(2)] + 1.5 * torch.randn(2 * WAYS, 1, 8, 8)
            for _ in range(2):
                learner.adapt(loss(learner(data[::2]), labels[::2]))
            error = loss(learner(data[1::2]), labels[1::2])
            error.backward()
            total += error.item()
        errors.append(total)
        for p in maml.parameters():
            p.grad.data.mul_(1.0 / 4)
        opt.step()
    assert sum(errors[-3:]) < 0.7 * sum(errors[:3])


def test_a_bare_linear_head_as_anil_scripts_have_it() -> None:
    features, head = network()[:-1].double(), HyperAdapter(nn.Linear(8, WAYS), lr=0.1).double()
    x, y, q, qy = tasks()
    learner = head.clone()
    learner.adapt(F.cross_entropy(learner(features(x[0])), y[0]))
    F.cross_entropy(learner(features(q[0])), qy[0]).backward()
    assert all(p.grad is not None for p in [*head.parameters(), *features.parameters()])


@pytest.mark.parametrize("base_learner", ["gaussian", "gradient"])
def test_a_model_that_ends_in_log_softmax_as_meta_mnist_has_it(base_learner: str) -> None:
    plain = adapter(base_learner)
    ending = adapter(base_learner, model=nn.Sequential(network(), nn.LogSoftmax(-1)))
    ending.load_state_dict(
        {
            f"module.0.{n.removeprefix('module.')}" if n.startswith("module.") else n: t
            for n, t in plain.state_dict().items()
        }
    )
    x, y, q, qy = (t[0] for t in tasks())
    first, second = plain.clone(), ending.clone()
    first.adapt(F.cross_entropy(first(x), y))
    second.adapt(F.nll_loss(second(x), y))
    loss, same = F.cross_entropy(first(q), qy), F.nll_loss(second(q), qy)
    torch.testing.assert_close(loss, same)
    for a, b in zip(gradients(loss, plain), gradients(same, ending), strict=True):
        torch.testing.assert_close(a, b)


def test_a_forward_pass_keeps_no_graph_alive() -> None:
    hyper, (x, y, q, _) = adapter(), tasks()
    learner = hyper.clone()
    learner.adapt(F.cross_entropy(learner(x[0]), y[0]))
    features: list[weakref.ref[Tensor]] = []
    hook = learner.module[4].register_forward_hook(lambda *call: features.append(weakref.ref(call[2])))
    for _ in range(3):
        learner(q[0])
    hook.remove()
    gc.collect()
    assert all(reference() is None for reference in features)


# What it refuses


def test_bad_input_is_refused_with_a_way_out() -> None:
    x, y, q, qy = (t[0] for t in tasks())
    with pytest.raises(InputError, match="last layer is an nn.Linear, got Sequential without one"):
        HyperAdapter(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()))
    with pytest.raises(InputError, match="expected an nn.Module to adapt, got int"):
        HyperAdapter(3)
    with pytest.raises(InputError, match="base_learner must be 'gaussian', 'prototype'"):
        HyperAdapter(network(), base_learner="zero")
    with pytest.raises(InputError, match="matches no parameter"):
        HyperAdapter(network(), generate="layers.*")
    with pytest.raises(InputError, match="makes its outputs from those of its last nn.Linear"):
        HyperAdapter(nn.Sequential(nn.Linear(8, 6), nn.AvgPool2d(2)).double())(x)
    hyper = adapter()
    learner = hyper.clone()
    outputs = learner(x)
    with pytest.raises(InputError, match="one forward pass of this learner with gradients, got one on 0"):
        learner.adapt(torch.tensor(1.0, requires_grad=True))
    with pytest.raises(InputError, match="one forward pass of this learner with gradients, got one on 0"):
        learner.adapt(F.cross_entropy(hyper.clone()(x), y))
    with pytest.raises(InputError, match="got one on 2"):
        learner.adapt(F.cross_entropy(outputs, y) + F.cross_entropy(learner(x), y))
    with pytest.raises(InputError, match="expected a scalar loss"):
        learner.adapt(F.cross_entropy(outputs, y, reduction="none"))
    with pytest.raises(InputError, match="expected a finite loss, got nan"):
        learner.adapt(F.cross_entropy(outputs, y) * torch.nan)
    with pytest.raises(InputError, match="got neither"):
        learner.adapt()
    with pytest.raises(InputError, match=r"labels must lie in 0 … 3 for 4 ways, got 1 … 4"):
        learner.adapt(support=(x, y + 1))
    with pytest.raises(InputError, match=r"classes \[3\] of 4 have none"):
        learner.adapt(support=(x, y.clamp_max(2)))
    with pytest.raises(InputError, match=r"classes \[3\] of 4 have none"):
        learner.adapt(F.cross_entropy(outputs, y.clamp_max(2)))
    with pytest.raises(InputError, match="try base_learner='ridge'"):
        learner.adapt(F.mse_loss(outputs, torch.randn_like(outputs)))
    with pytest.raises(InputError, match="has 4 outputs, got a task of 5 ways"):
        adapter("gradient").adapt(support=(x[:5], torch.arange(5)), ways=5)
    frozen = adapter("gradient")
    frozen.method.network.head.weight.requires_grad_(False)
    learner = frozen.clone()
    with pytest.raises(InputError, match="try allow_nograd=True"):
        learner.adapt(F.cross_entropy(learner(x), y))
    learner.adapt(F.cross_entropy(learner(x), y), allow_nograd=True)
    assert F.cross_entropy(learner(q), qy).isfinite()
