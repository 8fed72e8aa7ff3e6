"""An error that comes before anything was stored is not taken for a full disk, nor hidden by the look for one."""

import errno
import os

import pytest

from raytune_llm.errors import InputError
from raytune_llm.stores.disk_full import explain_disk_full


def test_an_error_passes_while_home_is_yet_to_be_made(tmp_path):
    with pytest.raises(RuntimeError, match="lost"), explain_disk_full(f"{tmp_path}/not/yet", "one"):
        raise RuntimeError("lost")


def test_a_workers_full_disk_is_told_by_its_words(tmp_path):
    with pytest.raises(InputError, match="no space left"), explain_disk_full(f"{tmp_path}/not/yet", "one"):
        raise RuntimeError(f"worker 0: {os.strerror(errno.ENOSPC)}")
