"""AdamW and gradient clipping for a table whose rows are independent trials.

AdamW: Loshchilov and Hutter, 2019, arXiv 1711.05101, by torch's fused kernel: one pass over a row, its scalars in fp64
from the host, so bias corrections and rates of different rows don't mix. Clipping is torch.nn.utils.clip_grad_norm_
of each row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from raytune_llm.training.packed.hyperparameters import Hyperparameters


class RowAdamW:
    """First and second moments of theta (N, P)."""

    def __init__(self, theta: Tensor) -> None:
        self.m, self.v = torch.zeros_like(theta), torch.zeros_like(theta)
        # torch's kernel counts steps in a tensor of its own.
        self._steps = [torch.zeros((), device=theta.device) for _ in range(len(theta))]

    @torch.no_grad()
    def step(self, theta: Tensor, grad: Tensor, specs: Sequence[Hyperparameters], steps: Sequence[int]) -> Tensor:
        """Clip and update rows 0..len(specs); `steps` are the steps each has done before.

        grad is clipped in place. Returns each row's gradient norm before clipping, (len(specs),).
        """
        count = len(specs)
        norms = torch.linalg.vector_norm(grad[:count], dim=1)
        limits = torch.tensor([spec.max_grad_norm for spec in specs], dtype=torch.float64)
        limits = limits.to(norms.device, non_blocking=True)
        factors = (limits / (norms.double() + 1e-6)).clamp(max=1.0).to(grad.dtype)
        for row, (spec, step) in enumerate(zip(specs, steps, strict=True)):
            adamw(
                [theta[row]],
                [grad[row].mul_(factors[row])],
                [self.m[row]],
                [self.v[row]],
                [],
                [self._steps[row].fill_(step)],
                fused=True,
                amsgrad=False,
                beta1=spec.betas[0],
                beta2=spec.betas[1],
                lr=spec.rate(step),
                weight_decay=spec.weight_decay,
                eps=spec.eps,
                maximize=False,
            )
        return norms

    def clear(self, row: int) -> None:
        self.m[row].zero_()
        self.v[row].zero_()
