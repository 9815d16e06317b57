"""Last layers and outputs of any kind: found by what the outputs come from, or refused with the way that works."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from l2l_hyper import HyperAdapter, InputError
from l2l_hyper.data.episode import SupportSet
from l2l_hyper.methods import METHODS, TaskwiseNetwork
from l2l_hyper.methods.base_learners import spread_bound

WAYS = 3
Y = torch.arange(WAYS).repeat(4)
LEARNERS = ("gaussian", "prototype", "ridge", "gradient")
METHOD_NAMES = ("hyper-adapter", "maml", "anil", "protonet")


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(WAYS, 6, generator=generator)
    x, q = (centres[Y] + torch.randn(len(Y), 6, generator=generator) for _ in range(2))
    return x, q


class Network(nn.Module):
    """A head, a trunk and, registered last, a linear layer for something else; what they return is made by ``give``."""

    def __init__(
        self, give: Callable[[Tensor, Tensor], Any] = lambda logits, h: logits, last: int | None = None
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.give = give
        if last is not None:
            self.head = nn.Linear(8, WAYS)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        if last is None:
            self.head = nn.Linear(8, WAYS)
        self.last = None if last is None else nn.Linear(8, last)

    def forward(self, x: Tensor) -> Any:
        h = self.trunk(x)
        gated = h if self.last is None else h * self.last(h).mean(-1, keepdim=True).sigmoid()
        return self.give(self.head(gated), h)


def adapted(make: Callable[[], HyperAdapter], how: str, logits: Callable[[Any], Tensor] = lambda out: out) -> Any:
    """What a clone that is adapted in either way returns on queries."""
    x, q = samples()
    learner = make().clone()
    if how == "loss":
        learner.adapt(F.cross_entropy(logits(learner(x)), Y))
    else:
        learner.adapt(support=(x, Y))
    return learner(q)


def same(base_learner: str, model: Callable[[], nn.Module], **options: Any) -> Callable[[], HyperAdapter]:
    return lambda: HyperAdapter(model(), 0.3, base_learner=base_learner, width=16, **options)


# Which layer


class Branching(Network):
    """A network whose Python needs numbers, so that its last layer shows only once it runs."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) if x.dim() > 1 else x


@pytest.mark.parametrize("last", [1, WAYS])
@pytest.mark.parametrize("how", ["loss", "support"])
@pytest.mark.parametrize("base_learner", LEARNERS)
def test_a_head_that_is_not_registered_last_is_found(base_learner: str, how: str, last: int) -> None:
    found = adapted(same(base_learner, lambda: Network(last=last)), how)
    named = adapted(same(base_learner, lambda: Network(last=last), head="head"), how)
    torch.testing.assert_close(found, named, rtol=0, atol=0)


@pytest.mark.parametrize("last", [1, WAYS])
@pytest.mark.parametrize("how", ["loss", "support"])
@pytest.mark.parametrize("base_learner", LEARNERS)
def test_a_head_that_shows_only_in_a_pass_is_named_and_taken_by_name(base_learner: str, how: str, last: int) -> None:
    def model() -> nn.Module:
        return Branching(last=last)

    said = "come from the nn.Linear 'head', not from 'last'.*try head='head'"
    with pytest.raises(InputError, match="or head= if" if how == "support" and last == 1 else said):
        adapted(same(base_learner, model), how)
    outputs = [adapted(same(base_learner, model, head="head"), way) for way in ("loss", "support")]
    torch.testing.assert_close(*outputs)
    labels = Y if base_learner != "gradient" else outputs[0].argmax(-1)
    assert (outputs[0].argmax(-1) == labels).float().mean() > 0.8


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_methods_for_many_tasks_find_the_layer_or_name_it(name: str) -> None:
    x, q = samples()
    support = SupportSet(torch.stack([x, -x]), torch.stack([Y, Y]), WAYS)
    method = METHODS[name].build(Network(last=WAYS), {}, "support")
    assert method.network.head_name == "head"
    assert method.predict(method.adapt(support), torch.stack([q, -q])).shape == (2, len(q), WAYS)
    with pytest.raises(InputError, match="'head', not from 'last'.*or register it last"):
        METHODS[name].build(Branching(last=WAYS), {}, "support").adapt(support)


