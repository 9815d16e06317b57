"""What ``adapt(loss)`` makes of the losses that scripts write: what ``adapt(support=...)`` gives, MAML, or an error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper import HyperAdapter, HyperSGD, InputError
from l2l_hyper._learn2learn import learn2learn

l2l = learn2learn()
WAYS, LR = 3, 0.3
READ = ["gaussian", "prototype", "ridge", "own"]  # the support set; the others go down the loss
Y = torch.arange(WAYS).repeat(4)
Loss = Callable[[Tensor], Tensor]


def network(outputs: int = WAYS) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, outputs)).double()


def samples() -> tuple[Tensor, Tensor]:
    """Of the support set and the queries."""
    torch.manual_seed(1)
    x, q = torch.randn(2, len(Y), 6, dtype=torch.double)
    return x, q


def adapter(base_learner: str, model: nn.Module | None = None, **options: Any) -> HyperAdapter:
    """With a residual that has left zero."""
    torch.manual_seed(2)
    learner = HyperAdapter(
        network() if model is None else model, LR, base_learner=base_learner, width=16, **options
    ).double()
    with torch.no_grad():
        for p in learner.parameters():
            if not p.any():
                p.normal_(0, 0.1)
    return learner


def hyper_sgd(model: nn.Module) -> HyperSGD:
    return HyperSGD(model, LR).double()


def gradient(model: nn.Module) -> HyperAdapter:
    return HyperAdapter(model, LR, base_learner="gradient", generate="*", residual=False)


def maml(model: nn.Module) -> Any:
    return l2l.algorithms.MAML(model, LR)


SAME_AS_MAML = {"HyperSGD": hyper_sgd, "gradient": gradient}
like_maml = pytest.mark.parametrize("make", SAME_AS_MAML.values(), ids=SAME_AS_MAML)


def assert_as_told(hyper: HyperAdapter, x: Tensor, y: Any, loss: Loss, **told: Any) -> None:
    """The loss gives the weights that the support set gives."""
    _, q = samples()
    by_loss, by_support = hyper.clone(), hyper.clone()
    by_loss.adapt(loss(by_loss(samples()[0])), **told)
    by_support.adapt(support=(x, y))
    torch.testing.assert_close(by_loss(q), by_support(q), rtol=1e-6, atol=1e-6)


# Terms that are not about the outputs


def decay(learner: Any, _: nn.Module) -> Tensor:
    return 0.1 * sum(p.square().sum() for p in learner.parameters())


def proximal(learner: Any, start: nn.Module) -> Tensor:
    pairs = zip(learner.module[0].parameters(), start[0].parameters(), strict=True)
    return 0.1 * sum((p - s.detach() - 0.1).square().sum() for p, s in pairs)


def of_features(learner: Any, _: nn.Module) -> Tensor:
    return 0.1 * learner.module[:2](samples()[0]).square().sum()


TERMS = [decay, proximal, of_features]


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("steps", [1, 3])
@like_maml
def test_terms_beside_the_outputs_are_mamls(make: Any, steps: int, term: Any) -> None:
    (x, q), found = samples(), []
    for build in (make, maml):
        model = network()
        learner = build(model).clone()
        for _ in range(steps):
            learner.adapt(F.cross_entropy(learner(x), Y) + term(learner, model))
        outputs = learner(q)
        found.append((outputs, torch.autograd.grad(F.cross_entropy(outputs, Y), list(model.parameters()))))
    torch.testing.assert_close(*found)


def test_a_gradient_on_the_head_honours_terms_about_it() -> None:
    """As MAML on the head alone; an untrained residual, which reads labels, has to be told them."""
    (x, q), model = samples(), network()
    head = l2l.algorithms.MAML(copy.deepcopy(model[-1]), LR).clone()
    head.adapt(F.cross_entropy(head(model[:-1](x)), Y) + decay(head, model))
    for residual, told in ((False, {}), (True, {"labels": Y})):
        learner = HyperAdapter(model, LR, base_learner="gradient", residual=residual).double().clone()
        learner.adapt(F.cross_entropy(learner(x), Y) + decay(learner.module[-1], model), **told)
        torch.testing.assert_close(learner(q), head(model[:-1](q)))
    learner = HyperAdapter(model, LR, base_learner="gradient").double().clone()
    with pytest.raises(InputError, match=r"another term; .* adapt\(loss, labels=y\)"):
        learner.adapt(F.cross_entropy(learner(x), Y) + decay(learner.module[-1], model))


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("base_learner", READ)
def test_a_closed_form_says_which_term_it_cannot_honour(base_learner: str, term: Any) -> None:
    x, _ = samples()
    model = network()
    learner = adapter(base_learner, model).clone()
    with pytest.raises(InputError, match=r"a term that is not about the outputs.*HyperSGD or base_learner='gradient'"):
        learner.adapt(F.cross_entropy(learner(x), Y) + term(learner, model))


# Support mini-batches and further steps


@pytest.mark.parametrize("generate", ["", "0.*"], ids=["head", "head+body"])
@pytest.mark.parametrize("base_learner", READ)
def test_support_mini_batches_are_read_together(base_learner: str, generate: str) -> None:
    hyper, (x, q) = adapter(base_learner, generate=generate), samples()
    at_once, by_loss, by_support = hyper.clone(), hyper.clone(), hyper.clone()
    at_once.adapt(F.cross_entropy(at_once(x), Y))
    for part in (slice(0, 3), slice(3, 9), slice(9, 12)):
        by_loss.adapt(F.cross_entropy(by_loss(x[part]), Y[part]))
        by_support.adapt(support=(x[part], Y[part]))
    for learner in (by_loss, by_support):
        torch.testing.assert_close(learner(q), at_once(q))
    expected, found = (
        torch.autograd.grad(F.cross_entropy(learner(q), Y), list(hyper.parameters())) for learner in (at_once, by_loss)
    )
    torch.testing.assert_close(found, expected)


@like_maml
def test_support_mini_batches_are_steps_as_under_maml(make: Any) -> None:
    (x, q), outputs = samples(), []
    for build in (make, maml):
        learner = build(network()).clone()
        for part in (slice(0, 3), slice(3, 9), slice(9, 12)):
            learner.adapt(F.cross_entropy(learner(x[part]), Y[part]))
        outputs.append(learner(q))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("generate", ["", "0.*"], ids=["head", "head+body"])
@pytest.mark.parametrize("base_learner", READ)
def test_the_same_samples_again_change_nothing(base_learner: str, generate: str) -> None:
    learner, (x, q) = adapter(base_learner, generate=generate).clone(), samples()
    learner.adapt(F.cross_entropy(learner(x), Y))
    before = learner(q)
    for _ in range(3):
        learner.adapt(F.cross_entropy(learner(x), Y))
    torch.testing.assert_close(learner(q), before, rtol=0, atol=0)


def test_a_further_step_of_the_gradient_is_a_step_from_where_it_is() -> None:
    """The residual is added once; then the steps are MAML's."""
    learner, (x, q) = adapter("gradient").clone(), samples()
    learner.adapt(F.cross_entropy(learner(x), Y))
    head = l2l.algorithms.MAML(copy.deepcopy(network()[-1]), LR)
    head.module.load_state_dict({name: p.detach() for name, p in learner.module[-1].named_parameters()})
    reference, features = head.clone(), learner.module[:-1]
    for _ in range(4):
        learner.adapt(F.cross_entropy(learner(x), Y))
        reference.adapt(F.cross_entropy(reference(features(x)), Y))
    torch.testing.assert_close(learner(q), reference(features(q)))


