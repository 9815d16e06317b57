"""Which models a learner takes, and what its clones share with it."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import InputError
from ..functional.norm import EpisodicBatchNorm

__all__ = ["check_plain", "is_running_average"]


def check_plain(model: nn.Module) -> None:
    """Raise :class:`InputError` for a model with a part whose copies would compute with the tensors of the original."""
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        what = f"the network itself, got {type(module).__name__}" + (f" as {name!r}" if name else "")
        if kinds & {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "FSDPModule"}:
            raise InputError(
                f"expected {what}, which averages no gradients of a learner's clones over processes or devices; "
                "pass what it wraps (.module), wrap neither that nor the learner, and average the gradients after "
                "backward(), or run `torchrun -m l2l_hyper compare`: docs/distributed.md shows both"
            )
        if "OptimizedModule" in kinds or getattr(module, "_compiled_call_impl", None) is not None:
            raise InputError(
                f"expected {what} compiled, which would compute with its own weights in place of a task's; pass the "
                "network as it is without torch.compile, and compile the learner instead: learner.compile()"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"expected {what}, a TorchScript module, whose weights no task's can replace; pass the network that it "
                "was made from, and trace an adapted clone instead: torch.jit.trace(learner.module, query)"
            )


def is_running_average(module: nn.Module, name: str) -> bool:
    """Whether clones share a buffer: the running averages of normalization layers are those of all tasks."""
    averages = ("running_mean", "running_var", "num_batches_tracked")
    ours = isinstance(module, EpisodicBatchNorm) and module.mode == "running"
    return name in averages and (ours or isinstance(module, nn.modules.batchnorm._NormBase))
