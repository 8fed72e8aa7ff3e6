"""Base against tuned, with confidence intervals.    python jobs/evaluate.py adapter=NAME@champion data.test=…"""

from raytune_llm.jobs import commands
from raytune_llm.jobs.config import run

if __name__ == "__main__":
    run("evaluate", commands.evaluate)
