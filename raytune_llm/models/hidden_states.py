"""The hidden states of a student that are compared with its teacher's, and the projection that a wider teacher needs.

A model that carries a HiddenStateReader returns them with its outputs (models/forward.py). Where the widths differ, the
reader has a linear map to the teacher's width for each of its layers (Romero et al., 2015, arXiv 1412.6550), which is
trained with the model but is not stored with the tuned model: it has no use after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raytune_llm.compat import exclude_from_saving

NAME = "feature_reader"


class HiddenStateReader(nn.Module):
    """Hidden states of some layers, mapped to another width where that is given."""

    def __init__(self, layers: Sequence[int], width: int, other_width: int | None) -> None:
        super().__init__()
        self.layers = tuple(layers)
        maps = [nn.Linear(width, other_width) for _ in layers] if other_width not in (None, width) else []
        self.maps = nn.ModuleList(maps)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """(K, layers, width) from each layer's states, (K, width)."""
        if not self.maps:
            return torch.stack(list(states), 1)
        return torch.stack(
            [to(state.to(next(to.parameters()).dtype)) for to, state in zip(self.maps, states, strict=True)], 1
        )


def attach_reader(model: Any, layers: Sequence[int], *, other_width: int | None, seed: int) -> dict[str, Tensor]:
    """Make a transformers model (the one inside a PeftModel) return its hidden states.

    Args:
        layers: 0 = embeddings, n = after the n-th block, negative from the end.
        other_width: the teacher's; None or the model's own = no projection.
        seed: of the projection's first weights.

    Returns:
        The projection's weights, which a checkpoint must keep in addition to the model's.
    """
    parameter: Tensor = next(model.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reader = HiddenStateReader(layers, model.config.get_text_config().hidden_size, other_width)
    exact = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    reader.to(parameter.device, exact)
    model.add_module(NAME, reader)
    own: dict[str, Tensor] = {f"{NAME}.{name}": weight for name, weight in reader.named_parameters()}
    exclude_from_saving(model, own)
    return own


def reader(model: Any) -> HiddenStateReader | None:
    """The reader of a transformers model, if it carries one."""
    return getattr(model, NAME, None)
