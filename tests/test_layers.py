"""The house's rules as tests: imports point down, methods and engines don't know their siblings, optional packages
have one owner."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "raytune_llm"

ROOMS = [  # top to bottom; a file imports from its own room or from those below
    ["cli"],
    ["jobs"],
    ["sweep", "serving"],
    ["training"],
    ["methods"],
    ["annotation"],
    ["evaluation"],
    ["models"],
    ["data"],
    ["stores"],
    ["cluster", "compat"],
    ["errors"],
]
NO_RAY = ["methods", "evaluation", "models", "data", "stores", "errors"]
OWNERS = {
    "hydra": ["jobs.config"],
    "omegaconf": ["jobs.config", "jobs.help", "stores.components", "compat"],
    "wandb": ["training.tracking.wandb", "compat"],
    "vllm": ["serving.engine.vllm"],
}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(file: Path) -> list[str]:
    """All modules a file imports when it runs; those for type checking alone don't count."""
    found = []
    tree = ast.parse(file.read_text())
    skipped = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def layer(name: str) -> int:
    top = name.split(".")[0]
    matches = [place for place, names in enumerate(ROOMS) if top in names]
    assert matches, f"raytune_llm.{name} has no layer in this test"
    return matches[0]


@pytest.mark.parametrize("file", [f for f in FILES if module_name(f)], ids=module_name)
def test_imports_point_down(file):
    for imported in imports(file):
        if imported.startswith("raytune_llm."):
            target = imported.removeprefix("raytune_llm.")
            assert layer(target) >= layer(module_name(file)), (
                f"{module_name(file)} imports {imported}, which stands above it"
            )


@pytest.mark.parametrize("file", [f for f in FILES if module_name(f).split(".")[0] in NO_RAY], ids=module_name)
def test_the_lower_house_knows_no_ray(file):
    assert not [name for name in imports(file) if name == "ray" or name.startswith("ray.")]


@pytest.mark.parametrize("folder", ["methods", "teachers", "tracking", "samplers"])
def test_siblings_do_not_import_each_other(folder):
    files = list((PACKAGE / folder).glob("[!_]*.py"))
    modules = tuple(f"raytune_llm.{folder}.{file.stem}" for file in files)
    for file in files:
        siblings = [name for name in imports(file) if name.startswith(modules)]
        assert not siblings, f"{file.name} imports {siblings}"


@pytest.mark.parametrize("package", OWNERS)
def test_optional_packages_have_one_owner(package):
    owners = {module_name(file) for file in FILES if any(name.split(".")[0] == package for name in imports(file))}
    assert owners <= set(OWNERS[package])
