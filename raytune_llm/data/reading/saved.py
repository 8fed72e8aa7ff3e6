"""Folders that datasets' save_to_disk wrote: Arrow files in an order that state.json gives, or a folder for each split.

Leaves out indices over the files, which older versions could write: such a folder is to be saved again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from raytune_llm.data.records import show_keys
from raytune_llm.errors import InputError

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


def is_saved(folder: Path) -> bool:
    """Whether a local folder is one of save_to_disk."""
    return os.path.isfile(folder / SPLITS) or (os.path.isfile(folder / STATE) and os.path.isfile(folder / INFO))


def files_of(folder: Path) -> list[str]:
    """The Arrow files of one, in their order. Raises InputError where it has splits, or doesn't say which files."""
    if (folder / SPLITS).is_file():
        splits = _list(_content(folder / SPLITS), "splits")
        example = next((name for name in splits if isinstance(name, str)), "NAME")
        raise InputError(f"has the splits {show_keys(splits)}; name one of them, such as {folder}/{example}")
    state = _content(folder / STATE)
    if any(_list(state, key) for key in ("_indices_data_files", "_indices_files")):
        raise InputError(
            "has an index over its rows, as old versions of datasets wrote it; load it and save_to_disk it again"
        )
    found = [entry.get("filename") if isinstance(entry, dict) else None for entry in _list(state, "_data_files")]
    names = [name for name in found if isinstance(name, str) and name == Path(name).name]
    if not names or len(names) < len(found):
        raise InputError(f"has a {STATE} that names no data files; save_to_disk it again")
    return [str(folder / name) for name in names]


def _content(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        found = None
    except OSError as error:
        raise InputError(f"has a {file.name} that can't be read: {error.strerror}") from error
    if not isinstance(found, dict):
        raise InputError(f"has a {file.name} that is no JSON object; save_to_disk it again")
    return found


def _list(content: dict[str, Any], key: str) -> list[Any]:
    value = content.get(key)
    return value if isinstance(value, list) else []
