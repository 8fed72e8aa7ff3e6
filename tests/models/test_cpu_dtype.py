import pytest
import torch

from raytune_llm.models import cpu_dtype
from raytune_llm.models.cpu_dtype import SMALLEST_BASE, bf16_gain, prefers_bf16


@pytest.fixture
def gain(monkeypatch):
    """A CPU whose products take so many seconds in float32 and bfloat16."""

    def of(float32, bf16):
        seconds = {torch.float32: float32, torch.bfloat16: bf16}
        monkeypatch.setattr(cpu_dtype, "_fastest", lambda side, dtype: seconds[dtype])
        bf16_gain.cache_clear()

    yield of
    bf16_gain.cache_clear()


def test_a_large_base_takes_what_the_cpu_is_faster_in(gain):
    gain(4.0, 1.0)
    assert bf16_gain(576) == 4.0 and prefers_bf16(576, SMALLEST_BASE)
    gain(1.0, 3.0)
    assert not prefers_bf16(576, SMALLEST_BASE)


def test_a_small_gain_is_not_worth_the_precision(gain):
    gain(1.4, 1.0)
    assert not prefers_bf16(576, SMALLEST_BASE)


def test_a_small_base_stays_in_float32_and_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(cpu_dtype, "bf16_gain", lambda side: pytest.fail("measured"))
    assert not prefers_bf16(64, SMALLEST_BASE - 1)


def test_the_gain_is_measured_once():
    bf16_gain.cache_clear()
    assert bf16_gain(64) > 0 and bf16_gain(64) == bf16_gain(64)
    assert bf16_gain.cache_info().misses == 1
