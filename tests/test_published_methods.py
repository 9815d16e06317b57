"""The published methods against their authors' equations, written out slowly: one task, one class at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from helpers_methods import SHOTS, WAYS, small_episodes, small_method
from learn2learn.nn import SVClassifier
from scipy import optimize
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper import InputError
from l2l_hyper.data.episode import Episodes, SupportSet, cross_entropy, squared_error
from l2l_hyper.methods import Method
from l2l_hyper.methods.metaoptnet import support_vectors


def plain_network(ways: int = WAYS) -> nn.Sequential:
    """Without normalization, so that one pass over one sample is all there is."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, stride=2), nn.Softplus(), nn.Conv2d(5, 4, 1), nn.Tanh(), nn.Flatten(), nn.Linear(36, ways)
    )


def plain_method(name: str, **options: Any) -> tuple[Method, nn.Sequential]:
    """A method around a plain network, and the body of that network, which has the same parameters."""
    model = plain_network()
    return small_method(name, model=model, **options), model[:-1]


def by_class(features: Tensor, labels: Tensor) -> list[Tensor]:
    return [features[labels == c] for c in range(int(labels.max()) + 1)]


def one_task(episodes: Episodes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return episodes.support[0], episodes.support_labels[0], episodes.query[0], episodes.query_labels[0]


def check(
    name: str, slow: Callable[[Any, nn.Sequential, Episodes], tuple[Tensor, Tensor]], shots: int, **options: Any
) -> None:
    """Outputs, losses and gradients of every parameter agree with the slow code, task by task."""
    method, body = plain_method(name, **options)
    episodes = small_episodes(shots=shots)
    adapted = method.adapt(episodes.support_set)
    outputs = method.predict(adapted, episodes.query)
    losses = method.loss(adapted, outputs, episodes)
    expected_outputs, expected_losses = zip(*(slow(method, body, task) for task in episodes), strict=True)
    parameters = [p for p in method.parameters() if p.requires_grad]
    torch.testing.assert_close(outputs, torch.stack(expected_outputs))
    torch.testing.assert_close(losses, torch.stack(expected_losses))
    gradients = torch.autograd.grad(losses.sum(), parameters)
    for a, b in zip(gradients, torch.autograd.grad(sum(expected_losses), parameters), strict=True):
        torch.testing.assert_close(a, b)


# R2-D2


@pytest.mark.parametrize("shots", [2, 12], ids=["fewer samples than features", "more"])
def test_r2d2(shots: int) -> None:
    """As fewshots/models/r2d2.py has it: X and Y over the root of N, then the inverse, then the scale."""

    def slow(method: Any, body: nn.Sequential, task: Episodes) -> tuple[Tensor, Tensor]:
        x, y, query, labels = one_task(task)
        n = len(x)
        features = torch.cat([body(x), torch.ones(n, 1, dtype=x.dtype)], 1) / n**0.5
        targets = torch.eye(WAYS, dtype=x.dtype)[y] / n**0.5
        penalty = method.log_penalty.exp() * torch.eye(features.shape[1], dtype=x.dtype)
        wb = torch.inverse(features.T @ features + penalty) @ features.T @ targets
        outputs = method.log_scale.exp() * (body(query) @ wb[:-1] + wb[-1:])
        return outputs, F.cross_entropy(outputs, labels)

    check("r2d2", slow, shots, penalty=0.3)


def test_r2d2_in_regression_is_ridge_regression() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    method = small_method("r2d2", model=model, penalty=1e-9)
    x = torch.randn(2, 30, 3, dtype=torch.double)
    y = torch.stack([model[:-1](task) @ torch.randn(6, 2, dtype=torch.double) + 3 for task in x])
    adapted = method.adapt(SupportSet(x, y, None, squared_error))
    torch.testing.assert_close(method.predict(adapted, x), y, rtol=1e-5, atol=1e-5)


# MetaOptNet


def test_metaoptnet_is_the_support_vector_machine_of_learn2learn() -> None:
    """learn2learn's class is the authors' head for one task; its linear terms are those of the paper."""
    method: Any
    method, body = plain_method("metaoptnet")
    episodes = small_episodes(shots=3)
    outputs = method.predict(method.adapt(episodes.support_set), episodes.query)
    for got, task in zip(outputs, episodes, strict=True):
        x, y, query, _ = one_task(task)
        machine = SVClassifier(body(x).float(), y, WAYS, C_reg=0.1, max_iters=20)
        torch.testing.assert_close(got.float(), method.log_scale.exp().float() * machine(body(query).float()))


def test_metaoptnet_solves_its_problem() -> None:
    """No step along which the constraints hold makes the objective smaller: α is what a general solver finds."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 6, 4, dtype=torch.double, generator=generator)
    one_hot = torch.eye(3, dtype=torch.double).repeat(2, 1)[None]
    alpha = support_vectors(x, one_hot, 0.1)[0]

    def objective(flat: Any) -> Any:
        a = flat.reshape(6, 3)
        rows = a.T @ x[0].numpy()
        return 0.5 * (rows**2).sum() + 0.5 * (a**2).sum() - (a * one_hot[0].numpy()).sum()

    found = optimize.minimize(
        objective,
        torch.zeros(18).numpy(),
        bounds=[(None, 0.1 * float(t)) for t in one_hot.flatten()],
        constraints={"type": "eq", "fun": lambda flat: flat.reshape(6, 3).sum(1)},
        tol=1e-14,
    )
    assert found.success
    torch.testing.assert_close(alpha.flatten(), torch.from_numpy(found.x), rtol=1e-4, atol=1e-6)


def test_the_gradient_through_the_support_vector_machine() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 4, dtype=torch.double, generator=generator).requires_grad_()
    one_hot = torch.eye(3, dtype=torch.double).repeat(2, 1).expand(2, -1, -1)
    assert torch.autograd.gradcheck(lambda x: support_vectors(x, one_hot, 0.1), (x,), atol=1e-5, rtol=1e-3)


# Soft k-means


@pytest.mark.parametrize(("distance", "mapped"), [("euclidean", False), ("cosine", False), ("cosine", True)])
def test_soft_kmeans(distance: str, mapped: bool) -> None:
    """As the paper's equation 4 has it, twice, with the queries for the samples without labels."""

    def slow(method: Any, body: nn.Sequential, task: Episodes) -> tuple[Tensor, Tensor]:
        x, y, query, labels = one_task(task)
        features, queries = body(x), body(query)
        if distance == "cosine":
            features, queries = (F.normalize(of - method.network.head.centre, dim=1) for of in (features, queries))
        shares = F.one_hot(y, WAYS).double()
        read, seen = (method.linear_map(of) if mapped else of for of in (features, queries))
        prototypes = torch.stack([f.mean(0) for f in by_class(read, y)])
        for step in range(3):
            if distance == "cosine":
                outputs = method.prototype.log_scale.exp() * queries @ F.normalize(prototypes, dim=1).T
            else:
                outputs = 2 * queries @ prototypes.T - prototypes.square().sum(1)
            if step < 2:
                soft = outputs.softmax(1)
                prototypes = torch.stack(
                    [
                        (shares[:, c] @ read + soft[:, c] @ seen) / (shares[:, c].sum() + soft[:, c].sum())
                        for c in range(WAYS)
                    ]
                )
        return outputs, F.cross_entropy(outputs, labels)

    check("soft-kmeans", slow, SHOTS, distance=distance, linear_map=mapped, steps=2)


@pytest.mark.parametrize("residual", [True, False])
def test_hyper_adapter_that_reads_queries(residual: bool) -> None:
    """The formula of transductive.py, one class and one query at a time."""

    def slow(method: Any, body: nn.Sequential, task: Episodes) -> tuple[Tensor, Tensor]:
        _, _, query, labels = one_task(task)
        adapted = method.adapt(task.support_set)
        rows, biases = (own[0] for own in adapted.generated.weights.values())
        lengths, start = [row.norm() for row in rows], [row / row.norm() for row in rows]
        queries, now = F.normalize(body(query) - method.network.head.centre, dim=1), start

        def logits(h: Tensor) -> Tensor:
            return torch.stack([lengths[c] * h @ now[c] + biases[c] for c in range(WAYS)])

        for s in range(2):
            shares = [(method.log_sharpness[s].exp() * logits(h)).softmax(0) for h in queries]
            mapped = [method.query_map.weight @ h for h in queries]
            sums = [sum(p[c] * m / m.norm() for p, m in zip(shares, mapped, strict=True)) for c in range(WAYS)]
            now = [F.normalize(method.log_weight[s].exp() * SHOTS * start[c] + sums[c], dim=0) for c in range(WAYS)]
        outputs = torch.stack([logits(h) for h in queries])
        penalty = method.penalty(adapted)[0] if residual else 0.0
        return outputs, F.cross_entropy(outputs, labels) + penalty

    check("hyper-adapter-transductive", slow, SHOTS, refinements=2, residual=residual, linear_map=True)


@pytest.mark.parametrize("options", [{"base_learner": "prototype"}, {"generate": "0.*"}])
def test_hyper_adapter_that_reads_queries_refuses_what_it_cannot_turn(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="turns the rows of a cosine classifier"):
        plain_method("hyper-adapter-transductive", **options)


# Baseline++


def test_baseline_plus_plus_in_training() -> None:
    def slow(method: Any, body: nn.Sequential, task: Episodes) -> tuple[Tensor, Tensor]:
        x, y, query, labels = one_task(task)
        centre = method.network.head.centre
        features, queries = (F.normalize(body(of) - centre, dim=1) for of in (x, query))
        means = torch.stack([f.mean(0) / f.mean(0).norm() for f in by_class(features, y)])
        outputs = method.log_scale.exp() * queries @ means.T
        return outputs, F.cross_entropy(outputs, labels)

    check("baseline-plus-plus", slow, SHOTS)


@pytest.mark.parametrize("classifier", ["cosine", "linear"])
def test_baseline_plus_plus_in_evaluation(classifier: str) -> None:
    """As methods/baselinefinetune.py has it, with all samples in each of as many steps: distLinear with weight norm."""
    method: Any
    method, body = plain_method("baseline-plus-plus", classifier=classifier, epochs=7)
    method.eval()
    episodes = small_episodes()
    with torch.no_grad():
        outputs = method.predict(method.adapt(episodes.support_set), episodes.query)
    for got, task in zip(outputs, episodes, strict=True):
        x, y, query, _ = one_task(task)
        with torch.no_grad():
            features, queries = body(x), body(query)
            if classifier == "cosine":
                features, queries = (F.normalize(of - method.network.head.centre, dim=1) for of in (features, queries))
            means = torch.stack([f.mean(0) / f.mean(0).norm() for f in by_class(features, y)])
        layer = nn.Linear(36, WAYS, bias=classifier == "linear").double()
        scale = method.log_scale.exp().item() if classifier == "cosine" else 1.0
        layer.weight.data = means.clone()
        if classifier == "cosine":
            layer = nn.utils.parametrizations.weight_norm(layer, dim=0)
        else:
            layer.bias.data.zero_()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9, dampening=0.9, weight_decay=0.001)
        for _ in range(7 * 2):  # 8 samples are two batches of 4
            optimizer.zero_grad()
            F.cross_entropy(scale * layer(features), y).backward()
            optimizer.step()
        torch.testing.assert_close(got, scale * layer(queries))


