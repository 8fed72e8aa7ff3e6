"""The home of loading tuned models from their folders: PEFT adapters on a base, or whole models."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytune_llm.models.base import Base, auto_class
from raytune_llm.stores.storage import open_storage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(base: Base, location: str | None, *, score: bool = False, use_gpu: bool) -> Any:
    """The base, or the tuned model at a folder or URI, in eval mode on its device; with `score`, as a reward model."""
    device = "cuda" if use_gpu else "cpu"
    if location is None:
        return base.load(score=score, device=device).eval()
    with fetched(location) as folder:
        return load_tuned(folder, base, score=score, device=device)


def load_tuned(
    folder: str | Path, base: Base, model: PreTrainedModel | None = None, *, score: bool = False, device: str = "cpu"
) -> Any:
    """The tuned model of a registry folder, in eval mode on a device, cpu or cuda: PEFT's adapter on the base (on
    `model`, where that is, if it is given; it is changed in place), or the fully tuned model itself; with `score`, a
    reward model."""
    folder = Path(folder)
    if (folder / "adapter_config.json").is_file():
        from peft import PeftModel

        base_model = model if model is not None else base.load(score=score, device=device)
        return PeftModel.from_pretrained(base_model, str(folder)).eval()
    auto = auto_class(base.facts.is_encoder_decoder, score=score)
    loaded = auto.from_pretrained(folder, **base.weight_options(device))
    if not score:
        loaded.generation_config.do_sample = False
    return loaded.eval()


def load_trainable(folder: str | Path, model: PreTrainedModel) -> Any:
    """The model with the adapter of a folder on it, to be trained further, in fp32."""
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=True, autocast_adapter_dtype=False)
    raise_precision(adapted)
    return adapted


def raise_precision(adapted: Any) -> None:
    """Trainable parameters in fp32 (fp64), which the optimizer needs."""
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype.itemsize < 8:
            parameter.data = parameter.data.float()


@contextmanager
def fetched(location: str) -> Iterator[Path]:
    """All files of a folder or URI in a local folder, for as long as the context lasts."""
    storage = open_storage(location)
    with tempfile.TemporaryDirectory(prefix="fetched-") as scratch:
        for name in storage.files(""):
            target = Path(scratch, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            storage.download(name, target)
        yield Path(scratch)


def num_adapted_modules(model: Any, adapter: str) -> int:
    """Modules of a model in which PEFT has an adapter of that name."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return sum(adapter in layer.lora_A or adapter in layer.lora_embedding_A for layer in layers)
