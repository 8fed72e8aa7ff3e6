"""Does an installed bundle work? Versions, imports, the command, and two steps of training on the embedded base.

python check.py            on the CPU, about a minute
python check.py --quick    without the training
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
IMPORTED = ["torch", "numpy", "pyarrow", "transformers", "peft", "trl", "datasets", "ray", "ray.tune", "ray.train"]
IMPORTED += ["ray.serve", "optuna", "hydra", "openai", "tensorboard", "wandb", "raytune_llm.jobs.api"]
TRAINING = ["model=demo", "data=demo_sarcasm", "name=checked", "tuning.steps=2", "tuning.eval_every=2"]
TRAINING += ["scaling.use_gpu=false", "evaluation.max_examples=8", "evaluation.bootstrap_draws=20"]
TRAINING += ["evaluation.max_new_tokens=4"]
QUIET = {"HF_HUB_OFFLINE": "1"}


def wrong_versions():
    """Packages of the bundle that Python finds in another version, or not at all."""
    wrong = []
    for line in (HERE / "PACKAGES").read_text().split():
        name, _, expected = line.partition("==")
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "none"
        if found != expected:
            wrong.append(f"{name} {expected}, found {found}")
    return wrong


def failed_imports():
    failed = []
    for name in IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
    return failed


def failed_command(*arguments):
    """What `raytune-llm` printed last when it didn't end with status 0."""
    done = subprocess.run(
        [sys.executable, "-m", "raytune_llm.cli", *arguments],
        env={**os.environ, **QUIET},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return [] if done.returncode == 0 else [done.stdout[-3000:]]


def trained():
    with tempfile.TemporaryDirectory() as home:
        return failed_command("train", *TRAINING, f"home={home}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    checks = {
        "versions": wrong_versions,
        "imports": failed_imports,
        "raytune-llm --help": lambda: failed_command("--help"),
    }
    if not parser.parse_args().quick:
        checks["two steps of training"] = trained
    sound = True
    for name, check in checks.items():
        started = time.monotonic()
        problems = check()
        sound = sound and not problems
        print(f"{'ok    ' if not problems else 'FAILED'} {name} ({time.monotonic() - started:.0f} s)", flush=True)
        print("".join(f"       {problem}\n" for problem in problems), end="")
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
