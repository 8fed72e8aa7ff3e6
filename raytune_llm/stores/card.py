"""A version in the registry: its card and the digests of its files, as JSON in card.json and as text for people."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from raytune_llm.stores.card_upgrade import FORMAT, upgraded
from raytune_llm.stores.json import to_json


@dataclass(frozen=True)
class Version:
    """One published version."""

    name: str
    number: int
    path: str
    """Absolute path or URI of its folder."""
    card: Card
    files: dict[str, str]
    """sha256 of each file, by its path in the folder."""
    aliases: tuple[str, ...] = field(default=(), compare=False)
    """Aliases that pointed here when this was read."""

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.number}"


def card_json(card: Card, files: dict[str, str]) -> bytes:
    """The content of card.json."""
    return to_json({**vars(card), "files": files}, indent=2).encode()


def parse_card(text: bytes) -> tuple[Card, dict[str, str]]:
    """Card and sha256 of each file, of any format. Raises ValueError, also for a file name that would leave the
    version's folder."""
    try:
        content = upgraded(json.loads(text))
        files = {_checked_path(name): str(digest) for name, digest in content.pop("files").items()}
        content["metrics"] = {name: float(value) for name, value in content["metrics"].items()}
        content["intervals"] = {name: [float(end) for end in ends] for name, ends in content["intervals"].items()}
        return Card(**content), files
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a card ({type(error).__name__}: {error})") from error


def table(versions: Sequence[Version]) -> str:
    """The versions as aligned text, one a line under a heading; `metric` is the first of the card's metrics."""
    rows = [("version", "aliases", "kind", "base", "metric", "created")]
    for version in versions:
        card = version.card
        metric = next((f"{name} {value:.4g}" for name, value in card.metrics.items()), "-")
        base = PurePosixPath(card.base).name
        rows.append((version.reference, ", ".join(version.aliases) or "-", card.kind, base, metric, card.created))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def describe(version: Version) -> str:
    """A version's card as text for people: lineage, metrics with their 95 % intervals, data, files, config."""
    card = version.card
    lines = [
        f"{version.reference}  {card.kind}  {', '.join(version.aliases) or 'no alias'}",
        f"  path     {version.path}",
        f"  base     {card.base} (revision {card.base_revision})",
        f"  method   {card.method}, {card.step} steps, seed {card.seed}",
        f"  created  {card.created} by code {card.code_version}{f', from {card.parent}' if card.parent else ''}",
        "  metrics",
    ]
    for name, value in card.metrics.items():
        low_high = card.intervals.get(name)
        lines.append(f"    {name} {value:.4g}" + (f" [{low_high[0]:.4g}, {low_high[1]:.4g}]" if low_high else ""))
    lines += ["  data", *(f"    {name} {fingerprint}" for name, fingerprint in card.data.items())]
    lines += ["  files", *(f"    {name} sha256 {digest}" for name, digest in version.files.items())]
    lines += ["  config", *("    " + line for line in to_json(card.config, indent=2).splitlines())]
    return "\n".join(lines)


def _checked_path(name: str) -> str:
    """A file name of a card, which becomes a local path: relative and inside the folder."""
    if not name or name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
        raise ValueError(f"file name {name!r} leaves the version's folder")
    return name


@dataclass(frozen=True, kw_only=True)
class Card:
    """The description of a registry version, stored as card.json alongside its files."""

    format: int = FORMAT
    """Of the card itself; earlier ones are upgraded when they are read (stores/card_upgrade.py)."""
    kind: str
    """adapter, model or reward."""
    base: str
    """name_or_path of the base it was tuned from."""
    base_revision: str
    """Hash of the base's weights and config."""
    base_loading: dict[str, Any]
    """How the base was loaded (dtype, chat template, revision …): enough to load it again."""
    method: str
    """Short name of the tuning method."""
    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    """95 % interval [low, high] of those metrics that have one."""
    config: dict[str, Any]
    """The resolved config of the job, the trial's own values applied, choices by their short names."""
    data: dict[str, str]
    """Fingerprint of each data file."""
    seed: int
    step: int
    """Optimizer steps behind these weights."""
    probes: list[Any]
    """A few prompts of the eval set, for the parity check of a deployment: text, or a list of {role, content}."""
    code_version: str
    forecast: dict[str, Any] = field(default_factory=dict)
    """What its training was predicted to take and took, by which later predictions are corrected; empty where nothing
    was predicted."""
    parent: str | None = None
    """The version in which its training continued; else the sweep that it won, as NAME/RUN."""
    created: str = dataclasses.field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