def test_baseline_plus_plus_needs_gradients_in_evaluation() -> None:
    method = small_method("baseline-plus-plus").eval()
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        method.adapt(small_episodes().support_set)


# SimpleShot


def test_simpleshot_in_training() -> None:
    def slow(method: Any, body: nn.Sequential, task: Episodes) -> tuple[Tensor, Tensor]:
        x, y, query, labels = one_task(task)
        features, queries = body(x), body(query)
        means = [(f / f.norm(dim=1, keepdim=True)).mean(0) for f in by_class(features, y)]
        queries = queries / queries.norm(dim=1, keepdim=True)
        outputs = torch.stack([-method.log_scale.exp() * (queries - mean).square().sum(1) for mean in means], 1)
        return outputs, F.cross_entropy(outputs, labels)

    check("simpleshot", slow, SHOTS)


def test_simpleshot_in_evaluation_subtracts_the_mean_of_the_training_features() -> None:
    """CL2N of src/train.py: subtract the mean, divide by the norm, take the nearest class mean."""
    method: Any
    method, body = plain_method("simpleshot")
    seen = [small_episodes(seed=seed) for seed in (5, 6, 7)]
    for episodes in seen:
        method.adapt(episodes.support_set)
    mean = body(torch.cat([episodes.support.flatten(0, 1) for episodes in seen])).mean(0)
    method.eval()
    task = small_episodes(tasks=1)
    outputs = method.predict(method.adapt(task.support_set), task.query)[0]
    x, y, query, _ = one_task(task)
    gallery, queries = body(x) - mean, body(query) - mean
    gallery, queries = gallery / gallery.norm(dim=1, keepdim=True), queries / queries.norm(dim=1, keepdim=True)
    distances = torch.cdist(queries, torch.stack([g.mean(0) for g in by_class(gallery, y)]))
    torch.testing.assert_close(outputs, -method.log_scale.exp() * distances.square())
    assert not torch.allclose(mean, torch.zeros_like(mean))


