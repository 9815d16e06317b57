"""docs/what-works.md: every cell of its tables, by the check that the row names."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from l2l_hyper import HyperAdapter, HyperSGD, InputError
from l2l_hyper._learn2learn import learn2learn

# torch looks at the gradient of whatever it converts, compiles or exports, and the tensors of a clone are no leaves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
]

l2l = learn2learn()
WAYS = 3
Y = torch.arange(WAYS).repeat(4)
PAGE = Path(__file__).parents[1] / "docs" / "what-works.md"
LEARNERS: dict[str, Any] = {
    "HyperAdapter": partial(HyperAdapter, lr=0.1, width=16, blocks=1),
    "HyperSGD": partial(HyperSGD, lr=0.1),
}

Make = Callable[[nn.Module], Any]
Loss = Callable[[Tensor, Any], Tensor]


def rows() -> list[list[str]]:
    """What, the cell of each learner, note and check."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] != "what" and not row[0].startswith("---")]


CELLS = [
    pytest.param(name, row[column], row[4].strip("`"), id=f"{row[0]}, {name}")
    for row in rows()
    for column, name in enumerate(LEARNERS, 1)
    if row[column]
]


@pytest.mark.parametrize(("learner", "cell", "check"), CELLS)
def test_a_cell_says_what_happens(learner: str, cell: str, check: str) -> None:
    found = re.fullmatch(r"(yes|refused)(?:, `(.*)`)?", cell)
    assert found, f"expected yes or refused, and arguments of the learner, got {cell!r}"
    make = partial(LEARNERS[learner], **eval(f"dict({found[2] or ''})"))
    torch.manual_seed(0)
    if found[1] == "yes":
        CHECKS[check](make)
    else:
        with pytest.raises(InputError):
            CHECKS[check](make)


def test_every_row_has_a_check_and_every_check_a_row() -> None:
    assert {row[4].strip("`") for row in rows()} == set(CHECKS)
    assert all(len(row) == 5 for row in rows())


# What is right


def cross_entropy_loss(outputs: Tensor, _: Any) -> Tensor:
    return F.cross_entropy(outputs, Y)


def perceptron_network(outputs: int = WAYS) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, outputs))


def samples(*shape: int) -> list[tuple[Tensor, ...]]:
    return [(torch.randn(len(Y), *shape),) for _ in range(2)]


def right(
    make: Make,
    model: nn.Module,
    support: tuple[Any, ...],
    query: tuple[Any, ...],
    *,
    loss: Loss = cross_entropy_loss,
    y: Any = Y,
    kept: Tensor | None = None,
    **told: Any,
) -> Any:
    """The learner adapted to the loss, if its answers and its gradients are those that the page promises."""
    hyper, reference = make(copy.deepcopy(model)), None
    learner = hyper.clone()
    learner.adapt(loss(learner(*support), learner), **told)
    is_maml = isinstance(hyper, HyperSGD) or (hyper.method.iterative and hyper.method.residual is None)
    if is_maml:
        options = {"allow_nograd": hyper.allow_nograd, "first_order": hyper.first_order}
        reference = l2l.algorithms.MAML(copy.deepcopy(model), 0.1, **options).clone()
        reference.adapt(loss(reference(*support), reference))
    elif len(support) == 1:
        reference = hyper.clone()
        inside = support[0] if kept is None else support[0][kept]
        reference.adapt(support=(inside, y), ways=WAYS if y.shape == (len(Y), WAYS) else None)
    outputs = logits_of(learner(*query))
    if reference is not None:
        expected = logits_of(reference(*query))
        if loss is soft:  # soft labels leave what all classes of a sample share
            torch.testing.assert_close(outputs.log_softmax(-1), expected.log_softmax(-1), rtol=1e-2, atol=1e-2)
        else:
            torch.testing.assert_close(outputs, expected, rtol=1e-3, atol=1e-4)
    (F.cross_entropy(outputs, Y) if outputs.shape[1] == WAYS else F.mse_loss(outputs, VALUES)).backward()
    learned = {name: p.grad for name, p in hyper.named_parameters() if p.requires_grad}
    assert not [name for name, grad in learned.items() if grad is None or not grad.isfinite().all()]
    return learner


def logits_of(outputs: Any) -> Tensor:
    return outputs["logits"] if isinstance(outputs, dict) else outputs[0] if isinstance(outputs, tuple) else outputs


# Models


def perceptron(make: Make) -> None:
    right(make, perceptron_network(), *samples(6))


def convolution_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, WAYS))


def convolutions(make: Make) -> None:
    right(make, convolution_network(), *samples(1, 5, 5))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.b(self.a(x)))


def residual_network(make: Make) -> None:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, WAYS)]
    right(make, nn.Sequential(nn.Conv2d(1, 4, 3), Block(), Block(), *head), *samples(1, 6, 6))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def transformer(make: Make) -> None:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        right(make, Transformer(), *samples(5, 8))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


