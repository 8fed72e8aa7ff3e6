"""An OpenAI-compatible endpoint.    python jobs/serve.py adapter=NAME@champion"""

from raytune_llm.jobs import commands
from raytune_llm.jobs.config import run

if __name__ == "__main__":
    run("serve", commands.serve)
