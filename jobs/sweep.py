"""Many tuning jobs; the winner compared, published and perhaps deployed.    python jobs/sweep.py method=sft
model.name_or_path=… data.train=…"""

from raytune_llm.jobs import commands
from raytune_llm.jobs.config import run

if __name__ == "__main__":
    run("sweep", commands.sweep)
