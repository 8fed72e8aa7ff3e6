"""Which packages a machine needs for the project: those that its requirements lead to on the target, at the versions of
constraints.txt, without what the target has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NEVER_BUNDLED = "torch"
"""Its build must fit the GPUs' driver, and with its libraries it takes gigabytes."""
OLDEST_MANYLINUX = 17


@dataclass(frozen=True)
class Target:
    """Where the bundle is installed."""

    python: str
    """3.12"""
    platform: str
    """A wheel's platform tag: manylinux_2_28_x86_64."""

    @property
    def machine(self) -> str:
        return next(name for name in ("x86_64", "aarch64") if self.platform.endswith(name))

    @property
    def markers(self) -> dict[str, str]:
        """What requirements depend on."""
        return {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
            "sys_platform": "linux",
            "platform_system": "Linux",
            "platform_machine": self.machine,
        }

    @property
    def platforms(self) -> list[str]:
        """All platform tags that run there, the newest first."""
        head, _, rest = self.platform.partition("manylinux_2_")
        if head or not rest.endswith(self.machine):
            return [self.platform]
        newest = int(rest.removesuffix(f"_{self.machine}"))
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(newest, 4, -1)]
        return [*tags, *(f"{old}_{self.machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1", "linux"))]


def read_pins(text: str) -> dict[str, str]:
    """Versions by canonical name, of lines like name==version."""
    pins = {}
    for line in text.splitlines():
        name, is_pin, version = line.partition("#")[0].strip().partition("==")
        if is_pin:
            pins[canonicalize_name(name)] = version
    return pins


def read_have(given: str) -> dict[str, str | None]:
    """What the target has, None where any version will do: `given` is a file or a list with commas of names and
    name==version."""
    is_file = bool(given) and "," not in given and Path(given).is_file()
    items = Path(given).read_text().splitlines() if is_file else given.split(",")
    found: dict[str, str | None] = {NEVER_BUNDLED: None}
    for item in items:
        name, _, version = item.partition("#")[0].strip().partition("==")
        if name:
            found[canonicalize_name(name)] = version or None
    return found


def closure(
    project: str,
    requires: Callable[[str], Iterable[str]],
    pins: Mapping[str, str],
    have: Mapping[str, str | None],
    target: Target,
) -> dict[str, str]:
    """Versions of all packages that `project` needs on the target and that it lacks, or has in a version that won't do.

    Args:
        requires: the requirements of an installed package, as its metadata gives them.

    Raises:
        SystemExit: a package is needed that has no pin.
    """
    needed: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(project, "")]
    while waiting:
        package, extra = waiting.pop()
        if (package, extra) in seen:
            continue
        seen.add((package, extra))
        for text in requires(package):
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({**target.markers, "extra": extra}):
                continue
            name = canonicalize_name(requirement.name)
            if name not in needed and fits(have, name, requirement):
                continue
            if name not in pins:
                raise SystemExit(
                    f"{name} is needed by {package} on Python {target.python}, but constraints.txt has no pin"
                )
            needed[name] = pins[name]
            waiting += [(name, wanted) for wanted in ("", *requirement.extras)]
    return dict(sorted(needed.items()))


def fits(have: Mapping[str, str | None], name: str, requirement: Requirement) -> bool:
    """Whether what the target has will do."""
    if name not in have:
        return False
    version = have[name]
    return version is None or requirement.specifier.contains(version, prereleases=True)
