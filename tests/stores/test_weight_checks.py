"""Folders that may be published: safetensors only, whole and finite."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from raytune_llm.errors import InputError
from raytune_llm.stores.weight_checks import CHUNK_BYTES, check_file, check_folder, count_nonfinite

BF16 = {
    "one": 0x3F80,
    "largest": 0x7F7F,
    "smallest": 0x0001,
    "-0": 0x8000,
    "inf": 0x7F80,
    "-inf": 0xFF80,
    "nan": 0x7FC1,
}


def adapter(folder: Path, tensors: dict[str, np.ndarray] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    save_file(tensors or {"lora_A": np.ones((4, 2), np.float32)}, folder / "adapter_model.safetensors")
    return folder


def raw_file(path: Path, dtype: str, content: bytes) -> Path:
    size = {"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}[dtype]
    header = {"lora_B": {"dtype": dtype, "shape": [len(content) // size], "data_offsets": [0, len(content)]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


def test_an_adapter_and_a_model_pass(tmp_path: Path) -> None:
    check_folder(adapter(tmp_path / "adapter"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    save_file(
        {"w": np.ones(3, np.float16), "ids": np.ones(3, np.int64)}, tmp_path / "model" / "model-00001.safetensors"
    )
    check_folder(tmp_path / "model")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "x.PTH", "deep/x.pkl"])
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = adapter(tmp_path / "a")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"holds {name}: pickle files run code"):
        check_folder(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"neither adapter_config.json .*it has \['config.json'\]"):
        check_folder(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        check_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_weights_are_refused_by_tensor(tmp_path: Path, dtype: type, value: float) -> None:
    bad = np.zeros((2, 3), dtype)
    bad[1, 2] = value
    tensors = {"good": np.full(3, np.finfo(dtype).max, dtype), "layers.0.lora_B": bad}
    folder = adapter(tmp_path / "a", tensors)
    with pytest.raises(InputError, match=r"tensor layers.0.lora_B holds 1 values that are NaN or infinite"):
        check_folder(folder)


@pytest.mark.parametrize("name", BF16)
def test_bf16_is_checked_by_its_bits(tmp_path: Path, name: str) -> None:
    path = raw_file(tmp_path / "w.safetensors", "BF16", np.array([0x3F80, BF16[name]], "<u2").tobytes())
    if "inf" in name or "nan" in name:
        with pytest.raises(InputError, match="tensor lora_B holds 1 values"):
            check_file(path)
    else:
        check_file(path)


@pytest.mark.parametrize("torch_name", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16"])
def test_every_bit_pattern_agrees_with_torch(torch_name: str) -> None:
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, torch_name)
    name = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "bfloat16": "BF16", "float16": "F16"}[torch_name]
    patterns = np.arange(256, dtype=np.uint8) if dtype.itemsize == 1 else np.arange(1 << 16, dtype=np.uint16)
    values = torch.from_numpy(patterns.view(np.int8 if dtype.itemsize == 1 else np.int16)).view(dtype).float()
    assert count_nonfinite(patterns.tobytes(), name, "here") == int((~torch.isfinite(values)).sum())


def test_a_type_that_cannot_be_checked_is_refused(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "w.safetensors", "F8_E8M0", b"\x01\x02")
    with pytest.raises(InputError, match="tensor lora_B has dtype F8_E8M0, which can't be checked"):
        check_file(path)


def test_the_last_value_of_a_tensor_longer_than_a_chunk_is_checked(tmp_path: Path) -> None:
    values = np.zeros(CHUNK_BYTES // 4 + 5, np.float32)
    save_file({"long": values}, tmp_path / "good.safetensors")
    check_file(tmp_path / "good.safetensors")
    values[-1] = np.nan
    save_file({"long": values}, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="tensor long holds 1 values"):
        check_file(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("kept_bytes", [0, 5, 40, -1])
def test_truncated_files_are_refused(tmp_path: Path, kept_bytes: int) -> None:
    path = adapter(tmp_path / "a") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(InputError, match=r"adapter_model.safetensors is not a whole safetensors file"):
        check_folder(tmp_path / "a")


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="holds no tensor"):
        check_file(tmp_path / "w.safetensors")