def recurrent(make: Make) -> None:
    right(make, Recurrent(), *samples(5, 4))


def embedding(make: Make) -> None:
    model = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(40, WAYS))
    right(make, model, *[(torch.randint(20, (len(Y), 5)),) for _ in range(2)])


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, WAYS)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.head(torch.tanh(self.a(x) + self.b(z)))


def two_inputs(make: Make) -> None:
    support, query = ((torch.randn(len(Y), 6), torch.randn(len(Y), 4)) for _ in range(2))
    right(make, TwoInputs(), support, query)
    kept = torch.arange(len(Y)) % 5 > 0
    hyper = make(TwoInputs())
    part, whole = hyper.clone(), hyper.clone()
    part.adapt(F.cross_entropy(part(*(x[kept] for x in support)), Y[kept]))
    whole.adapt(F.cross_entropy(whole(*support), Y.where(kept, -100)))
    torch.testing.assert_close(whole(*query), part(*query), rtol=1e-4, atol=1e-5)


def log_softmax(make: Make) -> None:
    right(make, nn.Sequential(*perceptron_network(), nn.LogSoftmax(-1)), *samples(6))


def no_bias(make: Make) -> None:
    right(make, nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, WAYS, bias=False)), *samples(6))


def frozen_body(make: Make) -> None:
    model = perceptron_network()
    model[0].requires_grad_(False)
    right(make, model, *samples(6))


class Wrapped(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.network, self.kind = perceptron_network(), kind

    def forward(self, x: Tensor) -> Any:
        features = self.network[:2](x)
        logits = self.network[2](features)
        return {"logits": logits, "features": features} if self.kind is dict else (logits, features)


def outputs_in_a_dictionary(make: Make) -> None:
    for kind in (dict, tuple):
        right(make, Wrapped(kind), *samples(6), loss=lambda o, _: F.cross_entropy(logits_of(o), Y))


class HeadFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.gate = nn.Linear(8, WAYS), nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.body(x))
        return self.head(h * self.gate(h).sigmoid())


def head_first(make: Make) -> None:
    right(make, HeadFirst(), *samples(6))


class Branching(HeadFirst):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x if x.dim() == 2 else x.flatten(1))


def branching(make: Make) -> None:
    right(make, Branching(), *samples(6))


class TwoHeads(HeadFirst):
    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.body(x))
        return self.head(h), self.gate(h)


def two_heads(make: Make) -> None:
    (support, query), hyper = samples(6), make(TwoHeads())
    learner = hyper.clone()
    learner.adapt(F.cross_entropy(learner(*support)[0], Y))
    sum(F.cross_entropy(outputs[:, :WAYS], Y) for outputs in learner(*query)).backward()
    assert all(p.grad is not None for p in hyper.module.parameters())


def token_network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, WAYS))


def of_tokens(make: Make, y: Tensor, *, told: bool = False) -> None:
    """As of the tokens that have a label, each as a sample."""
    (x, q), hyper = torch.randn(2, 4, 3, 6), make(token_network())
    by_token, by_sample = hyper.clone(), hyper.clone()
    by_token.adapt(F.cross_entropy(by_token(x).movedim(-1, 1), y), **({"labels": y} if told else {}))
    by_sample.adapt(F.cross_entropy(by_sample(x[y >= 0]), y[y >= 0]))
    torch.testing.assert_close(by_token(q), by_sample(q), rtol=1e-4, atol=1e-5)
    if told:
        by_support = hyper.clone()
        by_support.adapt(support=(x, y))
        torch.testing.assert_close(by_support(q), by_sample(q), rtol=1e-4, atol=1e-5)
    F.cross_entropy(by_token(q).movedim(-1, 1), y).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in hyper.parameters())


def tokens(make: Make) -> None:
    of_tokens(make, Y.view(4, 3))


def padding_tokens(make: Make) -> None:
    of_tokens(make, Y.where(torch.arange(len(Y)) % 5 > 0, -100).view(4, 3))


def token_labels(make: Make) -> None:
    of_tokens(make, Y.where(torch.arange(len(Y)) % 5 > 0, -100).view(4, 3), told=True)


def weight_norm(make: Make) -> None:
    model = perceptron_network()
    nn.utils.parametrizations.weight_norm(model[2])
    right(make, model, *samples(6))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(WAYS, 8), nn.Linear(8, WAYS, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embedding(x).sum(1)))


def tied(make: Make) -> None:
    right(make, Tied(), *[(torch.randint(WAYS, (len(Y), 5)),) for _ in range(2)])