# FEAT


@pytest.mark.parametrize("shots", [1, 3])
def test_feat(shots: int) -> None:
    """As model/models/feat.py has it, with the contrastive loss of fsl_trainer.py."""
    options = {"temperature": 4.0, "contrast_temperature": 3.0, "contrast": 0.7}

    def slow(method: Any, body: nn.Sequential, task: Episodes) -> tuple[Tensor, Tensor]:
        f = method.set_to_set

        def attention(z: Tensor) -> Tensor:
            q, k, v = z @ f.query.weight.T, z @ f.key.weight.T, z @ f.value.weight.T
            read = F.softmax(q @ k.T / z.shape[1] ** 0.5, 1) @ v
            return F.layer_norm(z + f.out(read), (z.shape[1],), f.norm.weight, f.norm.bias)

        x, y, query, labels = one_task(task)
        features, queries = body(x), body(query)
        prototypes = attention(torch.stack([one.mean(0) for one in by_class(features, y)]))
        outputs = torch.stack([-((queries - p) ** 2).sum(1) / 4.0 for p in prototypes], 1)
        together, classes = torch.cat([features, queries]), torch.cat([y, labels])
        centres = [attention(one).mean(0) for one in by_class(together, classes)]
        auxiliary = torch.stack([-((together - centre) ** 2).sum(1) / 3.0 for centre in centres], 1)
        return outputs, F.cross_entropy(outputs, labels) + 0.7 * F.cross_entropy(auxiliary, classes)

    check("feat", slow, shots, **options)


