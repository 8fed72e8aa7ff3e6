"""List, show, alias, roll back tuned models.    python jobs/registry.py action=list"""

from raytune_llm.jobs import commands
from raytune_llm.jobs.config import run

if __name__ == "__main__":
    run("registry", commands.registry)