def no_linear_layer(make: Make) -> None:
    model = nn.Sequential(nn.Conv2d(1, WAYS, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    right(make, model, *samples(1, 5, 5))


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, WAYS)
        self.layers = [self.body, self.head]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](torch.tanh(self.layers[0](x)))


def python_list(make: Make) -> None:
    (support, _), hyper = samples(6), make(Listed())
    learner = hyper.clone()
    learner.adapt(F.cross_entropy(learner(*support), Y))


def fx(make: Make) -> None:
    model, (support, query) = perceptron_network(), samples(6)
    learner = right(make, model, support, query)
    traced = make(torch.fx.symbolic_trace(model))
    traced.load_state_dict(make(model).state_dict() if isinstance(traced, HyperSGD) else learner.state_dict())
    clone = traced.clone()
    clone.adapt(F.cross_entropy(clone(*support), Y))
    torch.testing.assert_close(clone(*query), learner(*query))


# Losses


VALUES = torch.sin(torch.arange(2.0 * len(Y))).reshape(-1, 2)
SOFT = 0.7 * F.one_hot(Y, WAYS) + 0.3 * F.one_hot(Y.flip(0).roll(1), WAYS)


def soft(outputs: Tensor, _: Any) -> Tensor:
    return F.cross_entropy(outputs, SOFT)


def focal_loss(outputs: Tensor, _: Any) -> Tensor:
    p = outputs.softmax(-1).gather(1, Y[:, None]).squeeze(1)
    return ((1 - p) ** 2 * F.cross_entropy(outputs, Y, reduction="none")).mean()


def of_classes(loss: Callable[[Tensor], Tensor]) -> Callable[[Make], None]:
    return lambda make: right(make, perceptron_network(), *samples(6), loss=lambda o, _: loss(o)) and None


def of_values(loss: Callable[[Tensor], Tensor]) -> Callable[[Make], None]:
    return lambda make: right(make, perceptron_network(2), *samples(6), loss=lambda o, _: loss(o), y=VALUES) and None


def cross_entropy(make: Make) -> None:
    for reduction in ("mean", "sum"):
        for scale in (1 / 16, 1, 10):
            of_classes(lambda o, r=reduction, s=scale: s * F.cross_entropy(o, Y, reduction=r))(make)


def ignore_index(make: Make) -> None:
    kept = torch.arange(len(Y)) % 5 > 0
    loss = lambda o, _: F.cross_entropy(o, Y.where(kept, -100))  # noqa: E731
    right(make, convolution_network(), *samples(1, 5, 5), loss=loss, y=Y[kept], kept=kept)


def mixup(make: Make) -> None:
    right(make, perceptron_network(), *samples(6), loss=soft, y=SOFT)


def focal_with_labels(make: Make) -> None:
    right(make, perceptron_network(), *samples(6), loss=focal_loss, labels=Y)


def weight_decay(make: Make) -> None:
    def loss(outputs: Tensor, learner: Any) -> Tensor:
        return F.cross_entropy(outputs, Y) + 0.1 * sum(p.square().sum() for p in learner.module.parameters())

    right(make, perceptron_network(), *samples(6), loss=loss)


# Normalization


def evaluation(make: Make) -> None:
    model, (support, query) = convolution_network(), samples(1, 5, 5)
    for _ in range(3):
        model(*samples(1, 5, 5)[0])  # running averages
    learner = right(make, model.eval(), support, query)
    together = learner(*query)
    torch.testing.assert_close(torch.cat([learner(x[None]) for x in query[0]]), together, rtol=1e-4, atol=1e-5)


def one_by_one(make: Make) -> None:
    support, query = samples(1, 5, 5)
    learner = right(make, convolution_network(), support, query)
    torch.testing.assert_close(torch.cat([learner(x[None]) for x in query[0]]), learner(*query), rtol=1e-4, atol=1e-5)


def other_norms(make: Make) -> None:
    norms = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.LayerNorm(36))
    right(make, nn.Sequential(*norms, nn.Linear(36, WAYS)), *samples(1, 5, 5))


def instance_norm(make: Make) -> None:
    body = [nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), nn.Flatten()]
    right(make, nn.Sequential(*body, nn.Linear(36, WAYS)), *samples(1, 5, 5))


# Precision


def float64(make: Make) -> None:
    support, query = ((x.double(),) for (x,) in samples(6))
    right(lambda model: make(model).double(), perceptron_network().double(), support, query)


def bfloat16(make: Make) -> None:
    support, query = samples(6)
    model = perceptron_network()
    exact = right(make, model, support, query)(*query)
    learner = make(copy.deepcopy(model).bfloat16()).clone()
    learner.adapt(F.cross_entropy(learner(support[0].bfloat16()), Y))
    outputs = learner(query[0].bfloat16())
    F.cross_entropy(outputs, Y).backward()
    torch.testing.assert_close(outputs.float(), exact, rtol=0.1, atol=0.1)


