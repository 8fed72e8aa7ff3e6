"""Whether a base and one trial on it fit a GPU, asked before anything is loaded there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raytune_llm.errors import InputError

if TYPE_CHECKING:
    from raytune_llm.training.config import TrialConfig

FIXED_BYTES = 1 << 30
"""Of a GPU's memory, for workspaces and the activations of the shortest step."""
FOUR_BIT_BYTES = 0.6
"""Per parameter of a 4-bit base, with its scales and the layers that aren't quantised."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a base and one trial on it take of a GPU."""

    base: str
    """Its name or path."""
    num_parameters: int
    dtype: str
    """Of its weights: bfloat16, float32 …"""
    bytes_per_parameter: int
    num_trained: int
    """Weights of the trial; each takes 16 bytes: itself, its gradient and two moments, in fp32."""
    adapter_size: int | None
    """None when all of the base is trained."""

    @property
    def base_bytes(self) -> int:
        """Of the frozen weights; none where they themselves are trained."""
        return 0 if self.adapter_size is None else self.num_parameters * self.bytes_per_parameter

    @property
    def trial_bytes(self) -> int:
        """What the trial adds."""
        return 16 * self.num_trained

    @property
    def total_bytes(self) -> int:
        return self.base_bytes + self.trial_bytes + FIXED_BYTES

    def check(self, free_bytes: int) -> None:
        """Raise InputError naming the sizes and what to use instead, unless it fits."""
        if self.total_bytes <= free_bytes:
            return
        size = f"{self.num_parameters / 1e9:.2f} B parameters"
        if self.adapter_size is None:
            what = f"full tuning of its {size} takes {_gb(self.trial_bytes)}"
        else:
            what = f"its {size} take {_gb(self.base_bytes)} in {self.dtype}, a trial of tuning.adapter_size="
            what += f"{self.adapter_size} {_gb(self.trial_bytes)} more"
        raise InputError(
            f"model.name_or_path={self.base} doesn't fit: {what}, and the GPU has {_gb(free_bytes)} free; use "
            f"{' or '.join(self._remedies(free_bytes))}"
        )

    def _remedies(self, free_bytes: int) -> list[str]:
        """What would fit, the smallest change first."""
        if self.adapter_size is None:
            return ["adapter=lora", f"a GPU with {_gb(self.total_bytes)} free"]
        others = self.trial_bytes + FIXED_BYTES
        halved, quantized = 2 * self.num_parameters, int(FOUR_BIT_BYTES * self.num_parameters)
        found = []
        if self.base_bytes + self.trial_bytes / self.adapter_size + FIXED_BYTES <= free_bytes:
            found.append("a smaller tuning.adapter_size")
        if self.bytes_per_parameter > 2 and halved + others <= free_bytes:
            found.append(f"model.dtype=bfloat16 ({_gb(halved)})")
        if quantized + others <= free_bytes:
            option = "model.from_pretrained.quantization_config.load_in_4bit=true"
            found.append(f"{option} with sweep/backend=ray_train (about {_gb(quantized)})")
        return [*found, f"a GPU with {_gb(self.total_bytes)} free"]


def check_fits(config: TrialConfig, *, lora_rank: int, device: str) -> None:
    """Raise InputError when a trial's base, with one trial of this rank on it, exceeds what a GPU has free. The CPU and
    quantised bases aren't checked."""
    import torch

    from raytune_llm.models.memory import free_bytes

    if torch.device(device).type == "cuda" and not config.model.is_quantized:
        footprint(config, lora_rank=lora_rank, device=device).check(free_bytes(torch.device(device)))


def footprint(config: TrialConfig, *, lora_rank: int, device: str) -> Footprint:
    """What a trial of this rank takes on a device, read from a skeleton of its base."""
    from raytune_llm.models.base import skeleton
    from raytune_llm.models.lora_folder import target_names

    num_parameters, dtype = config.model.facts.num_parameters, config.model.torch_dtype(device)
    model = skeleton(config.model, score=config.method.needs.score)
    lora = config.adapter.config(model, lora_rank=lora_rank)
    names = [] if lora is None else target_names(lora, model)
    sides = sum(sum(model.get_submodule(name).weight.shape) for name in names)
    return Footprint(
        base=config.model.name_or_path,
        num_parameters=num_parameters,
        dtype=str(dtype).removeprefix("torch."),
        bytes_per_parameter=dtype.itemsize,
        num_trained=num_parameters if lora is None else lora_rank * sides,
        adapter_size=None if lora is None else lora_rank,
    )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