def test_the_head_that_is_given_is_the_one_that_is_checked() -> None:
    network = TaskwiseNetwork(Network(), head="trunk.0")
    with pytest.raises(InputError, match="'head', not from 'trunk.0'"):
        network(torch.randn(2, 5, 6))
    with pytest.raises(InputError, match="head='trunk' is no nn.Linear of the model; choose among 'trunk.0', 'head'"):
        TaskwiseNetwork(Network(), head="trunk")


@pytest.mark.parametrize("build", [Network, Branching])
def test_the_layer_is_found_below_a_log_softmax_and_where_the_network_is_frozen(build: type[Network]) -> None:
    model = build(lambda logits, h: (2 * logits).log_softmax(-1), last=WAYS).requires_grad_(False)
    hyper = HyperAdapter(model)
    if build is Network:
        assert hyper.method.network.head_name == "head"
    else:
        with pytest.raises(InputError, match="'head', not from 'last'"):
            hyper.clone()(torch.randn(4, 6))


class Parts(nn.Module):
    """Parts of which the symbolic pass cannot see the inside, parameters of its own and arguments with defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, WAYS)
        self.token, self.shared = nn.Parameter(torch.zeros(1, 1, 8)), nn.Linear(8, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.cells = nn.LSTM(8, 8, batch_first=True)
        self.branch, self.gate = Branching(last=8), nn.Linear(8, 8)
        self.branch.head = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        count, length, _ = x.shape
        h = self.branch(x.flatten(0, 1)).view(count, length, -1)
        h = torch.cat([self.token.expand(count, -1, -1), self.shared(self.shared(h))], 1)
        h, (state, _) = self.cells(self.encoder(h))
        if mask is not None:
            h = h[mask]
        return scale * self.head(h[:, 0] * self.gate(state[-1]).sigmoid())


def test_parts_that_the_symbolic_pass_cannot_enter_are_passed_over() -> None:
    network = TaskwiseNetwork(Parts())
    assert network.head_name == "head"
    assert network.run_one(torch.randn(4, 5, 6)).outputs.shape == (1, 4, WAYS)  # where the pass is checked


def test_looking_for_the_head_leaves_the_network_as_it_is() -> None:
    class Counting(Network):
        def __init__(self) -> None:
            super().__init__(last=WAYS)
            self.register_buffer("calls", torch.zeros(()))
            self.kept: list[Any] = []

        def forward(self, x: Tensor) -> Tensor:
            self.latest = self.trunk(x)
            self.kept.append(self.latest)
            self.calls += 1
            return super().forward(x)

    model, hooked = Counting(), []
    model.trunk.register_forward_hook(lambda _, __, output: hooked.append(output))
    hyper = HyperAdapter(model)
    assert not model.kept and not hooked and not model.calls and not hasattr(model, "latest")
    assert not hyper.module.kept and not hasattr(hyper.module, "latest") and "forward" not in vars(hyper.module.trunk)
    assert hyper.method.network.head_name == "head"


def test_a_first_pass_that_takes_another_way_is_refused() -> None:
    class Switched(Network):
        on = False

        def forward(self, x: Tensor) -> Tensor:
            h = self.trunk(x)
            return self.last(h) if self.on else self.head(h)

    hyper = HyperAdapter(Switched(last=WAYS))
    hyper.module.on = True
    with pytest.raises(InputError, match="'last', not from 'head'"):
        hyper.clone()(samples()[0])


def test_of_two_heads_one_has_to_be_named() -> None:
    class TwoHeads(Network):
        def forward(self, x: Tensor) -> Any:
            h = self.trunk(x)
            return self.give(self.head(h), self.last(h))

    with pytest.raises(InputError, match="one of each of 'head', 'last'; name the last layer with head=, or return"):
        HyperAdapter(TwoHeads(lambda *both: both, last=WAYS))
    for name, column in (("head", 0), ("last", 1)):
        outputs = adapted(same("gaussian", lambda: TwoHeads(lambda *both: both, last=WAYS), head=name), "support")  # noqa: B023
        assert (outputs[column].argmax(-1) == Y).float().mean() > 0.8
    named = TwoHeads(lambda logits, other: {"other": other, "logits": logits}, last=WAYS)
    assert HyperAdapter(named).method.network.head_name == "head"


def test_a_projection_within_attention_is_not_taken_for_the_head() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(6, WAYS)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = x.unsqueeze(-2)
            return self.head((x + self.attention(x, x, x)[0]).mean(-2))

    outputs = [adapted(same("gaussian", Attending), how) for how in ("loss", "support")]
    torch.testing.assert_close(*outputs)


def test_a_sum_of_two_linear_layers_is_no_closed_form() -> None:
    class Summed(Network):
        def __init__(self) -> None:
            super().__init__(last=WAYS)

        def forward(self, x: Tensor) -> Tensor:
            h = self.trunk(x)
            return self.head(h) + self.last(h)

    with pytest.raises(InputError, match="a mixture of 'head', 'last'; try base_learner='gradient'"):
        adapted(same("gaussian", Summed), "support")
    adapted(same("gradient", Summed), "support")


# What the network returns

Pair = namedtuple("Pair", "features logits")


@dataclass
class Output:
    """As a dataclass, and by key as a ModelOutput."""

    logits: Tensor
    hidden: tuple[Tensor, ...]


class ModelOutput(OrderedDict[str, Any]):
    """Values by name, as attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


