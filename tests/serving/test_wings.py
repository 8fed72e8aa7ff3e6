"""The wings of serving: imports between its files point down and in no circle, also inside functions and for type
checking."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "raytune_llm"
WINGS = ["deploy", "api", "verify", "engine", "catalog"]  # top to bottom
FILES = {
    f"raytune_llm.{'.'.join(file.relative_to(PACKAGE).with_suffix('').parts)}": file
    for file in sorted((PACKAGE / "serving").rglob("*.py"))
    if file.name != "__init__.py"
}


def modules(file):
    """All modules and names that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def packages(file):
    return {name.split(".")[0] for name in modules(file)}


def wing(name):
    return WINGS.index(name.split(".")[2])


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    upward = {other for other in modules(FILES[name]) & FILES.keys() if wing(other) < wing(name)}
    assert not upward, f"{name} imports {sorted(upward)} from a wing above it"


def test_no_files_import_each_other_in_a_circle():
    graph = {name: modules(file) & FILES.keys() for name, file in FILES.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", FILES)
def test_serving_knows_no_training(name):
    rooms = {other.split(".")[1] for other in modules(FILES[name]) if other.startswith("raytune_llm.")}
    assert not rooms & {"training", "methods", "annotation", "sweep", "jobs"}


def test_only_deploy_and_vllm_import_ray():
    users = {name.removeprefix("raytune_llm.serving.") for name, file in FILES.items() if "ray" in packages(file)}
    assert all(name.startswith("deploy.") or name == "engine.vllm" for name in users)
