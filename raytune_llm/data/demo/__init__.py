"""The embedded tiny base and its demo data: everything `make demo` needs without a network."""

from pathlib import Path

HERE = Path(__file__).resolve().parent


def path(name: str) -> Path:
    """Absolute path of an embedded file or folder, such as `base` or `data/sarcasm/train.jsonl`.

    Raises:
        ValueError: nothing of that name is embedded.
    """
    found = [p for root in ("base", "data") for p in (HERE / root, *sorted((HERE / root).rglob("*"))) if p.exists()]
    available = {p.relative_to(HERE).as_posix(): p for p in found}
    if name not in available:
        raise ValueError(f"demo path {name!r} does not exist; available: {', '.join(available)}")
    return available[name]
