"""Folders of other processes come and go while one is made."""

import shutil

from raytune_llm.serving.deploy import cache_folder
from raytune_llm.serving.deploy.cache_folder import CacheFolder


def test_a_folder_that_its_process_removes_meanwhile_harms_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_folder.tempfile, "gettempdir", lambda: str(tmp_path))
    first, real = CacheFolder(), cache_folder._lock
    monkeypatch.setattr(
        cache_folder, "_lock", lambda folder, how: (folder == first.path and shutil.rmtree(folder)) or real(folder, how)
    )
    second = CacheFolder()
    assert second.path.is_dir() and not first.path.exists()
    second.remove()
    first.remove()