def autocast(make: Make) -> None:
    support, query = samples(6)
    model = perceptron_network()
    exact = right(make, model, support, query)(*query)
    hyper = make(copy.deepcopy(model))
    learner = hyper.clone()
    with torch.autocast("cpu", torch.bfloat16):
        learner.adapt(F.cross_entropy(learner(*support), Y))
        outputs = learner(*query)
        loss = F.cross_entropy(outputs, Y)
    loss.backward()
    torch.testing.assert_close(outputs.float(), exact, rtol=0.1, atol=0.1)
    assert {p.dtype for p in learner.module.parameters()} == {torch.float32}


# An adapted clone as a model


def adapted(make: Make) -> tuple[Any, Any, Tensor]:
    """A learner, an adapted clone in evaluation mode, and queries."""
    hyper, (support, query) = make(convolution_network()), samples(1, 5, 5)
    learner = hyper.clone()
    learner.adapt(F.cross_entropy(learner(*support), Y))
    return hyper, learner.eval(), query[0]


def state(make: Make) -> None:
    hyper, learner, query = adapted(make)
    other = make(convolution_network()).eval()
    other.load_state_dict(learner.state_dict())
    torch.testing.assert_close(other(query), learner(query))


def pickled(make: Make) -> None:
    _, learner, query = adapted(make)
    torch.testing.assert_close(pickle.loads(pickle.dumps(learner))(query), learner(query))


def doubled(make: Make) -> None:
    _, learner, query = adapted(make)
    expected = learner(query)
    torch.testing.assert_close(learner.double()(query.double()).float(), expected, rtol=1e-3, atol=1e-4)


def traced(make: Make) -> None:
    _, learner, query = adapted(make)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(learner.module, (query,))(query[:5]), learner(query[:5]))


def exported(make: Make) -> None:
    hyper, learner, query = adapted(make)
    task = copy.deepcopy(hyper).eval()
    task.load_state_dict(learner.state_dict())
    with torch.no_grad():
        saved = io.BytesIO()
        torch.export.save(torch.export.export(task.module, (query,)), saved)
        saved.seek(0)
        torch.testing.assert_close(torch.export.load(saved).module()(query), learner(query))


# Several processes, and compilation


def distributed_data_parallel(make: Make) -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        make(DistributedDataParallel(perceptron_network()))
    finally:
        distributed.destroy_process_group()


def data_parallel(make: Make) -> None:
    make(nn.DataParallel(perceptron_network()))


def compiled_model(make: Make) -> None:
    in_place = perceptron_network()
    in_place.compile(backend="eager")
    with pytest.raises(InputError, match=r"learner\.compile\(\)"):
        make(in_place)
    make(torch.compile(perceptron_network(), backend="eager"))


def compiled_learner(make: Make) -> None:
    def compiled(model: nn.Module) -> Any:
        learner = make(model)
        learner.compile(backend="eager")  # others are in test_parallel_and_compiled.py
        return learner

    right(compiled, perceptron_network(), *samples(6))


def scripted_model(make: Make) -> None:
    make(torch.jit.script(perceptron_network()))


ONE_HOT, CLASS_WEIGHTS = F.one_hot(Y, WAYS).float(), torch.tensor([0.5, 1.0, 3.0])
CHECKS: dict[str, Callable[[Make], None]] = {
    "weights_and_smoothing": of_classes(lambda o: F.cross_entropy(o, Y, CLASS_WEIGHTS, label_smoothing=0.1)),
    "temperature": of_classes(lambda o: F.cross_entropy(o / 2.5, Y)),
    "binary": of_classes(lambda o: F.binary_cross_entropy_with_logits(o, ONE_HOT)),
    "multi_margin": of_classes(lambda o: F.multi_margin_loss(o, Y)),
    "squared_error": of_values(lambda o: F.mse_loss(o, VALUES)),
    "absolute_error": of_values(lambda o: F.l1_loss(o, VALUES)),
    "focal": of_classes(lambda o: focal_loss(o, None)),
    **{
        check.__name__: check
        for check in (
            *(perceptron, convolutions, residual_network, transformer, recurrent, embedding, two_inputs, log_softmax),
            *(
                no_bias,
                frozen_body,
                outputs_in_a_dictionary,
                weight_norm,
                tied,
                bfloat16,
                no_linear_layer,
                python_list,
                fx,
                cross_entropy,
                ignore_index,
                mixup,
            ),
            *(focal_with_labels, weight_decay, evaluation, one_by_one, other_norms, instance_norm, float64, autocast),
            *(state, pickled, doubled, traced, exported, distributed_data_parallel, data_parallel, compiled_model),
            *(compiled_learner, scripted_model),
            *(head_first, branching, two_heads, tokens, padding_tokens, token_labels),
        )
    },
}