STRUCTURES: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Tensor]]] = {
    "tuple": (lambda logits, h: (logits, h), lambda out: out[0]),
    "features first": (lambda logits, h: [h[:, :WAYS], logits], lambda out: out[1]),
    "named tuple": (lambda logits, h: Pair(h, logits), lambda out: out.logits),
    "dict": (lambda logits, h: {"hidden": h, "logits": logits}, lambda out: out["logits"]),
    "ModelOutput": (lambda logits, h: ModelOutput(loss=None, logits=logits, hidden=(h, h)), lambda out: out.logits),
    "dataclass": (lambda logits, h: Output(logits, (h,)), lambda out: out.logits),
    "of a log-softmax": (lambda logits, h: (logits.log_softmax(-1), h), lambda out: out[0]),
}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("how", ["loss", "support"])
@pytest.mark.parametrize("base_learner", LEARNERS)
def test_a_learner_returns_what_its_network_returns(base_learner: str, how: str, structure: str) -> None:
    give, logits = STRUCTURES[structure]
    plain = adapted(same(base_learner, Network), how)
    returned = adapted(same(base_learner, lambda: Network(give)), how, logits)
    assert type(returned) is type(give(plain, torch.zeros(len(plain), 8)))
    expected = plain.log_softmax(-1) if structure == "of a log-softmax" else plain
    torch.testing.assert_close(logits(returned), expected)
    F.cross_entropy(logits(returned), Y).backward()
    with torch.no_grad():
        assert isinstance(logits(HyperAdapter(Network(give)).clone()(samples()[0])), Tensor)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_head_is_found_in_whatever_a_network_returns(structure: str) -> None:
    give, _ = STRUCTURES[structure]
    assert TaskwiseNetwork(Network(give, last=WAYS)).head_name == "head"


def test_a_gate_that_makes_what_is_returned_beside_the_logits_is_no_head() -> None:
    class Gated(Network):
        def forward(self, x: Tensor) -> Any:
            h = self.trunk(x)
            gated = h * self.last(h).sigmoid()
            return self.head(gated), gated

    outputs = [
        adapted(same("gaussian", lambda: Gated(last=8)), how, lambda out: out[0])[0] for how in ("loss", "support")
    ]
    torch.testing.assert_close(*outputs)
    assert (outputs[0].argmax(-1) == Y).float().mean() > 0.8


