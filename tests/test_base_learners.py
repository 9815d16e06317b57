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
@pytest.mark.parametrize("published", [True, False], ids=["published", "ours"])
def test_prototype_is_a_prototypical_network_in_value_and_gradient(shots: list[int], published: bool) -> None:
    """Ours with all distances as noisy as those to the class of fewest shots."""
    (features, targets), query = support_of(shots), queries()
    ours = log_probabilities(BASE_LEARNERS["prototype"](FEATURES, published=published)(features, targets), query)
    distances = squared_distances(features, targets, query)
    if not published:
        distances = distances + noise_missing(features, shots).unsqueeze(1)
    theirs = (-distances).log_softmax(-1)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    (a,), (b,) = (torch.autograd.grad((x * weight).sum(), features) for x in (ours, theirs))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", BASE_LEARNERS)
def test_soft_labels_of_equal_shots_but_for_rounding_are_of_equal_shots(name: str) -> None:
    (features, targets), query = support_of(EQUAL), queries()
    shares = 0.8 * targets + 0.2 * targets.roll(1, 2)
    torch.manual_seed(2)
    with torch.no_grad():
        learner = base_learner(name)
        for p in learner.parameters():
            p.add_(0.3 * torch.randn_like(p))
        found, expected = (
            log_probabilities(learner(features, given), query)
            for given in (shares * (1 + 1e-7 * torch.randn_like(shares)), shares)
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def noise_missing(features: Tensor, shots: list[int]) -> Tensor:
    """By loops: the variance within classes, times how much less of it each class mean holds than the noisiest."""
    result = torch.zeros(TASKS, WAYS, dtype=torch.double)
    for t in range(TASKS):
        classes = features[t].split(shots)
        squares = sum((x - x.mean(0)).square().sum() for x in classes)
        for c, count in enumerate(shots):
            result[t, c] = squares / (sum(shots) - WAYS) * (1 / min(shots) - 1 / count)
    return result


@every_shots
@pytest.mark.parametrize("published", [True, False], ids=["published", "ours"])
def test_cosine_divides_by_the_length_of_a_mean_of_fewest_shots(shots: list[int], published: bool) -> None:
    features, targets = support_of(shots)
    weight, bias, _ = BASE_LEARNERS["cosine"](FEATURES, published=published).double()(features, targets)
    means = torch.stack([x.mean(1) for x in features.split(shots, 1)], 1)
    squares = means.square().sum(-1) + (0 if published else noise_missing(features, shots))
    torch.testing.assert_close(weight, 10 * means / squares.sqrt().unsqueeze(-1))
    assert not bias.any()


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
    """Posterior predictive densities, one class after the other.

    Where shots differ, with the variance within and between classes and the mean that the support set shows.
    """
    (features, targets), query = support_of(shots), queries()
    gaussian = base_learner("gaussian")
    for p in gaussian.parameters():
        nn.init.normal_(p)
    within, ratio, prior_mean = (-gaussian.log_precision).exp(), gaussian.log_ratio.exp(), gaussian.mean
    of_class = [features[targets[..., c] == 1].unflatten(0, (TASKS, count)) for c, count in enumerate(shots)]
    squares = sum((x - x.mean(1, keepdim=True)).square().sum(1) for x in of_class) / (sum(shots) - WAYS)
    alpha = (squares / within).mean(-1).view(TASKS, 1, 1)
    if shots is UNEQUAL:
        means = [x.mean(1) for x in of_class]
        variance = torch.stack(means).var(0) / within
        shown = variance.mean(-1) / alpha.flatten() - sum(1 / count for count in shots) / WAYS
        ratio = ratio / ratio.mean() * shown.clamp(1e-3).unsqueeze(-1)
        sure = [1 / (1 + 1 / (count * ratio)) for count in shots]
        prior_mean = sum(share * x for share, x in zip(sure, means, strict=True)) / sum(sure)
    between = within * ratio
    densities = []
    for c, count in enumerate(shots):
        mean = of_class[c].mean(1)
        posterior_variance = 1 / (1 / between + count / within)
        posterior_mean = posterior_variance * (prior_mean / between + count * mean / within)
        deviation = (alpha * (posterior_variance + within).unsqueeze(-2)).sqrt()
        normal = torch.distributions.Normal(posterior_mean.unsqueeze(1), deviation)
        densities.append(2 * alpha[..., 0] * normal.log_prob(query).sum(-1))
    theirs = torch.stack(densities, -1).log_softmax(-1)
    ours = log_probabilities(gaussian(features, targets), query)
    torch.testing.assert_close(ours, theirs)
    weight, learned = torch.randn_like(ours), [features, *gaussian.parameters()]
    gradients, expected = (
        torch.autograd.grad((x * weight).sum(), learned, materialize_grads=True) for x in (ours, theirs)
    )
    torch.testing.assert_close(gradients, expected)


SIZE, DISTANCE, ONE_SHOT = 64, 0.6, [1, 5, 5, 5, 5]


def clusters(shots: list[int], tasks: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gaussian classes about Gaussian centers: support, its labels, queries, their labels."""
    centers = DISTANCE * torch.randn(tasks, 5, SIZE, generator=generator)
    labels, query_labels = torch.arange(5).repeat_interleave(torch.tensor(shots)), torch.arange(5).repeat(20)
    x, q = (centers[:, y] + torch.randn(tasks, len(y), SIZE, generator=generator) for y in (labels, query_labels))
    return x, labels.expand(tasks, -1), q, query_labels.expand(tasks, -1)


def bayes_rule(x: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    """The most probable class of each query, by posterior predictive densities of one class after the other."""
    densities = []
    for c in range(5):
        of_class = x[:, labels[0] == c]
        variance = 1 / (DISTANCE**-2 + of_class.shape[1])
        mean = variance * of_class.sum(1, keepdim=True)
        normal = torch.distributions.Normal(mean, (1 + variance) ** 0.5)
        densities.append(normal.log_prob(query).sum(-1))
    return torch.stack(densities, -1).argmax(-1)


def recalls(found: Tensor, labels: Tensor) -> tuple[float, float]:
    """Of the class of one shot, and of the others."""
    right = (found == labels).double()
    return right[labels == 0].mean().item(), right[labels != 0].mean().item()


@pytest.mark.parametrize("reader", ["itself", "an encoder"])
@pytest.mark.parametrize("generator_name", ["attention", "linear", "mlp"])
@pytest.mark.parametrize("name", sorted(BASE_LEARNERS))
def test_a_class_of_one_shot_is_recalled_nearly_as_often_as_by_bayes_rule(
    name: str, generator_name: str, reader: str
) -> None:
    """Before training, and after training with equal shots."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(SIZE, 20), nn.Tanh(), nn.Linear(20, 5)) if reader == "an encoder" else None
    options = HyperAdapterOptions(base_learner=name, generator=generator_name, width=32, heads=2, blocks=1)
    method = HyperAdapter(nn.Linear(SIZE, 5), options, encoder=encoder)
    x, labels, query, query_labels = clusters(ONE_SHOT, 40, generator(0))
    exact, exact_of_others = recalls(bayes_rule(x, labels, query), query_labels)

    def check() -> None:
        with torch.no_grad():
            outputs = method.predict(method.adapt(SupportSet(x, labels, 5)), query)
        one_shot, others = recalls(outputs.argmax(-1), query_labels)
        assert one_shot > exact - 0.1
        assert others - one_shot < exact_of_others - exact + 0.05

    check()
    optimizer = torch.optim.Adam(method.parameters(), 1e-3)
    for step in range(20):
        a, of_a, b, of_b = clusters([3] * 5, 8, generator(step))
        adapted = method.adapt(SupportSet(a, of_a, 5))
        loss = F.cross_entropy(method.predict(adapted, b).flatten(0, 1), of_b.flatten())
        optimizer.zero_grad()
        (loss + method.penalty(adapted).mean()).backward()
        optimizer.step()
    check()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


@pytest.mark.parametrize("features", [FEATURES, 20], ids=["more samples", "more features"])
def test_ridge_makes_up_for_unequal_shots(features: int) -> None:
    """Against the formulas, by loops, with the inverse of the whole scatter; and the gradient against differences."""
    torch.manual_seed(0)
    x = torch.randn(1, sum(UNEQUAL), features, dtype=torch.double, requires_grad=True)
    labels = torch.arange(WAYS).repeat_interleave(torch.tensor(UNEQUAL))
    targets = F.one_hot(labels, WAYS).double().unsqueeze(0)
    ridge = BASE_LEARNERS["ridge"](features).double()
    nn.init.constant_(ridge.log_penalty, 0.7)
    weight, bias, _ = ridge(x, targets)
    h, mean = torch.cat([x[0], torch.ones(len(labels), 1)], 1), sum(UNEQUAL) / WAYS
    scatter = ridge.log_penalty.exp() * torch.eye(features + 1, dtype=torch.double)
    for sample, y in zip(h, labels, strict=True):
        scatter = scatter + mean / UNEQUAL[y] * torch.outer(sample, sample)
    inverse, means = torch.linalg.inv(scatter), [part.mean(0) for part in h.split(UNEQUAL)]
    whole = explained = 0.0
    for sample, y in zip(h, labels, strict=True):
        whole += (1 - 1 / UNEQUAL[y]) * UNEQUAL[y] / mean
        explained += (sample - means[y]) @ inverse @ (sample - means[y])
    noise = mean * explained / (whole - explained) * whole / (len(labels) - WAYS)
    for c, shots in enumerate(UNEQUAL):
        row = mean * inverse @ means[c]
        wanted = row / (1 + (1 - row @ means[c]) * noise * (1 / min(UNEQUAL) - 1 / shots))
        torch.testing.assert_close(torch.cat([weight[0, c], bias[0, c : c + 1]]), wanted)
    assert torch.autograd.gradcheck(lambda x: ridge(x, targets)[0], x)


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
