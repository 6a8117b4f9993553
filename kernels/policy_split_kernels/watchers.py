"""Who sees a call beside the kernel that computes it: graphs that are traced, derivatives, modes, the profiler."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_PLAIN = (Tensor, torch.nn.Parameter)


def in_transform() -> bool:
    """Whether a transform of torch.func is at work: tensors then stand for others, which it batches or follows."""
    return torch._C._are_functorch_transforms_active()


def is_followed(*tensors: Any) -> bool:
    """Whether a derivative in one of these is asked for; what is no tensor is not followed."""
    if has_tangent(*tensors):
        return True
    if torch.is_grad_enabled():
        for x in tensors:
            if isinstance(x, Tensor) and x.requires_grad:
                return True
    return False


def has_tangent(*tensors: Any) -> bool:
    """Whether forward-mode differentiation is to follow one of these."""
    if forward_ad._current_level < 0:
        return False
    return any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def check_unfollowed(function: str, instead: str, *inputs: Tensor | None, temperature: float | Tensor) -> None:
    """Raises NotImplementedError for a derivative of these inputs or of the temperature that a function cannot have."""
    if in_transform() or has_tangent(*inputs):
        raise NotImplementedError(
            f"{function} is differentiated by backward alone, not by forward-mode AD or the transforms of torch.func; "
            f"for them, {instead}"
        )
    if is_followed(temperature):
        raise NotImplementedError(
            f"temperature requires grad, and {function} has no gradient for it: detach it, or {instead}"
        )


def can_ask(x: Tensor) -> bool:
    """Whether the host may look at the values of x, and at no cost: on a CPU, where nobody records what is asked."""
    return (
        x.is_cpu
        and type(x) in _PLAIN
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and not (in_transform() and _batched(x))
    )


def lies_in_memory(x: Tensor) -> bool:
    """Whether x is what a kernel reads there: no negated view, no zeros that have no memory."""
    # a compiled graph leaves that to the dispatcher, when it runs
    return torch.compiler.is_compiling() or not (x.is_neg() or x._is_zerotensor())


def in_memory(x: Tensor) -> Tensor:
    """x, or a copy that lies in memory; PyTorch's own copy of zeros is one that is expanded, which no kernel reads."""
    if lies_in_memory(x):
        return x
    return torch.zeros(x.shape, dtype=x.dtype, device=x.device) if x._is_zerotensor() else x.resolve_neg()


def _batched(x: Tensor) -> bool:
    """Whether x stands for many tensors, of which vmap shows one."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return False


def nobody_else(*arguments: Any) -> bool:
    """Whether an operation may be computed without the dispatcher, which would find nothing but its kernel."""
    if (
        torch.compiler.is_compiling()
        or in_transform()
        or torch._C._is_tracing()
        or torch._C._autograd._profiler_enabled()
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or torch._ops._len_torch_dispatch_stack_pre_dispatch()
    ):
        return False
    for x in arguments:  # each costs: no function is called here
        if isinstance(x, Tensor) and (type(x) not in _PLAIN or x.is_neg() or x._is_zerotensor()):
            return False
    return True
