"""A teacher writes rationales and labels.    python jobs/annotate.py teacher=openai teacher.model=… data.train=…"""

from raytune_llm.jobs import commands
from raytune_llm.jobs.config import run

if __name__ == "__main__":
    run("annotate", commands.annotate)
