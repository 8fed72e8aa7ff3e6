"""An offline bundle: what it must hold, and a small one built, cut into parts, installed by its one command and
checked, without network."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from bundle import SHIPPED, requirements, write_bundle
from closure import NEVER_BUNDLED, Target, closure, read_have, read_pins
from wheels import is_unneeded, strip

ROOT = Path(__file__).parents[1]
HERE = Target(f"{sys.version_info[0]}.{sys.version_info[1]}", "manylinux_2_28_x86_64")
PINS = {"torch": "2.13.0", "numpy": "2.4", "ray": "2.60", "grpcio": "1.85", "old": "1.0", "colorama": "1.0"}
REQUIRES = {
    "project": ["torch>=2.13", "numpy>=2", "ray[serve]>=2.60", 'old; python_version < "3.12"'],
    "ray": ['grpcio>=1.40; extra == "serve"', 'colorama; sys_platform == "win32"', 'unpinned; extra == "llm"'],
}


def closed(have="", python="3.12"):
    return closure("project", lambda name: REQUIRES.get(name, []), PINS, read_have(have), Target(python, HERE.platform))


def test_what_a_target_needs():
    assert closed() == {"grpcio": "1.85", "numpy": "2.4", "ray": "2.60"}
    assert closed(python="3.11") == {"grpcio": "1.85", "numpy": "2.4", "old": "1.0", "ray": "2.60"}


def test_what_the_target_has_stays_out_unless_its_version_will_not_do():
    assert closed("numpy,grpcio==1.80") == {"ray": "2.60"}
    assert closed("numpy==1.26,grpcio==1.30") == {"grpcio": "1.85", "numpy": "2.4", "ray": "2.60"}
    assert closed("ray") == {"numpy": "2.4"}, "what only ray needs is not looked at"


def test_a_package_without_a_pin_is_named():
    with pytest.raises(SystemExit, match=r"numpy is needed by project on Python 3\.12"):
        closure("project", lambda name: REQUIRES.get(name, []), {}, {"torch": None}, Target("3.12", HERE.platform))


def test_the_list_of_what_the_target_has_may_be_a_file(tmp_path):
    file = tmp_path / "have.txt"
    file.write_text("# of the image\nNumPy==2.5.2  # large\n\nhf_xet\n")
    assert read_have(str(file)) == {NEVER_BUNDLED: None, "numpy": "2.5.2", "hf-xet": None}
    assert read_have("") == {NEVER_BUNDLED: None}


def test_the_project_closes_over_its_pins_on_every_python():
    pins = read_pins((ROOT / "constraints.txt").read_text())
    for python in ("3.11", "3.12", "3.13"):
        found = closure("raytune-llm", requirements, pins, read_have(""), Target(python, HERE.platform))
        assert {"ray", "grpcio", "transformers", "antlr4-python3-runtime", "wandb"} <= found.keys()
        assert not {"torch", "pytest", "ruff"} & found.keys()


def test_platforms_of_older_systems_run_too():
    assert Target("3.12", "manylinux_2_28_x86_64").platforms[:2] == ["manylinux_2_28_x86_64", "manylinux_2_27_x86_64"]
    assert {"manylinux_2_17_aarch64", "manylinux2014_aarch64"} <= set(
        Target("3.12", "manylinux_2_28_aarch64").platforms
    )
    assert Target("3.12", "linux_x86_64").platforms == ["linux_x86_64"]


def test_what_is_stripped():
    assert is_unneeded("ray", "ray/jars/ray_dist.jar") and is_unneeded("ray", "ray/rllib/algorithms/ppo.py")
    assert not is_unneeded("ray", "ray/dashboard/client/build/static/css/main.css")  # its folder must exist
    assert not is_unneeded("ray", "ray/tune/tuner.py") and not is_unneeded("other", "ray/jars/ray_dist.jar")
    assert is_unneeded("sympy", "sympy/core/tests/test_basic.py") and not is_unneeded("sympy", "sympy/core/basic.py")


def write_wheel(folder, name, files):
    """A pure wheel, as pip installs it."""
    info = f"{name}-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(file, text)
    return wheel


def write_source(folder, name):
    """A source archive, the only form in which some packages are published."""
    inner = folder / f"{name}-1.0"
    inner.mkdir()
    (inner / "setup.py").write_text(
        f"from setuptools import setup\nsetup(name='{name}', version='1.0', py_modules=['{name}'])"
    )
    (inner / f"{name}.py").write_text("from_source = True\n")
    (inner / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    with tarfile.open(folder / f"{name}-1.0.tar.gz", "w:gz") as archive:
        archive.add(inner, inner.name)
    shutil.rmtree(inner)


def test_a_stripped_wheel_lists_what_is_left(tmp_path):
    wheel = write_wheel(tmp_path, "ray", {"ray/__init__.py": "", "ray/jars/a.jar": "x" * 1000})
    strip(wheel)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = archive.read("ray-1.0.dist-info/RECORD").decode()
    assert "ray/__init__.py" in names and "ray/jars/a.jar" not in names
    assert sorted(line.split(",")[0] for line in record.splitlines()) == sorted(names)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A bundle of the project and two small packages, of which one comes as source, in many parts."""
    index = tmp_path_factory.mktemp("index")
    write_wheel(index, "leaflet", {"leaflet.py": "number = 1\n"})
    write_source(index, "pamphlet")
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(index))
        packages = {"leaflet": "1.0", "pamphlet": "1.0"}
        parts = write_bundle(packages, HERE, folder, part_bytes=1_500_000, is_whole=False)
    assert len(parts) >= 3 and all(part.stat().st_size <= 1_500_000 for part in parts)
    return folder


def install(folder, *arguments):
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["sh", str(folder / "install.sh"), *arguments]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=300)


def test_a_bundle_is_installed_by_one_command_and_checked(small, tmp_path):
    site = tmp_path / "site"
    done = install(small, "--target", str(site))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "installed 3 packages" in done.stdout
    assert (site / "pamphlet.py").is_file() and (site / "raytune_llm" / "conf" / "train.yaml").is_file()
    assert {path.name for path in small.iterdir() if ".tar.xz." not in path.name} == {
        *SHIPPED,
        *("SHA256SUMS", "PACKAGES", "PYTHON"),
    }
    checked = [sys.executable, str(small / "check.py"), "--quick"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(checked, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    assert [line.split()[0] for line in found.stdout.splitlines()] == ["ok"] * 3
    shutil.rmtree(site / "leaflet-1.0.dist-info")
    wrong = [sys.executable, "-c", "import check; print(check.wrong_versions())"]
    assert (
        "leaflet 1.0, found none"
        in subprocess.run(wrong, cwd=small, env=environment, capture_output=True, text=True).stdout
    )


def test_a_damaged_or_missing_part_is_named(small, tmp_path):
    copy = shutil.copytree(small, tmp_path / "copy")
    part = copy / "raytune_llm.tar.xz.001"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    done = install(copy, "--target", str(tmp_path / "site"))
    assert done.returncode == 1 and f"{part.name} is damaged" in done.stderr and not (tmp_path / "site").exists()
    part.unlink()
    assert f"{part.name} is missing" in install(copy, "--target", str(tmp_path / "site")).stderr


def test_another_python_is_refused(small, tmp_path):
    copy = shutil.copytree(small, tmp_path / "copy")
    (copy / "PYTHON").write_text("3.9\n")
    assert "this bundle is for Python 3.9" in install(copy).stderr