@pytest.mark.parametrize("structure", [name for name in STRUCTURES if name != "of a log-softmax"])
@pytest.mark.parametrize("name", METHOD_NAMES)
def test_methods_for_many_tasks_take_the_logits_out_of_what_a_network_returns(name: str, structure: str) -> None:
    give, _ = STRUCTURES[structure]
    x, q = samples()
    support, query = SupportSet(torch.stack([x, -x]), torch.stack([Y, Y]), WAYS), torch.stack([q, -q])
    outputs = []
    for model in (Network(), Network(give)):
        torch.manual_seed(2)
        method = METHODS[name].build(model, {}, "support")
        outputs.append(method.predict(method.adapt(support), query))
    torch.testing.assert_close(*outputs)


# Tokens


def tokens() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(WAYS, 6, generator=generator)
    y = torch.stack([torch.randperm(WAYS, generator=generator).repeat(2) for _ in range(4)])
    x, q = (centres[y] + torch.randn(*y.shape, 6, generator=generator) for _ in range(2))
    return x, q, y


@pytest.mark.parametrize("base_learner", LEARNERS)
def test_every_token_is_a_row_of_the_support_set(base_learner: str) -> None:
    x, q, y = tokens()
    learners = [same(base_learner, Network)() for _ in range(2)]
    flat, by_token = (learner.clone() for learner in learners)
    flat.adapt(F.cross_entropy(flat(x.flatten(0, 1)), y.flatten()))
    by_token.adapt(F.cross_entropy(by_token(x).movedim(-1, 1), y))
    expected = flat(q.flatten(0, 1)).unflatten(0, y.shape)
    torch.testing.assert_close(by_token(q), expected)
    F.cross_entropy(expected.flatten(0, 1), y.flatten()).backward()
    F.cross_entropy(by_token(q).movedim(-1, 1), y).backward()
    for p, other in zip(*(learner.parameters() for learner in learners), strict=True):
        torch.testing.assert_close(p.grad, other.grad)


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_methods_for_many_tasks_read_tokens(name: str) -> None:
    x, q, y = tokens()
    outputs = []
    for shape in (y.shape, (y.numel(),)):
        torch.manual_seed(2)
        method = METHODS[name].build(Network(), {}, "support")
        x2, y2, q2 = (torch.stack([of, of.flip(0)]).reshape(2, *shape, *of.shape[2:]) for of in (x, y, q))
        outputs.append(method.predict(method.adapt(SupportSet(x2, y2, WAYS)), q2))
    torch.testing.assert_close(outputs[0].flatten(1, 2), outputs[1])


def moved(base_learner: str) -> HyperAdapter:
    """With a residual that has left zero, and a body that is generated too."""
    torch.manual_seed(0)
    hyper = same(base_learner, Network, generate="trunk.*")().double()
    with torch.no_grad():
        for p in hyper.parameters():
            if not p.any():
                p.normal_(0, 0.1)
    return hyper


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("base_learner", LEARNERS)
def test_tokens_are_told_as_samples_are_and_padding_is_in_no_support_set(base_learner: str, padded: bool) -> None:
    x, q, y = (of.double() if of.is_floating_point() else of for of in tokens())
    if padded:
        y[0, 4:] = y[2, 5] = -100
    kept, hyper, found = y != -100, moved(base_learner), []
    for how in ("samples", "support", "loss", "told"):
        learner = hyper.clone()
        if how == "samples":
            learner.adapt(support=(x[kept], y[kept]))
        elif how == "support":
            learner.adapt(support=(x, y))
        else:
            learner.adapt(F.cross_entropy(learner(x).movedim(-1, 1), y), labels=y if how == "told" else None)
        outputs = learner(q)
        loss = F.cross_entropy(outputs.movedim(-1, 1), tokens()[2])
        (gradient,) = torch.autograd.grad(loss, hyper.module.trunk[0].weight)
        found.append((outputs, gradient))
    for others in found[1:]:
        torch.testing.assert_close(others, found[0])


def test_mini_batches_of_tokens_are_read_together() -> None:
    x, q, y = tokens()
    y[0, 4:] = -100
    hyper = same("gaussian", Network)()
    at_once, in_turn = hyper.clone(), hyper.clone()
    at_once.adapt(support=(x, y))
    for part in (slice(0, 1), slice(1, 4), slice(1, 4)):
        in_turn.adapt(support=(x[part], y[part]))
    torch.testing.assert_close(in_turn(q), at_once(q))
    with pytest.raises(InputError, match=r"of one shape, got \(6, 6\), \(6, 6\), \(5, 6\); pad them alike"):
        in_turn.adapt(support=(x[:, :5] + 1, y[:, :5]))