@like_maml
def test_more_steps_at_test_than_in_training_are_mamls(make: Any) -> None:
    (x, q), outputs = samples(), []
    for build in (make, maml):
        learner = build(network()).clone()
        for _ in range(10):
            learner.adapt(F.cross_entropy(learner(x), Y))
        outputs.append(learner(q))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("base_learner", ["gradient", "own"])
def test_a_head_without_bias_stays_without(base_learner: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, WAYS, bias=False)).double()
    (x, q), hyper = samples(), adapter(base_learner, model)
    learner = hyper.clone()
    for _ in range(2):
        learner.adapt(F.cross_entropy(learner(x), Y))
    assert learner.module[-1].bias is None
    F.cross_entropy(learner(q), Y).backward()
    assert not [name for name, p in hyper.named_parameters() if p.grad is None]


@like_maml
def test_a_head_without_bias_is_mamls(make: Any) -> None:
    (x, q), outputs = samples(), []
    for build in (make, maml):
        torch.manual_seed(0)
        learner = build(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, WAYS, bias=False)).double()).clone()
        for _ in range(2):
            learner.adapt(F.cross_entropy(learner(x), Y))
        outputs.append(learner(q))
    torch.testing.assert_close(*outputs)


# Squared errors

VALUES = 2 * torch.sin(torch.arange(24, dtype=torch.double)).reshape(12, 2)
SQUARED: dict[str, Loss] = {
    "mean": lambda o: F.mse_loss(o, VALUES),
    "sum": lambda o: F.mse_loss(o, VALUES, reduction="sum"),
    "ten times": lambda o: 10 * F.mse_loss(o, VALUES),
    "half": lambda o: F.mse_loss(o, VALUES) / 2,
    "sum over outputs": lambda o: (o - VALUES).square().sum(1).mean(),
    "accumulated": lambda o: F.mse_loss(o, VALUES) / 16,
    "quadratic part of Huber's": lambda o: F.huber_loss(o, VALUES, delta=100.0),
    "quadratic part of smooth L1": lambda o: F.smooth_l1_loss(o, VALUES, beta=100.0),
    "weighted samples": lambda o: ((o - VALUES).square().mean(1) * torch.linspace(0.5, 2, 12).double()).mean(),
}