def test_feat_is_judged_without_its_contrastive_loss() -> None:
    method, episodes = small_method("feat").eval(), small_episodes()
    adapted = method.adapt(episodes.support_set)
    outputs = method.predict(adapted, episodes.query)
    losses = method.loss(adapted, outputs, episodes)
    torch.testing.assert_close(losses, cross_entropy(outputs, episodes.query_labels))


# FRN


@pytest.mark.parametrize(("shots", "by_dimension"), [(1, False), (3, False), (3, True)])
def test_frn(shots: int, by_dimension: bool) -> None:
    """As models/FRN.py has it in the other of its two forms (equation 8), with auxrank of trainers/frn_train.py."""

    def slow(method: Any, body: nn.Sequential, task: Episodes) -> tuple[Tensor, Tensor]:
        def positions(images: Tensor) -> Tensor:  # (N, r, d)
            maps = body[:-1](images).flatten(2).permute(0, 2, 1)
            return maps / 4**0.5 if by_dimension else maps

        x, y, query, labels = one_task(task)
        supports = [one.reshape(-1, 4) for one in by_class(positions(x), y)]
        alpha, beta, gamma = method.alpha, method.beta, method.gamma
        outputs = []
        for q in positions(query):
            logits = []
            for s in supports:
                penalty = s.shape[0] / s.shape[1] * alpha.exp() * torch.eye(len(s), dtype=s.dtype)
                rebuilt = beta.exp() * q @ s.T @ torch.inverse(s @ s.T + penalty) @ s
                logits.append(-gamma * ((rebuilt - q) ** 2).sum(1).mean())
            outputs.append(torch.stack(logits))
        made = torch.stack(outputs)
        norm = torch.stack(supports).norm(2)
        pairs = [(supports[i] / norm) @ (supports[j] / norm).T for i in range(WAYS) for j in range(i)]
        separation = 0.03 * sum(pair.pow(2).sum() for pair in pairs)
        return made, F.cross_entropy(made, labels) + separation

    check("frn", slow, shots, by_dimension=by_dimension)


def test_frn_finds_the_last_feature_map_or_says_that_there_is_none() -> None:
    episodes = small_episodes()
    found, named = plain_method("frn")[0], plain_method("frn", layer="3")[0]
    outputs = [m.predict(m.adapt(episodes.support_set), episodes.query) for m in (found, named)]
    torch.testing.assert_close(*outputs)
    flat = small_method("frn", model=nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, WAYS)))
    with pytest.raises(InputError, match="feature map|several positions"):
        flat.adapt(episodes.support_set)


# Simple CNAPs


