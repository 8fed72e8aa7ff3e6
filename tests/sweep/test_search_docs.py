"""The commands of docs/search.md compose, and are what their jobs would accept."""

import shlex
from pathlib import Path

import pytest

from raytune_llm.jobs.config import load
from raytune_llm.jobs.prepare import check_sweep
from raytune_llm.sweep.plan import make_plan

PAGE = Path(__file__).parents[2] / "docs" / "search.md"
COMMANDS = [line for line in PAGE.read_text().splitlines() if line.startswith("raytune-llm sweep M ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_is_accepted(command):
    job = load("sweep", ["model=demo", "data=demo_sarcasm", *shlex.split(command)[3:]])
    check_sweep(job, make_plan(job.trial_config(), job.sweep.axes(), job.sweep.first))
