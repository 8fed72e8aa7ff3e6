"""A base in memory with its adapters in place, and fully tuned models beside it, on one device.

PEFT loads the adapters; which one is at work is switched by hand, because PEFT's `set_adapter` also walks every
parameter's requires_grad: 2.9 ms on a base whose decoding step takes 2.1 ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raytune_llm.job import InputError
from raytune_llm.models.adapter import load_tuned
from raytune_llm.models.base import Base
from raytune_llm.serving.engine import ServedModel
from raytune_llm.weights import check_folder

if TYPE_CHECKING:
    from peft import PeftModel


class Resident:
    """Not thread-safe: the engine holds its lock around each call and around the forward passes between two `use`."""

    def __init__(self, base: Base, device: str) -> None:
        self._base = base
        self._device = device
        self._model: Any = base.load().to(device).eval()
        self._peft: PeftModel | None = None
        self._layers: list[Any] = []
        self._adapters: dict[str, str] = {}
        self._whole: dict[str, Any] = {}
        self._known: set[str] = set()

    def add(self, served: ServedModel) -> None:
        """Load a model's files. Raises InputError, with nothing changed, when they are damaged or don't fit."""
        if served.id in self._known:
            raise InputError(f"{served.id} is loaded already")
        if served.folder is not None:
            check_folder(served.folder)
        if served.kind == "adapter":
            self._adapters[served.id] = self._load_adapter(served)
        elif served.kind == "model":
            assert served.folder is not None
            self._whole[served.id] = load_tuned(served.folder, self._base).to(self._device)
        self._known.add(served.id)

    def use(self, id: str) -> Any:
        """The transformers model that answers as `id`, until the next call."""
        if id in self._whole:
            return self._whole[id]
        adapter = self._adapters.get(id)
        for layer in self._layers:
            layer._disable_adapters = adapter is None
            layer._active_adapter = [] if adapter is None else [adapter]
        return self._model

    def _load_adapter(self, served: ServedModel) -> str:
        from peft import PeftConfig, PeftModel
        from peft.tuners.tuners_utils import BaseTunerLayer

        assert served.folder is not None
        folder = str(served.folder)
        config = PeftConfig.from_pretrained(folder)
        self._check_config(served.id, config)
        config.inference_mode = True
        name = f"adapter_{len(self._adapters)}"  # a version's name may hold dots, a module's may not
        try:
            if self._peft is None:
                self._peft = PeftModel(self._model, config, adapter_name=name)
            result = self._peft.load_adapter(folder, adapter_name=name, torch_device=self._device)
        except (RuntimeError, ValueError) as error:
            self._forget(name)
            raise InputError(
                f"{served.id} doesn't fit its base: {str(error).strip().splitlines()[-1].strip()}"
            ) from error
        if result.missing_keys or result.unexpected_keys:
            self._forget(name)
            wrong = [
                f"{len(keys)} {what} (e.g. {keys[0]})"
                for keys, what in ((result.missing_keys, "missing"), (result.unexpected_keys, "unexpected"))
                if keys
            ]
            raise InputError(
                f"{served.id} doesn't fit its base: weights {' and '.join(wrong)}; was it tuned from another base?"
            )
        self._peft.eval()
        self._layers = [module for module in self._model.modules() if isinstance(module, BaseTunerLayer)]
        return name

    def _check_config(self, id: str, config: Any) -> None:
        if str(config.peft_type.value) != "LORA":
            raise InputError(f"{id} is a PEFT {config.peft_type.value} adapter; the local engine serves LORA")
        if config.modules_to_save:
            raise InputError(
                f"{id} replaces whole modules ({', '.join(config.modules_to_save)}); the local engine serves LoRA alone"
            )

    def _forget(self, name: str) -> None:
        if self._peft is not None and name in self._peft.peft_config:
            self._peft.delete_adapter(name)
