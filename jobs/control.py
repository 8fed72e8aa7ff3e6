"""Runs and their trials, seen and steered from another shell or machine.    python jobs/control.py run=NAME/RUN"""

from raytune_llm.jobs import commands
from raytune_llm.jobs.config import run

if __name__ == "__main__":
    run("control", commands.control)
