"""Versions of tuned adapters and models: published whole, never changed, found by name, number or alias.

    root/NAME/v1/…files…, card.json     a version; it exists if and only if its card does, which is written last
    root/NAME/aliases.json              {"champion": 3, "previous": 2, …}

On a local or shared folder numbers are taken by exclusive mkdir, files are on disk before the card is, and alias
changes hold a file lock. On an object store numbers are taken by marks that a listing verifies
(storage.Remote.claim), files and card are single puts, and of two alias changes at the same moment the last one wins.
A publish that was killed leaves a folder without a card: it is never listed and its number never given again. Left
out: deleting versions.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import json
import random
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from raytune_llm.errors import InputError, check_name
from raytune_llm.stores.card import Card, Version, card_json, describe, parse_card, table
from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import is_local, open_storage
from raytune_llm.stores.weight_checks import check_folder

__all__ = ["Registry", "Version", "describe", "table"]

CARD = "card.json"
ALIASES = "aliases.json"
CHAMPION = "champion"
PREVIOUS = "previous"
KINDS = ("adapter", "model", "reward")
FOLDER = re.compile(r"v([1-9][0-9]*)")
SELECTOR = re.compile(r"v?0*([0-9]{1,18})")
CLAIM_SECONDS = 60.0
"""How long a publisher contends for a number before it gives up."""


class Registry:
    """The versions below one root: a local path or URI. Raises InputError for errors that the caller can correct."""

    def __init__(self, root: str) -> None:
        self._storage = open_storage(root)
        self.root = self._storage.root

    def publish(self, name: str, source: Path, card: Card) -> Version:
        """Make a new version from a local folder. Raises InputError when it isn't sound, or when the disk is full."""
        check_name("registry name", name)
        if card.kind not in KINDS:
            raise InputError(f"card.kind={card.kind} is not allowed; allowed: {', '.join(KINDS)}")
        check_folder(source)
        names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
        if CARD in names:
            raise InputError(f"{source / CARD} is in the way: the registry writes that file itself; remove it")
        try:
            number = self._claim(name)
            folder = f"{name}/v{number}"
            with contextlib.ExitStack() as undo:
                undo.callback(self._storage.remove, folder)
                files = {
                    relative: self._storage.upload(source / relative, f"{folder}/{relative}") for relative in names
                }
                self._storage.write(f"{folder}/{CARD}", card_json(card, files))
                undo.pop_all()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            size = sum((source / relative).stat().st_size for relative in names)
            raise InputError(
                f"no space left for {name} in {self.root} ({size} bytes needed): nothing was published, earlier "
                "versions and aliases are untouched; free some space or set home= to another disk"
            ) from error
        return self._read(name, number)

    def resolve(self, reference: str) -> Version:
        """The version of NAME (champion, else the newest), NAME@champion, NAME@3 or NAME@v3."""
        name, _, selector = reference.partition("@")
        numbers = self._numbers(name)
        aliases = self._aliases(name)
        if "@" not in reference:
            number = aliases.get(CHAMPION, numbers[-1])
        elif match := SELECTOR.fullmatch(selector):
            number = int(match[1])
        else:
            number = aliases.get(selector, 0)
        if number not in numbers:
            have = ", ".join(map(str, numbers))
            named = ", ".join(f"{alias} → {target}" for alias, target in sorted(aliases.items())) or "none"
            raise InputError(f"{reference} is not in {self.root}: {name} has versions {have}; aliases: {named}")
        return self._read(name, number)

    def pointers(self, name: str) -> Mapping[str, int]:
        """Where the aliases of a name point, by one read; without a champion also '' → its newest version, by one
        listing more. Raises InputError for a name that can't be one."""
        check_name("registry name", name)
        aliases = self._aliases(name)
        if CHAMPION in aliases:
            return aliases
        taken = (FOLDER.fullmatch(folder) for folder in self._storage.folders(name))
        numbers = sorted((int(match[1]) for match in taken if match), reverse=True)
        newest = (number for number in numbers if self._storage.exists(f"{name}/v{number}/{CARD}"))
        return {**aliases, "": next(newest, 0)}

    def names(self) -> Sequence[str]:
        """Names under which anything was ever published, by one listing."""
        return self._storage.folders("")

    def show(self, reference: str) -> Version:
        """The version of a reference, its files verified."""
        version = self.resolve(reference)
        self.verify(version)
        return version

    def versions(self, name: str) -> Sequence[Version]:
        """All versions of a name, oldest first. Raises InputError when there is none."""
        return [self._read(name, number) for number in self._numbers(name)]

    def list(self) -> Sequence[Version]:
        """All versions of all names."""
        return [version for name in self._names() for version in self.versions(name)]

    def alias(self, reference: str, alias: str) -> Version:
        """Point an alias at a version; `champion` is promoted."""
        check_name("alias", alias)
        if alias == PREVIOUS or SELECTOR.fullmatch(alias):
            raise InputError(
                f"alias={alias} is not allowed: numbers name versions and '{PREVIOUS}' is kept by promote and rollback"
            )
        version = self.resolve(reference)
        if alias == CHAMPION:
            return self.promote(version)
        with self._storage.lock(f"{version.name}/{ALIASES}"):
            self._write_aliases(version.name, {**self._aliases(version.name), alias: version.number})
        return self._read(version.name, version.number)

    def promote(self, version: Version) -> Version:
        """Make a version champion; the champion until now becomes `previous`."""
        name, number = version.name, version.number
        self._read(name, number)
        with self._storage.lock(f"{name}/{ALIASES}"):
            aliases = self._aliases(name)
            if aliases.get(CHAMPION) != number:
                previous = {PREVIOUS: aliases[CHAMPION]} if CHAMPION in aliases else {}
                self._write_aliases(name, {**aliases, **previous, CHAMPION: number})
        return self._read(name, number)

    def rollback(self, name: str) -> Version:
        """Make `previous` champion again; a second rollback has nowhere to go. Raises InputError when there is no
        previous."""
        numbers = self._numbers(name)
        with self._storage.lock(f"{name}/{ALIASES}"):
            aliases = self._aliases(name)
            number = aliases.pop(PREVIOUS, None)
            if number is None:
                have = ", ".join(map(str, numbers))
                raise InputError(
                    f"{name} has no {PREVIOUS} {CHAMPION} to roll back to; it has versions {have}: choose one with "
                    f"action=alias alias={CHAMPION} version={name}@{numbers[0]}"
                )
            self._write_aliases(name, {**aliases, CHAMPION: number})
        return self._read(name, number)

    def verify(self, version: Version) -> None:
        """Raise InputError when a file of a version is missing, changed, or wasn't published with it."""
        folder = f"{version.name}/v{version.number}"
        present = set(self._storage.files(folder)) - {CARD}
        wrong = [f"{name} is missing" for name in sorted(set(version.files) - present)]
        wrong += [f"{name} was not published" for name in sorted(present - set(version.files))]
        for name in sorted(present & set(version.files)):
            if self._storage.digest(f"{folder}/{name}") != version.files[name]:
                wrong.append(f"{name} has changed")
        if wrong:
            raise InputError(
                f"{version.reference} is damaged ({version.path}): {'; '.join(wrong)}; use another version"
            )

    def local_copy(self, version: Version, cache_dir: Path) -> Path:
        """A local folder with the version's files: its own one, or a verified download made once below cache_dir."""
        if is_local(self.root):
            return Path(version.path)
        registry = hashlib.sha256(self.root.encode()).hexdigest()[:16]
        target = cache_dir / registry / version.name / f"v{version.number}"
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as scratch:
            partial = Path(scratch, target.name)
            for name, expected in version.files.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                if self._storage.download(f"{version.name}/v{version.number}/{name}", partial / name) != expected:
                    raise InputError(
                        f"{version.reference} is damaged ({version.path}): {name} has changed; use another version"
                    )
            (partial / CARD).write_bytes(card_json(version.card, version.files))
            try:
                partial.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
        return target

    def _claim(self, name: str) -> int:
        """A number above all that were ever taken, now ours."""
        deadline = time.monotonic() + CLAIM_SECONDS
        while time.monotonic() < deadline:
            taken = [int(match[1]) for folder in self._storage.folders(name) if (match := FOLDER.fullmatch(folder))]
            number = max(taken, default=0) + 1
            if self._storage.claim(f"{name}/v{number}"):
                return number
            time.sleep(random.uniform(0, 0.1))
        raise InputError(
            f"no version number of {name} could be taken in {CLAIM_SECONDS:.0f} s: too many publish at once; try again"
        )

    def _names(self) -> Sequence[str]:
        """Names that have a version."""
        return [name for name in self._storage.folders("") if self.published(name)]

    def _numbers(self, name: str) -> Sequence[int]:
        """Numbers of the versions of a name, rising. Raises InputError when there is none."""
        check_name("registry name", name)
        if numbers := self.published(name):
            return numbers
        names = self._names()
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        raise InputError(
            f"{name} has no version in {self.root}; nearest names: {', '.join(near) or 'none, nothing is published'}"
        )

    def published(self, name: str) -> Sequence[int]:
        taken = (FOLDER.fullmatch(folder) for folder in self._storage.folders(name))
        return sorted(int(match[1]) for match in taken if match and self._storage.exists(f"{name}/{match[0]}/{CARD}"))

    def _aliases(self, name: str) -> dict[str, int]:
        try:
            return dict(json.loads(self._storage.read(f"{name}/{ALIASES}")))
        except FileNotFoundError:
            return {}

    def _write_aliases(self, name: str, aliases: Mapping[str, int]) -> None:
        self._storage.write(f"{name}/{ALIASES}", to_json(dict(sorted(aliases.items()))).encode())

    def _read(self, name: str, number: int) -> Version:
        path = f"{self.root}/{name}/v{number}"
        aliases = tuple(alias for alias, target in sorted(self._aliases(name).items()) if target == number)
        try:
            card, files = parse_card(self._storage.read(f"{name}/v{number}/{CARD}"))
        except (FileNotFoundError, ValueError) as error:
            raise InputError(f"{path}/{CARD} can't be read: {error}; use another version") from error
        return Version(name=name, number=number, path=path, card=card, files=files, aliases=aliases)
