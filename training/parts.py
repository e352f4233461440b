"""A batch that does not fit the memory at once: through the trunk in parts, and everything behind it whole."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def in_parts(module: nn.Module, batch: Tensor, parts: int) -> Tensor:
    """What `module` makes of a batch (N, ...), its gradients included, with the memory of a part of it.

    The gradient is accumulated over the parts: each forgets what lies between its input and its output, and computes it
    again when its gradient is due (Chen et al., "Training deep nets with sublinear memory cost", 2016), which costs one
    more forward pass. Losses that compare the patches of a batch, as contrast and relations do, so see the whole of it;
    accumulated over batches of their own, they would see nothing but each part. Only batch normalisation takes the
    statistics of each part, as it takes those of each device.

    Args:
        module: rows in, rows out; each row for itself but for batch normalisation.
        batch: its rows.
        parts: how many; 1 is a plain call.
    """
    if parts == 1 or not torch.is_grad_enabled():
        whole: Tensor = module(batch)
        return whole

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _running_statistics_kept(module)

    made = [checkpoint(module, part, use_reentrant=False, context_fn=contexts) for part in batch.chunk(parts)]
    return torch.cat(made)


@contextmanager
def _running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """The second pass over a part normalises as the first did, and is not counted into the running statistics again."""
    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
