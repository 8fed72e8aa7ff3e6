"""The arguments of transformers' from_pretrained: those that users pass on in model.from_pretrained, and the device."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from raytune_llm.errors import InputError, first_line

PASSED_ON = ("quantization_config", "experts_implementation", "use_kernels")
"""What model.from_pretrained may hold."""
KEYS = {
    "revision": "model.revision",
    "dtype": "model.dtype",
    "torch_dtype": "model.dtype",
    "attn_implementation": "model.attention",
    "device_map": "scaling.use_gpu: a base is loaded onto the one device that its worker has",
}
"""Arguments with a key of their own."""


def check_load_options(passed: Mapping[str, Any]) -> None:
    """Refuse arguments that model.from_pretrained can't hold. Raises InputError."""
    for name, value in passed.items():
        where = f"model.from_pretrained.{name}={value} is not allowed"
        if name in KEYS:
            raise InputError(f"{where}; set {KEYS[name]}")
        if name not in PASSED_ON:
            raise InputError(f"{where}; allowed: {', '.join(PASSED_ON)}")
        if name == "quantization_config" and not isinstance(value, Mapping):
            raise InputError(f"{where}; allowed: a mapping, like {{load_in_4bit: true}}")


def check_quantization(passed: Mapping[str, Any]) -> None:
    """Refuse a quantisation that transformers doesn't know, or whose package is missing. Raises InputError."""
    config = passed.get("quantization_config")
    if config is None:
        return
    from transformers.quantizers.auto import AutoQuantizationConfig

    where = f"model.from_pretrained.quantization_config={dict(config)}"
    try:
        kind = AutoQuantizationConfig.from_dict(dict(config))
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"{where} is not allowed: {first_line(error)}") from error
    if kind.quant_method == "bitsandbytes" and find_spec("bitsandbytes") is None:
        raise InputError(f"{where} needs a package that isn't installed: pip install bitsandbytes")


def device_map(device: str) -> dict[str, Any]:
    """from_pretrained's argument that puts a whole model onto a device; none for the CPU, where it lands anyway. A GPU
    is named by its index: a trainer takes any other name than its own device's for a model split over several."""
    import torch

    if device == "cpu":
        return {}
    place = torch.device(device)
    index = torch.cuda.current_device() if place.type == "cuda" and place.index is None else place.index
    return {"device_map": {"": torch.device(place.type, index)}}
