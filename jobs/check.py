"""Is my data sound? No accelerator is touched.    python jobs/check.py model.name_or_path=… data.train=…"""

from raytune_llm.jobs import commands
from raytune_llm.jobs.config import run

if __name__ == "__main__":
    run("check", commands.check)
