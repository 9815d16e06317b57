"""Base learners against obvious code: loops, densities, least squares, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper import InputError
from l2l_hyper.data.episode import SupportSet, squared_error
from l2l_hyper.methods import BASE_LEARNERS, HyperAdapter
from l2l_hyper.methods.base_learners import BaseLearner, LastLayer
from l2l_hyper.methods.hyper_adapter import HyperAdapterOptions

TASKS, WAYS, FEATURES = 3, 4, 6
EQUAL = [3, 3, 3, 3]
UNEQUAL = [1, 5, 2, 4]
every_shots = pytest.mark.parametrize("shots", [EQUAL, UNEQUAL], ids=["equal shots", "unequal shots"])


def support_of(shots: list[int]) -> tuple[Tensor, Tensor]:
    """Features of the support samples, and their one-hot classes."""
    torch.manual_seed(0)
    features = torch.randn(TASKS, sum(shots), FEATURES, dtype=torch.double, requires_grad=True)
    labels = torch.arange(WAYS).repeat_interleave(torch.tensor(shots))
    return features, F.one_hot(labels, WAYS).double().expand(TASKS, -1, -1)


def queries() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(TASKS, 5, FEATURES, dtype=torch.double)


def base_learner(name: str) -> BaseLearner:
    return BASE_LEARNERS[name](FEATURES).double()


def log_probabilities(layer: LastLayer, query: Tensor) -> Tensor:
    outputs = query @ layer.weight.mT
    if layer.bias is not None:
        outputs = outputs + layer.bias.unsqueeze(1)
    if layer.quadratic is not None:
        outputs = outputs + query.square() @ layer.quadratic.mT
    return outputs.log_softmax(-1)


def squared_distances(features: Tensor, targets: Tensor, query: Tensor) -> Tensor:
    """Prototypical Networks by loops."""
    outputs = torch.empty(*query.shape[:2], WAYS, dtype=query.dtype)
    for t in range(len(query)):
        for c in range(WAYS):
            members = [h for h, y in zip(features[t], targets[t], strict=True) if y[c] == 1]
            outputs[t, :, c] = (query[t] - sum(members) / len(members)).square().sum(-1)
    return outputs


@every_shots
def test_prototype_is_a_prototypical_network_in_value_and_gradient(shots: list[int]) -> None:
    (features, targets), query = support_of(shots), queries()
    ours = log_probabilities(base_learner("prototype")(features, targets), query)
    theirs = (-squared_distances(features, targets, query)).log_softmax(-1)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    (a,), (b,) = (torch.autograd.grad((x * weight).sum(), features) for x in (ours, theirs))
    torch.testing.assert_close(a, b)


def test_gaussian_with_isotropic_covariances_gives_back_the_prototype() -> None:
    features, targets = support_of(EQUAL)
    gaussian = base_learner("gaussian")
    nn.init.constant_(gaussian.log_ratio, torch.inf)
    nn.init.constant_(gaussian.log_precision, torch.log(torch.tensor(4 / 3)).item())  # undoes K / (K + 1)
    ours, theirs = gaussian(features, targets), base_learner("prototype")(features, targets)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-6, atol=1e-6)


@every_shots
def test_gaussian_is_the_bayes_classifier_in_value_and_gradient(shots: list[int]) -> None:
    """Posterior predictive densities with the variance that the support set shows, one class after the other."""
    (features, targets), query = support_of(shots), queries()
    gaussian = base_learner("gaussian")
    for p in gaussian.parameters():
        nn.init.normal_(p)
    within = (-gaussian.log_precision).exp()
    between = within * gaussian.log_ratio.exp()
    of_class = [features[targets[..., c] == 1].unflatten(0, (TASKS, count)) for c, count in enumerate(shots)]
    squares = sum((x - x.mean(1, keepdim=True)).square().sum(1) for x in of_class) / (sum(shots) - WAYS)
    alpha = (squares / within).mean(-1).view(TASKS, 1, 1)
    densities = []
    for c, count in enumerate(shots):
        mean = of_class[c].mean(1)
        posterior_variance = 1 / (1 / between + count / within)
        posterior_mean = posterior_variance * (gaussian.mean / between + count * mean / within)
        normal = torch.distributions.Normal(posterior_mean.unsqueeze(1), (alpha * (posterior_variance + within)).sqrt())
        densities.append(2 * alpha[..., 0] * normal.log_prob(query).sum(-1))
    theirs = torch.stack(densities, -1).log_softmax(-1)
    ours = log_probabilities(gaussian(features, targets), query)
    torch.testing.assert_close(ours, theirs)
    weight, learned = torch.randn_like(ours), [features, *gaussian.parameters()]
    gradients, expected = (torch.autograd.grad((x * weight).sum(), learned) for x in (ours, theirs))
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_a_class_of_one_shot_is_recalled_as_often_as_bayes_rule_recalls_it(scale: float) -> None:
    """Around well-separated centers, with shots 1, 5, 5, 5 and 5, whatever the scale of the features."""
    torch.manual_seed(0)
    shots, tasks, per_class, size = [1, 5, 5, 5, 5], 40, 20, 16
    centers = 1.5 * torch.randn(tasks, 5, size, dtype=torch.double)
    labels, query_labels = torch.arange(5).repeat_interleave(torch.tensor(shots)), torch.arange(5).repeat(per_class)
    x, q = (centers[:, y] + torch.randn(tasks, len(y), size, dtype=torch.double) for y in (labels, query_labels))
    gaussian = BASE_LEARNERS["gaussian"](size).double()
    nn.init.constant_(gaussian.log_ratio, 2 * torch.log(torch.tensor(1.5)).item())
    one_hot = F.one_hot(labels, 5).double().expand(tasks, -1, -1)
    found = log_probabilities(gaussian(scale * x, one_hot), scale * q).argmax(-1)
    variance_within = ((x - one_hot @ (one_hot.mT @ x / one_hot.sum(1).unsqueeze(-1))).square().sum(1) / 16).mean(-1)
    densities = []
    for c, count in enumerate(shots):
        variance = 1 / (1 / 2.25 + count)
        mean = variance * x[:, labels == c].sum(1, keepdim=True)
        deviation = ((1 + variance) * variance_within).sqrt().view(-1, 1, 1)
        densities.append(torch.distributions.Normal(mean, deviation).log_prob(q).sum(-1))
    exact = torch.stack(densities, -1).argmax(-1)
    assert torch.equal(found, exact)
    assert (found[:, query_labels == 0] == 0).double().mean() > 0.9


@pytest.mark.parametrize("shots", [1, 4])
def test_ridge_solves_the_ridge_problem(shots: int) -> None:
    """Both forms (fewer and more samples than features) against least squares on an augmented system."""
    features, targets = support_of([shots] * WAYS)
    ridge = base_learner("ridge")
    nn.init.constant_(ridge.log_penalty, 0.7)
    nn.init.constant_(ridge.log_scale, 0.4)
    weight, bias, _ = ridge(features, targets)
    for t in range(TASKS):
        h = torch.cat([features[t], torch.ones(len(features[t]), 1, dtype=torch.double)], 1)
        stacked = torch.cat([h, (0.5 * ridge.log_penalty).exp() * torch.eye(7, dtype=torch.double)])
        wanted = torch.cat([targets[t], torch.zeros(7, 4, dtype=torch.double)])
        solution = ridge.log_scale.exp() * torch.linalg.lstsq(stacked, wanted).solution
        torch.testing.assert_close(weight[t], solution[:-1].T)
        torch.testing.assert_close(bias[t], solution[-1])


@every_shots
def test_ridge_counts_each_class_alike(shots: list[int]) -> None:
    """As if each class had as many samples as any other: with copies of them, and so much more penalty."""
    features, targets = support_of(shots)
    ridge = base_learner("ridge")
    weight, bias, _ = ridge(features, targets)
    copies = torch.tensor([60 // shots[y] for y in targets[0].argmax(-1)])
    share = 60 * len(shots) / sum(shots)
    with torch.no_grad():
        ridge.log_penalty += torch.tensor(share).log()
    repeated = ridge.of_values(features.repeat_interleave(copies, 1), targets.repeat_interleave(copies, 1))
    torch.testing.assert_close((weight, bias), (repeated.weight, repeated.bias))


def head_adapter(name: str, **options: object) -> tuple[HyperAdapter, nn.Linear]:
    torch.manual_seed(0)
    head = nn.Linear(FEATURES, WAYS).double()
    return HyperAdapter(head, HyperAdapterOptions(base_learner=name, inner_lr=0.3, **options)), head


@every_shots
def test_gradient_is_one_step_of_gradient_descent(shots: list[int]) -> None:
    features, targets = support_of(shots)
    method, head = head_adapter("gradient", residual=False)
    weights = method.adapt(SupportSet(features, targets.argmax(-1), WAYS)).weights
    for t in range(TASKS):
        loss = F.cross_entropy(head(features[t]), targets[t].argmax(-1))
        gradients = torch.autograd.grad(loss, [head.weight, head.bias])
        torch.testing.assert_close(weights["weight"][t], head.weight - 0.3 * gradients[0])
        torch.testing.assert_close(weights["bias"][t], head.bias - 0.3 * gradients[1])


def test_own_leaves_the_weights() -> None:
    features, targets = support_of(EQUAL)
    method, head = head_adapter("own", residual=False)
    weights = method.adapt(SupportSet(features, targets.argmax(-1), WAYS)).weights
    assert all(torch.equal(w, getattr(head, name).expand_as(w)) for name, w in weights.items())
    torch.testing.assert_close(
        method.predict(method.adapt(SupportSet(features, None, WAYS)), queries()), head(queries())
    )


@pytest.mark.parametrize("name", ["prototype", "gaussian"])
def test_base_learners_of_classes_refuse_values(name: str) -> None:
    features, targets = support_of(EQUAL)
    method, _ = head_adapter(name)
    with pytest.raises(InputError, match="try base_learner='ridge' or 'gradient'"):
        method.adapt(SupportSet(features, targets, None, squared_error))


def test_more_features_do_not_make_an_untrained_gaussian_more_certain() -> None:
    def loss(features: int) -> Tensor:
        """On queries that have nothing to do with the classes, where being certain is costly."""
        torch.manual_seed(0)
        samples, query = torch.randn(2, 100, 5, features).relu()
        layer = BASE_LEARNERS["gaussian"](features)(samples, torch.eye(5).expand(100, 5, 5))
        return F.nll_loss(log_probabilities(layer, query).flatten(0, 1), torch.arange(5).repeat(100))

    assert loss(800) < loss(64)
