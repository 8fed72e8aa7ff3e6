"""Ctrl-C while Ray runs trials."""

import signal

import pytest

from raytune_llm.training.interrupts import interruptible


def test_handlers_are_as_before():
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        signal.signal(signal.SIGINT, lambda *about: None)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("code", "kind"), [(0, KeyboardInterrupt), (1, KeyboardInterrupt), (15, SystemExit)])
def test_what_ray_train_makes_of_ctrl_c_is_a_keyboard_interrupt(code, kind):
    with pytest.raises(kind), interruptible():
        raise SystemExit(code)