@pytest.mark.parametrize("loss", SQUARED.values(), ids=SQUARED)
@pytest.mark.parametrize("base_learner", ["ridge", "own"])
def test_squared_errors_of_any_scale(base_learner: str, loss: Loss) -> None:
    assert_as_told(adapter(base_learner, network(2)), samples()[0], VALUES, loss)


@pytest.mark.parametrize(
    "loss", [*SQUARED.values(), lambda o: F.huber_loss(o, VALUES, delta=0.5)], ids=[*SQUARED, "Huber's"]
)
@like_maml
def test_squared_errors_are_mamls(make: Any, loss: Loss) -> None:
    (x, q), outputs = samples(), []
    for build in (make, maml):
        learner = build(network(2)).clone()
        learner.adapt(loss(learner(x)))
        outputs.append(learner(q))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize(
    "loss", [lambda o: F.l1_loss(o, VALUES), lambda o: F.huber_loss(o, VALUES, delta=0.5)], ids=["L1", "Huber's"]
)
def test_errors_that_show_no_values_are_refused_or_told(loss: Loss) -> None:
    hyper, (x, _) = adapter("ridge", network(2)), samples()
    learner = hyper.clone()
    with pytest.raises(InputError, match=r"adapt\(support=\(x, y\)\)"):
        learner.adapt(loss(learner(x)))
    assert_as_told(hyper, x, VALUES, loss, labels=VALUES)


# Losses of classes

CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 3.0], dtype=torch.double)
SOFT = 0.7 * F.one_hot(Y, WAYS).double() + 0.3 * F.one_hot(Y.roll(1), WAYS).double()
SHOWN: dict[str, Loss] = {
    "mean": lambda o: F.cross_entropy(o, Y),
    "sum": lambda o: F.cross_entropy(o, Y, reduction="sum"),
    "accumulated": lambda o: F.cross_entropy(o, Y) / 16,
    "nll": lambda o: F.nll_loss(o.log_softmax(-1), Y),
    "one-hot": lambda o: F.cross_entropy(o, F.one_hot(Y, WAYS).double()),
    "class weights": lambda o: F.cross_entropy(o, Y, weight=CLASS_WEIGHTS),
    "smoothing": lambda o: F.cross_entropy(o, Y, label_smoothing=0.1),
    "smoothing and class weights": lambda o: F.cross_entropy(o, Y, weight=CLASS_WEIGHTS, label_smoothing=0.1),
    "temperature": lambda o: F.cross_entropy(o / 2.5, Y),
    "multiplied logits": lambda o: F.cross_entropy(16 * o, Y),
    "temperature and smoothing": lambda o: F.cross_entropy(o / 2.5, Y, label_smoothing=0.2),
    "sample weights": lambda o: (F.cross_entropy(o, Y, reduction="none") * torch.linspace(0.5, 2, 12).double()).mean(),
    "binary cross-entropy": lambda o: F.binary_cross_entropy_with_logits(o, F.one_hot(Y, WAYS).double()),
    "multi-margin": lambda o: F.multi_margin_loss(o, Y),
}


@pytest.mark.parametrize("loss", SHOWN.values(), ids=SHOWN)
@pytest.mark.parametrize("base_learner", READ)
def test_labels_that_the_loss_shows(base_learner: str, loss: Loss) -> None:
    assert_as_told(adapter(base_learner), samples()[0], Y, loss)


@pytest.mark.parametrize("loss", SHOWN.values(), ids=SHOWN)
@like_maml
def test_losses_of_classes_are_mamls(make: Any, loss: Loss) -> None:
    (x, q), outputs = samples(), []
    for build in (make, maml):
        learner = build(network()).clone()
        for _ in range(2):
            learner.adapt(loss(learner(x)))
        outputs.append(learner(q))
    torch.testing.assert_close(*outputs)


LEFT_OUT = torch.tensor([0, 4, 7])
KEPT = torch.tensor([n for n in range(12) if n not in LEFT_OUT.tolist()])
IGNORED = Y.index_fill(0, LEFT_OUT, -100)
MASK = torch.ones(12, dtype=torch.double).index_fill(0, LEFT_OUT, 0.0)
IN_PART: dict[str, Loss] = {
    "ignore_index": lambda o: F.cross_entropy(o, IGNORED),
    "zero weights": lambda o: (MASK * F.cross_entropy(o, Y, reduction="none")).sum() / MASK.sum(),
    "chosen samples": lambda o: F.cross_entropy(o[KEPT], Y[KEPT]),
    "ignore_index and smoothing": lambda o: F.cross_entropy(o, IGNORED, label_smoothing=0.1),
}


@pytest.mark.parametrize("loss", IN_PART.values(), ids=IN_PART)
@pytest.mark.parametrize("base_learner", READ)
def test_samples_that_the_loss_leaves_out_are_not_in_the_support_set(base_learner: str, loss: Loss) -> None:
    assert_as_told(adapter(base_learner), samples()[0][KEPT], Y[KEPT], loss)


@pytest.mark.parametrize("loss", IN_PART.values(), ids=IN_PART)
@like_maml
def test_losses_of_a_part_are_mamls(make: Any, loss: Loss) -> None:
    (x, q), outputs = samples(), []
    for build in (make, maml):
        learner = build(network()).clone()
        learner.adapt(loss(learner(x)))
        outputs.append(learner(q))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("base_learner", READ)