@pytest.mark.parametrize("shots", [1, 3, 12])
def test_simple_cnaps(shots: int) -> None:
    """As simple_cnaps.py has it, but for the covariance of one sample, which is zero."""

    def slow(method: Any, body: nn.Sequential, task: Episodes) -> tuple[Tensor, Tensor]:
        x, y, query, labels = one_task(task)
        features, queries = body(x), body(query)
        of_task = torch.cov(features.T)
        logits = []
        for one in by_class(features, y):
            share = len(one) / (len(one) + 1)
            of_class = torch.cov(one.T) if len(one) > 1 else torch.zeros_like(of_task)
            precision = torch.inverse(share * of_class + (1 - share) * of_task + torch.eye(36, dtype=x.dtype))
            difference = queries - one.mean(0)
            logits.append(-method.log_temperature.exp() * ((difference @ precision) * difference).sum(1))
        outputs = torch.stack(logits, 1)
        return outputs, F.cross_entropy(outputs, labels)

    check("simple-cnaps", slow, shots, temperature="learned")


def test_simple_cnaps_modulates_nothing_before_training_and_each_task_by_itself_after() -> None:
    episodes = small_episodes()
    without = small_method("simple-cnaps").eval()
    method: Any = small_method("simple-cnaps", generate="1.*", width=16).eval()
    method.network.load_state_dict(without.network.state_dict())  # type: ignore[union-attr]
    adapted = method.adapt(episodes.support_set)
    assert not torch.allclose(adapted.weights["1.weight"][0], adapted.weights["1.weight"][1])
    for p in method.modulation.generator.parameters():
        nn.init.zeros_(p)
    outputs = [m.predict(m.adapt(episodes.support_set), episodes.query) for m in (method, without)]
    torch.testing.assert_close(*outputs)


# Gidaris and Komodakis


@pytest.mark.parametrize("shots", [1, 3])
def test_dynamic_few_shot(shots: int) -> None:
    """As ClassifierWithFewShotGenerationModule.py has it, with the learned bank for the base weights."""

    def slow(method: Any, body: nn.Sequential, task: Episodes) -> tuple[Tensor, Tensor]:
        x, y, query, labels = one_task(task)
        features = F.normalize(body(x), dim=1)
        bank, keys = F.normalize(method.bank, dim=1), F.normalize(method.keys, dim=1)
        weights = []
        for one in by_class(features, y):
            read = []
            for sample in one:
                asked = F.normalize(method.map.weight @ sample + method.map.bias, dim=0)
                share = F.softmax(method.attention_scale * (keys @ asked), 0)
                read.append(share @ bank)
            row = method.mean_gain * one.mean(0) + method.bank_gain * torch.stack(read).mean(0)
            weights.append(F.normalize(row, dim=0))
        outputs = method.scale * F.normalize(body(query), dim=1) @ torch.stack(weights).T
        return outputs, F.cross_entropy(outputs, labels)

    check("gidaris", slow, shots, bases=7)


# HyperShot


@pytest.mark.parametrize("train_on_support", [True, False])
def test_hypershot(train_on_support: bool) -> None:
    """As hypernet_kernel.py has it with the cosine kernel and mean aggregation, the layers of G entry by entry."""

    def slow(method: Any, body: nn.Sequential, task: Episodes) -> tuple[Tensor, Tensor]:
        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return 1 - a @ b / (a.norm() * b.norm())

        def total(parts: Iterable[Tensor]) -> Tensor:
            return torch.stack(list(parts)).sum(0)

        classes = range(WAYS)
        x, y, query, labels = one_task(task)
        means = [one.mean(0) for one in by_class(body(x), y)]
        entries = {
            (i, j): torch.stack([kernel(means[i], means[j]), torch.tensor(float(i == j), dtype=x.dtype)])
            for i in classes
            for j in classes
        }
        for layer in method.layers:
            row = [total(entries[i, j] for j in classes) / WAYS for i in classes]
            column = [total(entries[i, j] for i in classes) / WAYS for j in classes]
            everything = total(row) / WAYS
            entries = {
                (i, j): F.relu(
                    layer.linear(
                        torch.cat([here, entries[j, i], entries[i, i], entries[j, j], row[i], column[j], everything])
                    )
                )
                for (i, j), here in entries.items()
            }
        hidden_units = method.options.hidden
        made = {key: method.weights(entry) for key, entry in entries.items()}
        biases = [method.biases(total(entries[i, j] for j in classes) / WAYS) for i in classes]

        def classify(h: Tensor) -> Tensor:
            relation = [kernel(mean, h) for mean in means]
            hidden = [
                F.relu(total(made[c, j][:hidden_units] * relation[j] for j in classes) + biases[c][:-1])
                for c in classes
            ]
            return torch.stack(
                [total(made[c, j][hidden_units:] @ hidden[j] for j in classes) + biases[c][-1] for c in classes]
            )

        outputs = torch.stack([classify(h) for h in body(query)])
        trained, targets = outputs, labels
        if train_on_support:
            trained = torch.cat([torch.stack([classify(mean) for mean in means]), outputs])
            targets = torch.cat([torch.arange(WAYS), labels])
        return outputs, F.cross_entropy(trained, targets)

    check("hypershot", slow, SHOTS, width=6, layers=2, hidden=3, train_on_support=train_on_support)


