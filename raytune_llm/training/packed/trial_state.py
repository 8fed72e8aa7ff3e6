"""A trial's state in a checkpoint: one safetensors file, from which any pack on the same base resumes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from raytune_llm.models.lora_weights import Weights
from raytune_llm.training.config import Schedule
from raytune_llm.training.packed.hyperparameters import Hyperparameters

STATE_FILE = "slot.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrialState:
    """A trial between two steps: all that is needed to resume it, in any pack on the same base, without a trace."""

    spec: Hyperparameters
    step: int
    """Optimizer steps done. The data position follows from it: every step takes batch_size examples."""
    tensors: dict[str, Tensor]
    """`{theta,m,v}.{a,b}.{module}` of the spec's own rank, `{theta,m,v}.head.{name}` of what is trained in addition,
    and `generator`, the dropout stream's state."""

    def adapter(self, key: str, names: Sequence[str]) -> Weights:
        """theta, m or v of the adapter on these modules. Raises ValueError when it was made for other modules."""
        missing = [name for name in names if f"{key}.a.{name}" not in self.tensors]
        if missing:
            raise ValueError(
                f"the saved trial lacks modules {missing[:3]}; it was made for another base or other targets"
            )
        return {name: (self.tensors[f"{key}.a.{name}"], self.tensors[f"{key}.b.{name}"]) for name in names}

    def heads(self, key: str, names: Iterable[str]) -> dict[str, Tensor]:
        """theta, m or v of the heads trained in addition to the adapter. Raises ValueError when one is missing."""
        missing = [name for name in names if f"{key}.head.{name}" not in self.tensors]
        if missing:
            raise ValueError(f"the saved trial has no heads {missing}; it was trained by another method")
        return {name: self.tensors[f"{key}.head.{name}"] for name in names}

    def save(self, folder: str | Path) -> None:
        """Write one safetensors file."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        spec = asdict(self.spec) | {"schedule": self.spec.schedule.value}
        partial = folder / (STATE_FILE + ".partial")
        save_file(self.tensors, partial, metadata={"spec": json.dumps(spec), "step": str(self.step)})
        partial.replace(folder / STATE_FILE)

    @classmethod
    def load(cls, folder: str | Path) -> TrialState:
        from safetensors import safe_open

        with safe_open(Path(folder) / STATE_FILE, framework="pt") as file:
            about: dict[str, str] = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        spec: dict[str, Any] = json.loads(about["spec"])
        spec |= {key: tuple(spec[key]) for key in ("betas", "weights") if key in spec}
        spec |= {"schedule": Schedule(spec["schedule"])}
        return cls(spec=Hyperparameters(**spec), step=int(about["step"]), tensors=tensors)
