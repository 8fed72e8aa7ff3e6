"""The rules of the house: imports point down, no file is in a circle, siblings don't know each other, optional packages
have one owner. Every import counts, also one inside a function or for type checkers alone."""

import ast
import graphlib
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "raytune_llm"
FILES = sorted(PACKAGE.rglob("*.py"))

ROOMS = [  # top to bottom: a file imports from its own room and from those below
    ("cli",),
    ("jobs",),
    ("service",),
    ("sweep", "serving"),  # side by side: neither imports the other
    ("training",),
    ("methods",),
    ("annotation",),
    ("evaluation",),
    ("models",),
    ("data",),
    ("stores",),
    ("cluster",),
    ("session",),
    ("compat",),
    ("errors",),
]
NOT_FOR_SERVING = ("training", "methods", "annotation")
WITHOUT_RAY = ("methods", "evaluation", "models", "data", "stores", "errors")
SIBLINGS = {  # choices of one config group, which never import each other, and what they share
    "methods": ("base", "model_refs"),
    "methods.rewards": ("base", "mixture"),
    "methods.algorithms": ("base",),
    "methods.samplers": ("base",),
    "annotation.teachers": ("base",),
    "evaluation.judges": ("base",),
    "training.tracking": ("base", "background"),
    "models.adapters": ("base",),
    "service.answers": ("base", "in_process", "ray_serve"),  # auto chooses between them
    "sweep.search": ("base", "random"),  # optuna begins with random points
    "sweep.schedulers": ("base", "wrapper"),
    "sweep.backends": ("base", "packed", "ray_train"),  # auto chooses between them
}
OWNERS = {
    "hydra": {"jobs.config", "jobs.overrides"},
    "omegaconf": {"jobs.config", "jobs.help", "stores.components", "compat"},
    "wandb": {"training.tracking.wandb", "compat"},
    "mlflow": {"training.tracking.mlflow"},
    "vllm": {"serving.engine.vllm"},
    "openai": {"models.openai_client"},
    "lm_eval": {"evaluation.harness"},
    "optuna": {"sweep.search.optuna", "jobs.report.importance"},
    "matplotlib": {"jobs.report.png"},
    "rich": {"training.terminal"},
}
MOST_PACKAGES, MOST_LOOSE_FILES, MOST_LINES = 11, 6, 350


def module_name(file: Path) -> str:
    """Dotted name below raytune_llm; of a package the package's own."""
    return ".".join(part for part in file.relative_to(PACKAGE).with_suffix("").parts if part != "__init__")


MODULES = {module_name(file): file for file in FILES}


@cache
def imports(file: Path) -> frozenset[str]:
    """Every module or name that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


@cache
def own_imports(module: str) -> frozenset[str]:
    """The modules of this package that a module imports."""
    found = set()
    for name in imports(MODULES[module]):
        if name.startswith("raytune_llm."):
            name = name.removeprefix("raytune_llm.")
            found.add(name if name in MODULES else name.rpartition(".")[0])
    return frozenset(found - {module, ""})


def room(module: str) -> str:
    return module.split(".")[0]


def floor(module: str) -> int:
    places = [place for place, rooms in enumerate(ROOMS) if room(module) in rooms]
    assert places, f"raytune_llm.{module} is in no room of this test"
    return places[0]


def upward(module: str) -> list[str]:
    """What a module imports although it stands above it, or next to it where that is not allowed."""
    here = floor(module)
    return [
        imported
        for imported in own_imports(module)
        if floor(imported) < here
        or (floor(imported) == here and room(imported) != room(module))
        or (room(module) == "serving" and room(imported) in NOT_FOR_SERVING)
    ]


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_point_down(module):
    assert not upward(module)


def test_no_file_is_in_a_circle(capsys):
    sorter = graphlib.TopologicalSorter({module: own_imports(module) for module in MODULES})
    sorter.prepare()  # raises CycleError naming the circle
    floors = 0
    while sorter.is_active():
        sorter.done(*sorter.get_ready())
        floors += 1
    arrows = sum(len(upward(module)) for module in MODULES if module)
    with capsys.disabled():
        print(f"\n{len(MODULES)} modules on {floors} floors, 0 circles, {arrows} upward arrows")


def test_the_top_level_is_small():
    packages = [entry for entry in PACKAGE.iterdir() if (entry / "__init__.py").is_file()]
    loose = list(PACKAGE.glob("*.py"))
    assert len(packages) <= MOST_PACKAGES and len(loose) <= MOST_LOOSE_FILES
    assert {entry.name for entry in packages} | {file.stem for file in loose} - {"__init__"} == {
        name for rooms in ROOMS for name in rooms
    }


def test_no_file_is_long():
    long = {module: lines for module, file in MODULES.items() if (lines := file.read_text().count("\n")) > MOST_LINES}
    assert not long


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) in WITHOUT_RAY])
def test_the_lower_rooms_know_no_ray(module):
    assert not [name for name in imports(MODULES[module]) if name == "ray" or name.startswith("ray.")]


@pytest.mark.parametrize("package", SIBLINGS)
def test_choices_do_not_import_each_other(package):
    depth = package.count(".") + 1
    choices = {name for name in MODULES if name.startswith(f"{package}.") and name.count(".") == depth}
    choices -= {f"{package}.{shared}" for shared in SIBLINGS[package]}
    assert choices, f"raytune_llm.{package} has no choices"
    known = {module: sorted(own_imports(module) & choices) for module in choices}
    assert not {module: names for module, names in known.items() if names}


@pytest.mark.parametrize("package", OWNERS)
def test_optional_packages_have_one_owner(package):
    owners = {name for name, file in MODULES.items() if any(i.split(".")[0] == package for i in imports(file))}
    assert owners <= OWNERS[package]
