"""Is a folder an adapter or model that may be published or served? Safetensors only, whole, and every weight finite.

The files are read without torch and in chunks, so that a model larger than memory can be checked. Left out: whether
the weights fit a base (models/ and serving/ know), and quality.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from raytune_llm.errors import InputError

PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
CHUNK_BYTES = 1 << 24
INTEGERS = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
EXPONENT_BITS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("<u1", 0x7C),
    "F8_E4M3": ("<u1", 0x7F),
}
"""Unsigned view of each float type and the bits that are all 1 in NaN and ±Inf, and in no other value."""


def check_folder(folder: Path) -> None:
    """Raise InputError unless the folder holds a PEFT adapter or a transformers model in sound safetensors files."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; allowed: a folder with an adapter or a model in it")
    pickles = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in PICKLES
    )
    if pickles:
        raise InputError(
            f"{folder} holds {', '.join(pickles)}: pickle files run code when they are loaded and are refused; "
            "save the weights as safetensors and leave trainer state out"
        )
    is_adapter = (folder / "adapter_config.json").is_file() and (folder / "adapter_model.safetensors").is_file()
    weights = sorted(folder.rglob("*.safetensors"))
    if not is_adapter and not ((folder / "config.json").is_file() and weights):
        raise InputError(
            f"{folder} holds neither adapter_config.json + adapter_model.safetensors (an adapter) nor config.json "
            f"+ *.safetensors (a model); it has {sorted(path.name for path in folder.iterdir())}"
        )
    for path in weights:
        check_file(path)


def check_file(path: Path) -> None:
    """Raise InputError when a safetensors file is damaged, holds no tensor, or holds NaN or Inf (naming the
    tensor)."""
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); save it again") from error
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        if not tensors:
            raise InputError(f"{path} holds no tensor; save it again from the tuned model")
        for name, entry in tensors.items():
            begin, end = entry["data_offsets"]
            bad = 0
            for offset in range(begin, end, CHUNK_BYTES):
                file.seek(8 + header_bytes + offset)
                bad += count_nonfinite(
                    file.read(min(CHUNK_BYTES, end - offset)), entry["dtype"], f"{path}: tensor {name}"
                )
            if bad:
                raise InputError(
                    f"{path}: tensor {name} holds {bad} values that are NaN or infinite; the training diverged: "
                    "try a smaller tuning.learning_rate_multiplier or tuning.max_grad_norm"
                )


def count_nonfinite(content: bytes, dtype: str, where: str) -> int:
    """How many values of these little-endian bytes are NaN or ±Inf. Raises InputError for a type that can't be
    checked."""
    if dtype in INTEGERS:
        return 0
    if dtype not in EXPONENT_BITS:
        allowed = sorted((*EXPONENT_BITS, *INTEGERS))
        raise InputError(f"{where} has dtype {dtype}, which can't be checked for NaN; allowed: {allowed}")
    view, ones = EXPONENT_BITS[dtype]
    bits = np.frombuffer(content, dtype=view) & np.array(ones, dtype=view)
    return int(np.count_nonzero(bits == ones))
