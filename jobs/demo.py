"""The whole journey on the embedded base: sweep, compare, publish, serve, query.    python jobs/demo.py"""

from raytune_llm.jobs import commands
from raytune_llm.jobs.config import run

if __name__ == "__main__":
    run("demo", commands.demo)
