"""The wheel is whole: from an empty folder, without the checkout, its console script finds conf/ and the embedded base,
and Ray's workers find the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import raytune_llm
from raytune_llm.cli import COMMANDS
from raytune_llm.errors import InputError
from raytune_llm.jobs.api import compose
from raytune_llm.jobs.config import CONF
from raytune_llm.jobs.schema import JOBS, CheckJob

ROOT = Path(__file__).parents[1]
SOURCES = ("raytune_llm", "conf", "pyproject.toml", "setup.py", "README.md", "LICENSE")
DEMO = ["model=demo", "data=demo_sarcasm"]


def ran(*command, cwd, path):
    """A finished process that sees the packages of `path` in addition to this environment's own."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package as installed from its wheel."""
    folder = tmp_path_factory.mktemp("package")
    for name in SOURCES:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / "src" / name, ignore=ignored) if source.is_dir() else shutil.copy(
            source, folder / "src" / name
        )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = ran(
        *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder / "wheels", folder / "src", cwd=folder, path=""
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (folder / "wheels").glob("*.whl")
    done = ran(*pip, "install", "--no-deps", "--target", folder / "site", wheel, cwd=folder, path="")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture
def empty(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def console(installed, cwd, *arguments):
    return ran(sys.executable, installed / "bin" / "raytune-llm", *arguments, cwd=cwd, path=installed)


def test_the_wheel_holds_all_of_conf_and_of_the_demo(installed):
    def files(folder):
        return {file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"}

    assert files(installed / "raytune_llm" / "conf") == files(CONF)
    assert files(installed / "raytune_llm" / "data" / "demo") == files(ROOT / "raytune_llm" / "data" / "demo")


def test_the_installed_package_is_the_one_that_runs(installed, empty):
    code = "import raytune_llm as r, raytune_llm.jobs.config as c; print(r.__file__, c.CONF, r.__version__)"
    file, conf, version = ran(sys.executable, "-c", code, cwd=empty, path=installed).stdout.split()
    package = installed / "raytune_llm"
    assert (Path(file), Path(conf), version) == (package / "__init__.py", package / "conf", raytune_llm.__version__)


def test_check_runs_as_a_module(installed, empty):
    done = ran(sys.executable, "-m", "raytune_llm.cli", "check", *DEMO, cwd=empty, path=installed)
    assert done.returncode == 0, done.stderr
    assert "verdict: sound" in done.stdout
    assert list(empty.iterdir()) == []


def test_a_sweep_runs_by_the_console_script(installed, empty, tmp_path):
    space = ["tuning.steps=[4]", "tuning.learning_rate_multiplier=[1.0,3.0]", "tuning.adapter_size=[4]"]
    small = ["tuning.eval_every=2", "tuning.warmup_steps=0", "tuning.batch_size=4", "sweep.scheduler.grace_steps=2"]
    compared = ["evaluation.max_examples=8", "evaluation.bootstrap_draws=20", "evaluation.max_new_tokens=8"]
    home = f"home={tmp_path / 'home'}"
    swept = [f"sweep.space.{axis}" for axis in space]
    done = console(installed, empty, "sweep", *DEMO, *swept, *small, *compared, home, "name=packaged")
    assert done.returncode == 0, done.stderr
    listed = console(installed, empty, "registry", home)
    assert "packaged@1" in listed.stdout, listed.stderr


def test_the_console_script_lists_its_commands_and_refuses_others(installed, empty):
    shown = console(installed, empty, "--help")
    assert shown.returncode == 0
    width = max(map(len, COMMANDS))
    assert all(f"  {name.ljust(width)}  {meaning}" in shown.stdout for name, meaning in COMMANDS.items())
    wrong = console(installed, empty, "trian", *DEMO)
    assert wrong.returncode == 2
    assert wrong.stderr == "error: unknown command: trian; nearest: train (raytune-llm --help lists all)\n"
    assert console(installed, empty, "--version").stdout.strip() == raytune_llm.__version__


def test_the_console_script_behaves_as_the_job_scripts_do(installed, empty):
    wrong = console(installed, empty, "train", *DEMO, "tuning.stpes=3")
    script = ran(sys.executable, ROOT / "jobs" / "train.py", *DEMO, "tuning.stpes=3", cwd=empty, path=ROOT)
    assert (wrong.returncode, wrong.stderr) == (script.returncode, script.stderr) == (2, script.stderr)
    shown = console(installed, empty, "train", "--help").stdout
    assert "usage: raytune-llm train [group=choice ...]" in shown and "  tuning.steps = 200" in shown


def test_each_command_has_a_job_a_config_and_a_script():
    assert list(COMMANDS) == list(JOBS)
    for name in COMMANDS:
        assert (CONF / f"{name}.yaml").is_file() and (ROOT / "jobs" / f"{name}.py").is_file()


def test_importing_the_package_imports_nothing_else():
    code = "import sys, raytune_llm; print(sorted(name for name in sys.modules if name.startswith('raytune_llm')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "['raytune_llm']\n"


def test_the_public_names(capsys):
    assert raytune_llm.compose is compose
    assert {"Command", "Registry", "compose", "__version__"} <= set(dir(raytune_llm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = raytune_llm.nothing
    command = raytune_llm.compose("check", DEMO)
    assert isinstance(command.job, CheckJob)
    assert command.run() == 0 and "verdict: sound" in capsys.readouterr().out
    with pytest.raises(InputError, match="unknown command: trian; allowed, nearest first: train, "):
        raytune_llm.compose("trian")
    with pytest.raises(InputError, match=r"tuning\.steps=0 is not allowed"):
        raytune_llm.compose("train", [*DEMO, "tuning.steps=0"])