@pytest.mark.parametrize("base_learner", LEARNERS)
def test_labels_for_other_rows_than_the_network_makes_are_refused(base_learner: str) -> None:
    x, _, y = tokens()
    learner = same(base_learner, Network)().clone()
    with pytest.raises(InputError, match="of 24 rows of logits, got 12.*one-hot: adapt"):
        learner.adapt(support=(x.repeat(3, 1, 1)[:, :2], torch.arange(12) % WAYS))
    with pytest.raises(InputError, match="of 24 rows of logits, got 4.*one-hot: adapt"):
        learner.adapt(support=(x, F.one_hot(y[:, 0], 6)), ways=WAYS)
    with pytest.raises(InputError, match="each of 12 rows of logits, got 24"):
        learner.adapt(support=(x.mean(1).repeat(3, 1), torch.arange(24).view(12, 2) % WAYS))


# Last layers with a weight that is not theirs alone


class Tied(nn.Module):
    """Tokens from 0 to 2 to logits of the same tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WAYS, 8)
        self.out = nn.Linear(8, WAYS)
        self.out.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embedding(x))


@pytest.mark.parametrize("base_learner", (*LEARNERS, "own"))
def test_a_head_tied_to_an_embedding_is_refused_with_the_way_that_works(base_learner: str) -> None:
    model = Tied()
    with pytest.raises(InputError, match="'out' is also 'embedding.weight'.*model.out.weight = nn.Parameter"):
        HyperAdapter(model, base_learner=base_learner)
    model.out.weight = nn.Parameter(model.out.weight.detach().clone())
    learner = HyperAdapter(model, base_learner=base_learner).clone()
    learner.adapt(F.cross_entropy(learner(Y), Y))
    F.cross_entropy(learner(Y), Y).backward()


@pytest.mark.parametrize("name", [name for name in METHOD_NAMES if name != "maml"])
def test_methods_refuse_a_tied_head_too(name: str) -> None:
    support = SupportSet(torch.stack([Y, Y]), torch.stack([Y, Y]), WAYS)
    with pytest.raises(InputError, match="'out' is also 'embedding.weight'"):
        METHODS[name].build(Tied(), {}, "support").adapt(support)


COMPUTED: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "weight_norm": (parametrizations.weight_norm, r"parametrize.remove_parametrizations\(model.2, 'weight'\)"),
    "old weight_norm": (nn.utils.weight_norm, r"remove_weight_norm\(model.2\)"),
    "spectral_norm": (parametrizations.spectral_norm, r"parametrize.remove_parametrizations\(model.2, 'weight'\)"),
    "old spectral_norm": (nn.utils.spectral_norm, r"remove_spectral_norm\(model.2\)"),
    "pruning": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), r"prune.remove\(model.2, 'weight'\)"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("base_learner", LEARNERS)
def test_a_head_whose_weight_is_computed_is_refused_with_the_way_that_works(base_learner: str, kind: str) -> None:
    change, way = COMPUTED[kind]
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, WAYS))
    change(model[2])
    with pytest.raises(InputError, match=way):
        HyperAdapter(model, base_learner=base_learner)
    below = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, WAYS))
    change(below[2])
    adapted(same(base_learner, lambda: below), "loss")


def test_lazy_layers_are_refused_until_they_have_a_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(WAYS))
    with pytest.raises(InputError, match=r"'0.weight' has none; call it on a batch first"):
        HyperAdapter(model)
    model(samples()[0])
    adapted(same("gaussian", lambda: model), "loss")


# Networks of half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["loss", "support"])
@pytest.mark.parametrize("base_learner", LEARNERS)
def test_a_network_of_half_precision_is_adapted_in_float32(
    base_learner: str, how: str, when: str, dtype: torch.dtype
) -> None:
    x, q = (of.to(dtype) for of in samples())
    model = Network().to(dtype) if when == "before" else Network()
    hyper = HyperAdapter(model, 0.3, base_learner=base_learner, width=16, generate=["trunk.*"])
    hyper = hyper if when == "before" else hyper.to(dtype)
    learner = hyper.clone()
    if how == "loss":
        learner.adapt(F.cross_entropy(learner(x), Y))
    else:
        learner.adapt(support=(x, Y))
    outputs = learner(q)
    assert outputs.dtype == dtype
    assert base_learner == "gradient" or (outputs.argmax(-1) == Y).float().mean() > 0.8
    F.cross_entropy(outputs, Y).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in hyper.parameters())
    exact = same(base_learner, Network, generate=["trunk.*"])().clone()
    exact.adapt(support=(samples()[0], Y))
    torch.testing.assert_close(outputs.float(), exact(samples()[1]), rtol=0.05, atol=0.3)


@pytest.mark.parametrize("name", ["hyper-adapter", "protonet", "maml", "anil"])
def test_methods_for_many_tasks_run_networks_of_half_precision(name: str) -> None:
    x, q = (torch.stack([of, -of]).bfloat16() for of in samples())
    method = METHODS[name].build(Network().bfloat16(), {}, "support")
    outputs = method.predict(method.adapt(SupportSet(x, torch.stack([Y, Y]), WAYS)), q)
    assert outputs.dtype == torch.bfloat16
    outputs.float().square().mean().backward()


# Many features


def wide_features(scale: float, shots: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Half of the features on, as after a ReLU and dropout, which tell little of the class."""
    generator = torch.Generator().manual_seed(0)
    y, qy = torch.arange(5).repeat_interleave(shots), torch.arange(5).repeat(6)
    centres = torch.randn(5, 4096, generator=generator)

    def of(labels: Tensor) -> Tensor:
        noise = torch.randn(len(labels), 4096, generator=generator)
        size = torch.rand(len(labels), 1, generator=generator) + 0.5
        return scale * size * (0.05 * centres[labels] + noise).relu()

    return of(y), y, of(qy), qy


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("base_learner", ["gaussian", "prototype", "ridge", "cosine"])
def test_four_thousand_features_do_not_begin_certain_of_a_wrong_class(
    base_learner: str, shots: int, scale: float
) -> None:
    x, y, q, qy = wide_features(scale, shots)
    hyper = HyperAdapter(nn.Linear(4096, 5), base_learner=base_learner, width=16)
    learner = hyper.clone()
    learner.adapt(F.cross_entropy(learner(x), y))
    loss = F.cross_entropy(learner(q), qy)
    assert loss < 4
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in hyper.parameters())


