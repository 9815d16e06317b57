"""Wrapped, compiled and scripted networks are refused with what to pass instead; learners compile, clones export."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from l2l_hyper import HyperAdapter, HyperSGD, InputError
from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.bridge import Learner
from l2l_hyper.methods import Method

l2l = learn2learn()
WAYS = 3
Y = torch.arange(WAYS).repeat(4)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, WAYS))


def samples() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x, q = torch.randn(2, len(Y), 6)
    return x, q


def moved(learner: Any) -> Any:
    """With a residual or transforms that have left zero."""
    torch.manual_seed(2)
    with torch.no_grad():
        for p in learner.parameters():
            if not p.any():
                p.normal_(0, 0.1)
    return learner


class Whole(Method):
    """A method that holds any network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


LEARNERS: dict[str, Callable[[nn.Module], Any]] = {
    "HyperAdapter": lambda model: HyperAdapter(model, 0.3, width=16, blocks=1),
    "gradient": lambda model: HyperAdapter(model, 0.3, base_learner="gradient", generate="*", width=16, blocks=1),
    "HyperSGD": lambda model: HyperSGD(model, 0.3),
}
every_learner = pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
every_refusal = pytest.mark.parametrize(
    "make",
    [*LEARNERS.values(), lambda model: Learner(Whole(model)), lambda m: HyperAdapter(network(), encoder=m)],
    ids=[*LEARNERS, "Learner", "encoder"],
)


def adapted(hyper: Any) -> Any:
    learner, (x, _) = hyper.clone(), samples()
    learner.adapt(F.cross_entropy(learner(x), Y))
    return learner


# Wrappers for several processes or devices


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("inner", [False, True], ids=["whole", "a part"])
@every_refusal
def test_distributed_data_parallel_is_refused(make: Any, inner: bool, process_group: None) -> None:
    """Which does not see what the clones of a learner do: the processes would drift apart without a word."""
    model = nn.Sequential(DistributedDataParallel(network()[0]), *network()[1:]) if inner else network()
    wrapped = model if inner else DistributedDataParallel(model)
    with pytest.raises(InputError, match=r"DistributedDataParallel.*\.module.*average the gradients"):
        make(wrapped)
    if not inner:
        adapted(LEARNERS["HyperAdapter"](wrapped.module))


@every_refusal
def test_data_parallel_is_refused(make: Any) -> None:
    with pytest.raises(InputError, match=r"got DataParallel.*\.module"):
        make(nn.DataParallel(network()))


@every_learner
def test_gradients_averaged_by_hand_are_those_of_all_tasks(make: Any, process_group: None) -> None:
    """What the message says, on the one process there is: a learner needs no wrapper."""
    hyper, (_, q) = make(network()), samples()
    F.cross_entropy(adapted(hyper)(q), Y).backward()
    before = [p.grad.clone() for p in hyper.parameters()]
    for p in hyper.parameters():
        distributed.all_reduce(p.grad)
        p.grad /= distributed.get_world_size()
    torch.testing.assert_close([p.grad for p in hyper.parameters()], before)


# Compiled and scripted networks


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


COMPILED: dict[str, Callable[[], nn.Module]] = {
    "torch.compile": lambda: torch.compile(network(), backend="eager"),
    "in place": lambda: compiled_in_place(network()),
    "a part": lambda: nn.Sequential(torch.compile(network()[0], backend="eager"), *network()[1:]),
    "a part in place": lambda: nn.Sequential(compiled_in_place(network()[0]), *network()[1:]),
}


@pytest.mark.parametrize("build", COMPILED.values(), ids=COMPILED)
@every_refusal
def test_a_compiled_network_is_refused(make: Any, build: Any) -> None:
    with pytest.raises(InputError, match=r"compile the learner instead: learner\.compile\(\)"):
        make(build())


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("scripted", [torch.jit.script, lambda m: torch.jit.trace(m.eval(), samples()[:1])])
@every_refusal
def test_a_scripted_network_is_refused(make: Any, scripted: Any) -> None:
    with pytest.raises(InputError, match=r"TorchScript.*torch\.jit\.trace\(learner\.module"):
        make(scripted(network()))


@every_learner
def test_a_network_that_fx_has_traced_is_adapted(make: Any) -> None:
    """As torchvision's feature extractors are."""
    _, q = samples()
    traced, plain = make(torch.fx.symbolic_trace(network())), make(network())
    traced.load_state_dict(plain.state_dict())
    torch.testing.assert_close(adapted(traced)(q), adapted(plain)(q))


# A compiled learner


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at it
@every_learner
def test_a_compiled_learner_does_the_same(make: Any) -> None:
    """In value and gradient; a clone computes with its own tensors."""
    (_, q), found = samples(), []
    for compile_it in (False, True):
        hyper = moved(make(network()))
        if compile_it:
            hyper.compile(backend="aot_eager")
        outputs = adapted(hyper)(q)
        gradients = torch.autograd.grad(F.cross_entropy(outputs, Y), list(hyper.parameters()))
        other = hyper.clone()
        other.load_state_dict({name: 1.1 * p for name, p in hyper.named_parameters()}, strict=False)
        other.adapt(F.cross_entropy(other(samples()[0]), Y))
        found.append((outputs, other(q), gradients))
        pickle.loads(pickle.dumps(hyper))
    torch.testing.assert_close(found[1], found[0])


@every_learner
def test_torch_compile_around_a_learner_gives_its_clones(make: Any) -> None:
    _, q = samples()
    hyper = make(network())
    torch.testing.assert_close(adapted(torch.compile(hyper, backend="eager"))(q), adapted(make(network()))(q))


# Export of an adapted clone


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf", "ignore:.*torch.jit")
@every_learner
def test_an_adapted_clone_is_traced_saved_and_loaded(make: Any) -> None:
    learner, (_, q) = adapted(moved(make(network()))).eval(), samples()
    with torch.no_grad():
        file = io.BytesIO()
        torch.jit.save(torch.jit.trace(learner.module, (q,)), file)
        file.seek(0)
        torch.testing.assert_close(torch.jit.load(file)(q[:5]), learner(q[:5]))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@every_learner
def test_a_learner_with_the_state_of_a_clone_is_exported(make: Any) -> None:
    """To a program that takes any number of queries."""
    learner, (_, q) = adapted(moved(make(network()))).eval(), samples()
    loaded = make(network()).eval()
    loaded.load_state_dict(learner.state_dict())
    with torch.no_grad():
        dynamic = ({0: torch.export.Dim("queries", min=2)},)
        program = torch.export.export(loaded.module, (q,), dynamic_shapes=dynamic)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        torch.testing.assert_close(torch.export.load(file).module()(q[:5]), learner(q[:5]))


@pytest.mark.filterwarnings("ignore")  # of the exporter
@every_learner
def test_a_learner_with_the_state_of_a_clone_is_exported_to_onnx(make: Any, tmp_path: Path) -> None:
    learner, (_, q) = adapted(moved(make(network()))).eval(), samples()
    loaded = make(network()).eval()
    loaded.load_state_dict(learner.state_dict())
    program = torch.onnx.export(loaded.module, (q,), dynamo=True)
    program.save(tmp_path / "task.onnx")
    reference = ReferenceEvaluator(str(tmp_path / "task.onnx"))
    (outputs,) = reference.run(None, {reference.input_names[0]: q.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(outputs), learner(q), rtol=1e-4, atol=1e-5)
