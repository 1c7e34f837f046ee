"""What is wrapped around a model from outside: recomputation of activations, compilation.

The model knows of neither, and its state dict keeps its names. Apply checkpointing first, then compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch._dynamo.config as dynamo_config
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from dgsgpt.model import GPT, Block
from dgsgpt.model.moe import Experts, Multiply, grouped_matmul

Mode = Literal["none", "full", "selective"]
Forward = Callable[..., Any]

# Routing is never recomputed: a score that ties, or a kernel that rounds otherwise, would choose other experts
# than the forward pass did, and the gradient would be that of another network.
_ROUTING = frozenset({torch.ops.aten.topk.default})
_COSTLY = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten._grouped_mm.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    }
)


def apply_gradient_checkpointing(model: GPT, mode: Mode) -> None:
    """Keep fewer activations of each block and recompute them in the backward pass (Chen et al. 2016).

    `full` keeps only what enters a block, `selective` also the results of matrix products and attention, `none`
    undoes either. Dropout repeats its draws and experts their routing, so gradients do not change.
    """
    for block in model.blocks:
        assert isinstance(block, Block)
        block.__dict__.pop("forward", None)
        saved = _saved_operators(block, mode)
        if saved is not None:
            # The method is replaced, not the module: names in the state dict stay, and the block deep-copies.
            block.forward = partial(_recomputed, block.forward, saved)  # type: ignore[method-assign]


def _saved_operators(block: Block, mode: Mode) -> frozenset[Any] | None:
    """The operators whose results `mode` keeps; None where it keeps all."""
    if mode == "none":
        return None
    if mode == "selective":
        return _COSTLY | _ROUTING
    routed = any(name.endswith("router") for name, _ in block.named_modules())
    return _ROUTING if routed else frozenset()


def _recomputed(forward: Callable[..., Any], saved: frozenset[Any], x: Tensor, *rest: Any) -> Any:
    """Run a block's `forward`, keeping of its inner tensors only what the operators `saved` gave."""
    if not torch.is_grad_enabled():
        return forward(x, *rest)
    if not saved:  # a dense block in full mode is spared the policy, which is asked at every operator
        return checkpoint(forward, x, *rest, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, partial(_decide, saved))
    return checkpoint(forward, x, *rest, use_reentrant=False, context_fn=contexts)


def _decide(saved: frozenset[Any], context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in saved else CheckpointPolicy.PREFER_RECOMPUTE


def compile_blocks(model: GPT) -> str | None:
    """Compile each block's training pass in place; gives None, or in one line why the blocks stay as they are.

    Blocks of one kind share one compilation. Evaluation and generation stay eager: they would have to be compiled
    once more each, with a cache for every length, and earn nothing back.
    """
    reason = compiler_problem(next(model.parameters()).device)
    if reason is None:
        eager = torch.compiler.disable(grouped_matmul)
        for module in model.blocks.modules():
            if isinstance(module, Experts) and module.multiply is grouped_matmul:
                module.multiply = partial(_grouped_matmul_compiled, eager)
        dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, len(model.blocks))  # as many kinds at most
        for block in model.blocks:
            assert isinstance(block, Block)
            block.forward = partial(_compiled_in_training, block, block.forward, torch.compile(block.forward))  # type: ignore[method-assign]
    return reason


def uncompile_blocks(model: GPT) -> None:
    """Undo `compile_blocks`, and gradient checkpointing with it: that must be applied again."""
    for module in model.blocks.modules():
        if isinstance(module, Experts) and isinstance(module.multiply, partial):
            module.multiply = grouped_matmul
    apply_gradient_checkpointing(model, "none")


def _compiled_in_training(block: Block, eager: Forward, compiled: Forward, *inputs: Any) -> Any:
    return (compiled if block.training and torch.is_grad_enabled() else eager)(*inputs)


def _grouped_matmul_compiled(eager: Multiply, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The experts' product in a compiled block: the compiler knows grouped_mm in bfloat16 only."""
    return (grouped_matmul if x.dtype == torch.bfloat16 else eager)(x, weight, ends)


def compiler_problem(device: torch.device) -> str | None:
    """What the compiler lacks on `device`, found by compiling one addition: a run must not die in its first step."""
    try:
        torch.compile(_add_one)(torch.zeros(8, device=device))
    except (RuntimeError, ImportError, OSError) as e:  # a missing C++ compiler, Triton or header
        return (
            f"torch.compile does not work on this {device.type}: {(str(e).strip() or type(e).__name__).splitlines()[0]}"
        )
    return None


def _add_one(x: Tensor) -> Tensor:
    return x + 1
