"""What a base and a trial take of a GPU, and what is recommended when it is too much."""

import dataclasses

import pytest
import torch
from worlds import write_base

from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load
from raytune_llm.training.fits import FIXED_BYTES, Footprint, check_fits, footprint

EIGHT_B = Footprint(
    base="org/8b",
    num_parameters=8_000_000_000,
    dtype="float32",
    bytes_per_parameter=4,
    num_trained=40_000_000,
    adapter_size=16,
)
HALF = dataclasses.replace(EIGHT_B, dtype="bfloat16", bytes_per_parameter=2)
LARGE = dataclasses.replace(HALF, num_trained=320_000_000, adapter_size=128)
FULL = dataclasses.replace(HALF, num_trained=8_000_000_000, adapter_size=None)
GB = 1_000_000_000


def refused(found, free_bytes):
    with pytest.raises(InputError) as error:
        found.check(free_bytes)
    return str(error.value)


def test_what_fits_is_not_refused():
    assert EIGHT_B.total_bytes == 32 * GB + 640_000_000 + FIXED_BYTES
    EIGHT_B.check(EIGHT_B.total_bytes)
    with pytest.raises(InputError):
        EIGHT_B.check(EIGHT_B.total_bytes - 1)
    assert FULL.total_bytes == 128 * GB + FIXED_BYTES
    HALF.check(24 * GB)


def test_the_message_has_sizes_and_what_would_fit():
    assert refused(EIGHT_B, 24 * GB) == (
        "model.name_or_path=org/8b doesn't fit: its 8.00 B parameters take 32.0 GB in float32, a trial of "
        "tuning.adapter_size=16 0.6 GB more, and the GPU has 24.0 GB free; use model.dtype=bfloat16 (16.0 GB) or "
        "model.from_pretrained.quantization_config.load_in_4bit=true with sweep/backend=ray_train (about 4.8 GB) or a "
        "GPU with 33.7 GB free"
    )


@pytest.mark.parametrize(
    ("found", "free", "remedies"),
    [
        (LARGE, 22, ["a smaller tuning.adapter_size", "load_in_4bit=true", "a GPU with 22.2 GB free"]),
        (HALF, 16, ["load_in_4bit=true", "a GPU with 17.7 GB free"]),
        (HALF, 5, ["a GPU with 17.7 GB free"]),
        (FULL, 80, ["full tuning of its 8.00 B parameters takes 128.0 GB", "adapter=lora", "a GPU with 129.1 GB free"]),
    ],
)
def test_only_what_would_fit_is_recommended(found, free, remedies):
    message = refused(found, free * GB)
    assert all(remedy in message for remedy in remedies)
    every = {"bfloat16 (", "a smaller tuning", "load_in_4bit", "adapter=lora", "a GPU with"}
    assert sum(option in message for option in every) == len([r for r in remedies if "full tuning" not in r])


@pytest.mark.parametrize("shape", ["llama", "t5"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_it_counts_the_weights_that_are_made(tmp_path, shape, adapter):
    job = load(
        "train", [f"model.name_or_path={write_base(tmp_path, shape)}", "data.train=x.jsonl", f"adapter={adapter}"]
    )
    found = footprint(job.trial_config(), lora_rank=4, device="cpu")
    model = job.adapter.apply(job.model.load(), lora_rank=4, seed=0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert (found.num_trained, found.dtype, found.bytes_per_parameter) == (trained, "float32", 4)
    assert found.base_bytes == (0 if adapter == "full" else 4 * (sum(p.numel() for p in model.parameters()) - trained))


def test_a_gpu_is_asked_before_anything_is_loaded_and_a_cpu_is_not(tmp_path, monkeypatch):
    from raytune_llm.data.examples import Examples
    from raytune_llm.training.packed.trials import PackedTrials
    from raytune_llm.training.trial import start_model

    job = load("train", [f"model.name_or_path={write_base(tmp_path, 'llama')}", "data.train=x.jsonl"])
    config = job.trial_config()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(type(job.model), "load", lambda *_, **__: pytest.fail("the base is loaded"))
    check_fits(config, lora_rank=4, device="cpu")
    with pytest.raises(InputError, match="doesn't fit"):
        start_model(config, "cuda")
    options = {"wanted": 1, "max_lora_rank": 4, "device": "cuda", "log": print}
    with pytest.raises(InputError, match="doesn't fit"):
        PackedTrials(config, Examples([], []), **options)
