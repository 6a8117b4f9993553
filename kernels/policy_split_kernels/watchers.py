"""Who sees a call beside the kernel that computes it: graphs that are traced, transforms, modes, the profiler."""

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)


def transformed() -> bool:
    """Whether a transform of torch.func is at work: tensors then stand for others, which it batches or follows."""
    return torch._C._are_functorch_transforms_active()


def can_ask(x: Tensor) -> bool:
    """Whether the host may look at the values of x, and at no cost: on a CPU, where nobody records what is asked."""
    return (
        x.is_cpu
        and type(x) in _PLAIN
        and not torch.compiler.is_compiling()
        and not transformed()
        and not torch._C._is_tracing()
    )


def nobody_else(x: Tensor) -> bool:
    """Whether an operation on x may be computed without the dispatcher, which would find nothing but its kernel."""
    return (
        type(x) in _PLAIN
        and not torch.compiler.is_compiling()
        and not transformed()
        and not torch._C._is_tracing()
        and not torch._C._autograd._profiler_enabled()
        and not torch._C._len_torch_function_stack()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._ops._len_torch_dispatch_stack_pre_dispatch()
    )