def test_the_bound_is_that_of_its_formula_and_differentiates() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6, 2049, dtype=torch.double, requires_grad=True)
    precision = torch.rand(2049, dtype=torch.double, requires_grad=True)
    bound = spread_bound(x, precision)
    spread = (precision * (x - x.mean(1, keepdim=True)) ** 2).sum(2).mean(1)
    torch.testing.assert_close(bound.flatten(), (8 / spread).clamp(max=1))
    direction = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(bound.sum(), x)
    ahead, behind = (spread_bound(x + step * direction, precision).sum() for step in (1e-5, -1e-5))
    torch.testing.assert_close((gradient * direction).sum(), (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-8)
    assert (spread_bound(1e3 * x[..., :2048]) == 1).all() and (spread_bound(1e-3 * x) == 1).all()
    assert torch.isfinite(torch.autograd.grad(spread_bound(x[:, :1]).sum(), x)[0]).all()  # one sample has no spread


def test_the_published_prototypes_stay_squared_distances_of_any_width() -> None:
    x, y, q, _ = wide_features(1.0)
    model = nn.Sequential(nn.Identity(), nn.Linear(4096, 5))
    method = METHODS["protonet"].build(model, {}, "support").double()
    x, q = x.double(), q.double()
    outputs = method.predict(method.adapt(SupportSet(x[None], y[None], 5)), q[None])[0]
    torch.testing.assert_close(outputs.log_softmax(-1), (-torch.cdist(q, x).square()).log_softmax(-1))