def test_soft_labels_are_shares_of_classes(base_learner: str) -> None:
    """Mixup: the loss as a mixture, or with mixed labels; up to what all classes of a sample share."""
    hyper, (x, q) = adapter(base_learner), samples()
    mixture, mixed, told = hyper.clone(), hyper.clone(), hyper.clone()
    outputs = mixture(x)
    mixture.adapt(0.7 * F.cross_entropy(outputs, Y) + 0.3 * F.cross_entropy(outputs, Y.roll(1)))
    mixed.adapt(F.cross_entropy(mixed(x), SOFT))
    told.adapt(F.cross_entropy(told(x), SOFT), labels=SOFT)
    expected = mixture(q).log_softmax(-1)
    torch.testing.assert_close(mixed(q).log_softmax(-1), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(told(q).log_softmax(-1), expected, rtol=1e-6, atol=1e-6)


HIDDEN: dict[str, Loss] = {
    "focal": lambda o: (
        (1 - o.softmax(-1).gather(1, Y[:, None])) ** 2 * F.cross_entropy(o, Y, reduction="none")
    ).mean(),
    "margin": lambda o: F.cross_entropy(o - 0.5 * F.one_hot(Y, WAYS), Y),
    "dropped logits": lambda o: F.cross_entropy(o * torch.tensor([2.0, 0.0, 2.0]), Y),
}


@pytest.mark.parametrize("loss", HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("base_learner", READ)
def test_labels_that_the_loss_hides_are_refused_or_told(base_learner: str, loss: Loss) -> None:
    hyper, (x, _) = adapter(base_learner), samples()
    learner = hyper.clone()
    with pytest.raises(InputError, match=r"adapt\(support=\(x, y\)\)|adapt\(loss, labels=y\)"):
        learner.adapt(loss(learner(x)))
    assert_as_told(hyper, x, Y, loss, labels=Y)


@pytest.mark.parametrize("loss", HIDDEN.values(), ids=HIDDEN)
@like_maml
def test_losses_that_hide_labels_are_mamls(make: Any, loss: Loss) -> None:
    (x, q), outputs = samples(), []
    for build in (make, maml):
        learner = build(network()).clone()
        learner.adapt(loss(learner(x)))
        outputs.append(learner(q))
    torch.testing.assert_close(*outputs)


def test_labels_that_are_not_those_of_the_loss_are_refused() -> None:
    learner, (x, _) = adapter("gaussian").clone(), samples()
    with pytest.raises(InputError, match="labels"):
        learner.adapt(F.cross_entropy(learner(x), Y), labels=Y.roll(1))


# Labels

FORMS: dict[str, Callable[[Tensor], Any]] = {
    "int32": lambda y: y.int(),
    "uint8": lambda y: y.to(torch.uint8),
    "column": lambda y: y.unsqueeze(1),
    "list": lambda y: y.tolist(),
    "array": lambda y: y.numpy(),
    "int8 array": lambda y: y.numpy().astype(np.int8),
    "one-hot": lambda y: F.one_hot(y, WAYS),
    "float one-hot": lambda y: F.one_hot(y, WAYS).float(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("base_learner", READ)
def test_labels_in_any_form(base_learner: str, form: Callable[[Tensor], Any]) -> None:
    hyper, (x, q) = adapter(base_learner), samples()
    plain, formed, told = hyper.clone(), hyper.clone(), hyper.clone()
    plain.adapt(support=(x, Y))
    formed.adapt(support=(x, form(Y)))
    told.adapt(F.cross_entropy(told(x), Y), labels=form(Y))
    for learner in (formed, told):
        torch.testing.assert_close(learner(q), plain(q))


@pytest.mark.parametrize("base_learner", ["gaussian", "prototype", "ridge"])
def test_one_clone_for_tasks_of_three_and_then_two_ways(base_learner: str) -> None:
    hyper, (x, q) = adapter(base_learner), samples()
    learner, fresh = hyper.clone(), hyper.clone()
    learner.adapt(support=(x, Y), ways=3)
    assert learner(q).shape == (12, 3)
    two = Y < 2
    for one in (learner, fresh):
        one.adapt(support=(x[two], Y[two]), ways=2)
    assert learner(q).shape == (12, 2)
    torch.testing.assert_close(learner(q), fresh(q))


@pytest.mark.parametrize("base_learner", ["gradient", "own"])
def test_a_head_of_its_own_says_which_ways_it_has(base_learner: str) -> None:
    learner, (x, _) = adapter(base_learner).clone(), samples()
    with pytest.raises(InputError, match="has 3 outputs, got a task of 2 ways"):
        learner.adapt(support=(x[Y < 2], Y[Y < 2]), ways=2)
