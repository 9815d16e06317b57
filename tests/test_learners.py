"""HyperAdapter: learn2learn's protocol, the equalities with its baselines, and what it refuses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper import HyperAdapter, InputError
from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.hypernet import STARTS
from l2l_hyper.learners.labels import recover_targets

WAYS, SHOTS, QUERIES, TASKS = 4, 2, 3, 3


def network(ways: int = WAYS) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 8), nn.Linear(8, ways)
    )


def adapter(start: str = "prototype", *, model: nn.Module | None = None, **options: object) -> HyperAdapter:
    """A small adapter in float64 whose residual has left zero."""
    torch.manual_seed(1)
    learner = HyperAdapter(network() if model is None else model, 0.4, start=start, width=16, **options).double()
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
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("generate", [(), ["0.*", "1.*"]], ids=["head", "head+body"])
@pytest.mark.parametrize("start", list(STARTS))
def test_learner_and_engine_agree_in_value_and_gradient(
    start: str, generate: list[str], steps: int, normalization: str
) -> None:
    hyper = adapter(start, generate=generate, normalization=normalization)
    x, y, q, qy = tasks()
    batched = hyper.predict_tasks(hyper.adapt_tasks(x, y, steps=steps), q)
    batched_gradients = gradients(F.cross_entropy(batched.flatten(0, 1), qy.flatten(), reduction="sum"), hyper)
    total = torch.zeros((), dtype=torch.double)
    for i in range(TASKS):
        learner = hyper.clone()
        for _ in range(steps):
            learner.adapt(F.cross_entropy(learner(x[i]), y[i]))
        outputs = learner(q[i])
        torch.testing.assert_close(outputs, batched[i])
        total = total + F.cross_entropy(outputs, qy[i], reduction="sum")
    for a, b in zip(gradients(total, hyper), batched_gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("start", list(STARTS))
def test_explicit_support_gives_what_the_loss_gives(start: str) -> None:
    hyper = adapter(start, generate=["0.weight"])
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
    assert not any(w.requires_grad for w in without_graph._state.weights.values())


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
        model, 0.4, first_order, start="gradient", generate=generate, residual=residual, normalization="transductive"
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
    hyper = HyperAdapter(model, start="prototype", normalization="transductive").double()
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


@pytest.mark.parametrize("start", ["prototype", "gaussian", "ridge"])
def test_relabelling_permutes_and_support_order_does_not_matter(start: str) -> None:
    hyper = adapter(start)
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


def test_clones_share_meta_parameters_and_nothing_mutable() -> None:
    hyper = adapter(normalization="running")
    x, y, q, _ = tasks()
    first, second = hyper.clone(), hyper.clone()
    assert type(first) is HyperAdapter
    assert all(a is b for a, b in zip(first.parameters(), hyper.parameters(), strict=True))
    before = {n: t.clone() for n, t in hyper.state_dict().items()}
    first.adapt(F.cross_entropy(first(x[0]), y[0]))
    first.eval()
    for buffer in first.buffers():
        buffer.add_(1)
    assert all(torch.equal(t, before[n]) for n, t in hyper.state_dict().items())
    assert hyper.training and all(m.training for m in second.modules())
    assert second._state is None and not second._seen and hyper._state is None and not hyper._seen
    nested = first.clone()
    torch.testing.assert_close(nested(q[0]), first(q[0]))


def test_the_users_model_is_shared_but_not_rebuilt() -> None:
    model = network()
    hyper = HyperAdapter(model)
    assert isinstance(model[1], nn.BatchNorm2d) and isinstance(model[-1].weight, nn.Parameter)
    assert hyper.module[0].weight is model[0].weight
    assert hyper.head.out_features == WAYS


@pytest.mark.parametrize("generate", [(), ["0.*"]], ids=["head", "head+body"])
@pytest.mark.parametrize("change", ["feature-wise", "low-rank", "both"])
@pytest.mark.parametrize("start", list(STARTS))
def test_every_parameter_gets_a_gradient(start: str, change: str, generate: list[str]) -> None:
    hyper = HyperAdapter(network(), start=start, generate=generate, change=change, width=16)
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
    # A bias before a normalization layer cancels, and so do what a softmax over classes cannot see.
    assert not [n for n in dead if not n.startswith("module.0.bias")], dead


def test_penalty_is_in_the_gradient_once_a_task() -> None:
    hyper, free = adapter(penalty=0.7), adapter(penalty=0.0)
    free.load_state_dict(hyper.state_dict())
    x, y, q, qy = tasks()

    def loss(learner: HyperAdapter) -> Tensor:
        outputs = learner.predict_tasks(learner.adapt_tasks(x, y), q)
        return F.cross_entropy(outputs.transpose(1, 2), qy, reduction="none").mean(1).sum()

    deltas: list[Tensor] = []
    hook = free.hyper.generator.linear.register_forward_hook(lambda *call: deltas.append(call[2]))
    total = loss(free)
    hook.remove()
    # The generated change of a task, weight rows and bias in one, has mean squares of its own.
    (delta,) = deltas
    relative = sum((free.scale * part).square().flatten(1).mean(1).sum() for part in (delta[..., :-1], delta[..., -1]))
    for a, b in zip(gradients(loss(hyper), hyper), gradients(total + 0.7 * relative, free), strict=True):
        torch.testing.assert_close(a, b)


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
    assert "scale" not in repr(hyper) and "ClassAttention" in repr(hyper)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at it
@pytest.mark.parametrize("options", [{}, {"generate": ["0.*"]}, {"start": "gradient"}])
def test_what_makes_the_weights_compiles(options: dict[str, object]) -> None:
    hyper, (x, y, *_) = adapter(**options), tasks()

    def run(learner: HyperAdapter) -> list[Tensor]:
        weights = list(learner.adapt_tasks(x, y).weights.values())
        loss = sum(w.square().sum() for w in weights)
        learned = [p for name, p in learner.named_parameters() if name.startswith("hyper")]
        return [*weights, *torch.autograd.grad(loss, learned)]

    expected = run(hyper)
    hyper.compile(backend="aot_eager")  # the default one needs a C++ compiler
    torch.testing.assert_close(run(hyper), expected)
    torch.testing.assert_close(run(pickle.loads(pickle.dumps(hyper))), expected)
    learner = hyper.clone()
    learner.adapt(support=(x[0], y[0]))
    torch.testing.assert_close(learner.head.weight, expected[0][0])


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


@pytest.mark.parametrize("start", ["gaussian", "gradient"])
def test_a_model_that_ends_in_log_softmax_as_meta_mnist_has_it(start: str) -> None:
    plain = adapter(start)
    ending = adapter(start, model=nn.Sequential(network(), nn.LogSoftmax(-1)))
    ending.load_state_dict({n.replace("module.", "module.0."): t for n, t in plain.state_dict().items()})
    x, y, q, qy = (t[0] for t in tasks())
    first, second = plain.clone(), ending.clone()
    first.adapt(F.cross_entropy(first(x), y))
    second.adapt(F.nll_loss(second(x), y))
    loss, same = F.cross_entropy(first(q), qy), F.nll_loss(second(q), qy)
    torch.testing.assert_close(loss, same)
    for a, b in zip(gradients(loss, plain), gradients(same, ending), strict=True):
        torch.testing.assert_close(a, b)


def test_repeated_evaluation_without_gradients_keeps_no_records() -> None:
    hyper = adapter()
    x, y, q, _ = tasks()
    learner = hyper.clone()
    with torch.no_grad():
        for _ in range(3):
            learner.adapt(support=(x[0], y[0]))
            learner(q[0])
    assert not learner._seen


# Labels without being told


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0], ids="outputs x{}".format)
@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(label_smoothing=0.3, reduction="sum"),
        lambda o, y: 3.7 * F.cross_entropy(o, y),
        lambda o, y: F.cross_entropy(o, y, weight=torch.linspace(0.5, 3, o.shape[-1], dtype=o.dtype)),
    ],
    ids=["mean", "sum", "smooth mean", "smooth sum", "scaled", "class weights"],
)
@pytest.mark.parametrize("ways", [2, 5, 20])
def test_labels_are_recovered_from_cross_entropy(loss: nn.Module, ways: int, scale: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    outputs = (scale * torch.randn(3 * ways, ways, dtype=dtype)).requires_grad_()
    labels = torch.arange(ways).repeat(3)[torch.randperm(3 * ways)]
    value = loss(outputs, labels)
    (delta,) = torch.autograd.grad(value, outputs)
    targets, classification = recover_targets(outputs, delta, value)
    assert classification and torch.equal(targets, F.one_hot(labels, ways).to(dtype))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("width", [1, 3])
def test_values_are_recovered_from_squared_error(width: int, reduction: str) -> None:
    outputs, values = torch.randn(6, width, requires_grad=True), torch.randn(6, width)
    loss = F.mse_loss(outputs, values, reduction=reduction)
    (delta,) = torch.autograd.grad(loss, outputs)
    targets, classification = recover_targets(outputs, delta, loss)
    assert not classification
    torch.testing.assert_close(targets, values)


def test_another_loss_gives_its_descent_direction() -> None:
    outputs, values = torch.randn(6, 3, requires_grad=True), torch.randn(6, 3)
    loss = F.smooth_l1_loss(outputs, values)
    (delta,) = torch.autograd.grad(loss, outputs)
    targets, classification = recover_targets(outputs, delta, loss)
    assert not classification
    torch.testing.assert_close(targets, outputs.detach() - 6 * delta)


# What it refuses


def test_bad_input_is_refused_with_a_way_out() -> None:
    x, y, q, qy = (t[0] for t in tasks())
    with pytest.raises(InputError, match="last layer is an nn.Linear, got Sequential without one"):
        HyperAdapter(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()))
    with pytest.raises(InputError, match="expected an nn.Module to adapt, got int"):
        HyperAdapter(3)
    with pytest.raises(InputError, match="start must be one of base, prototype"):
        HyperAdapter(network(), start="zero")
    with pytest.raises(InputError, match="matches no parameter"):
        HyperAdapter(network(), generate="layers.*")
    with pytest.raises(InputError, match="makes its outputs from those of its last nn.Linear"):
        HyperAdapter(nn.Sequential(nn.Linear(8, 6), nn.AvgPool2d(2)).double())(x)
    hyper = adapter()
    with pytest.raises(InputError, match="before a forward pass"):
        hyper.clone().adapt(torch.tensor(1.0, requires_grad=True))
    learner = hyper.clone()
    outputs = learner(x)
    with pytest.raises(InputError, match="one forward pass since the last adapt, got one on 0 of 1"):
        learner.adapt(torch.tensor(1.0, requires_grad=True))
    with pytest.raises(InputError, match="got one on 2 of 2"):
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
    with pytest.raises(InputError, match="try start='ridge'"):
        learner.adapt(F.mse_loss(outputs, torch.randn_like(outputs)))
    with pytest.raises(InputError, match="has 4 outputs, got a task of 5 ways"):
        adapter("gradient").adapt(support=(x[:5], torch.arange(5)), ways=5)
    frozen = adapter("gradient")
    frozen.head.weight.requires_grad_(False)
    learner = frozen.clone()
    with pytest.raises(InputError, match="try allow_nograd=True"):
        learner.adapt(F.cross_entropy(learner(x), y))
    learner.adapt(F.cross_entropy(learner(x), y), allow_nograd=True)
    assert F.cross_entropy(learner(q), qy).isfinite()