# HyperMAML


@pytest.mark.parametrize("shots", [1, 3])
def test_hypermaml(shots: int) -> None:
    """As hypermaml.py has it: enhanced embeddings by class to rows that are subtracted, once."""

    def slow(method: Any, body: nn.Sequential, task: Episodes) -> tuple[Tensor, Tensor]:
        x, y, query, labels = one_task(task)
        head = method.network.head
        features = body(x)
        probabilities = F.softmax(features @ head.weight.T + head.bias, 1)
        weight, bias = [], []
        for c in range(WAYS):
            own, others = probabilities[y == c, c].mean(), probabilities[y != c, c].mean()
            step = method.step(torch.cat([features[y == c].mean(0), torch.stack([own, others])]))
            weight.append(head.weight[c] - step[:-1])
            bias.append(head.bias[c] - step[-1])
        outputs = body(query) @ torch.stack(weight).T + torch.stack(bias)
        return outputs, F.cross_entropy(outputs, labels)

    check("hypermaml", slow, shots, width=8)


# HyperTransformer


def test_hypertransformer() -> None:
    """As transformer.py of its authors has an encoder layer, with the bias of the same class, head by head."""

    def slow(method: Any, body: nn.Sequential, task: Episodes) -> tuple[Tensor, Tensor]:
        x, y, query, labels = one_task(task)
        tokens = [method.embed(h) for h in body(x)] + [method.class_token] * WAYS
        classes = [*y.tolist(), *range(WAYS)]
        for layer in method.layers:
            attention, (first, second) = layer.attention, layer.norms
            k, v = zip(*(attention.key_value(t).chunk(2) for t in tokens), strict=True)
            changed = []
            for token, own in zip(tokens, classes, strict=True):
                heads = []
                for head, bias in enumerate(layer.same_class):
                    part = slice(3 * head, 3 * head + 3)
                    scores = torch.stack([attention.query(token)[part] @ key[part] / 3**0.5 for key in k])
                    scores = scores + bias * torch.tensor([float(own == other) for other in classes])
                    share = F.softmax(scores, 0)
                    heads.append(torch.stack([a * value[part] for a, value in zip(share, v, strict=True)]).sum(0))
                read = first(token + attention.out(torch.cat(heads)))
                changed.append(second(read + layer.perceptron(read)))
            tokens = changed
        weight = torch.stack([method.rows(token) for token in tokens[-WAYS:]])
        outputs = body(query) @ weight.T
        return outputs, F.cross_entropy(outputs, labels)

    check("hypertransformer", slow, SHOTS, width=6, heads=2, layers=2)


# What they refuse


@pytest.mark.parametrize(
    "name",
    [
        "soft-kmeans",
        "metaoptnet",
        "baseline-plus-plus",
        "simpleshot",
        "feat",
        "frn",
        "simple-cnaps",
        "gidaris",
        "hypershot",
        "hypermaml",
        "hypertransformer",
    ],
)
def test_methods_of_classes_refuse_values(name: str) -> None:
    episodes = small_episodes()
    support = dataclasses.replace(episodes.support_set, ways=None, y=torch.randn(3, 8, WAYS, dtype=torch.double))
    with pytest.raises(InputError, match="class"):
        small_method(name).adapt(support)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("r2d2", {"penalty": 0.0}),
        ("r2d2", {"scale": -1.0}),
        ("simpleshot", {"scale": 0.0}),
        ("simple-cnaps", {"generate": "nothing.*"}),
        ("hypershot", {"layers": 0}),
        ("hypermaml", {"hidden": 0}),
        ("hypertransformer", {"layers": 0}),
        ("hypertransformer", {"width": 6, "heads": 4}),
    ],
)
def test_options_that_make_no_sense(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        small_method(name, **options)
