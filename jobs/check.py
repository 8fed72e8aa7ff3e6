"""Is my data sound? No accelerator is touched.    python jobs/check.py model.name_or_path=… data.train=…"""

from raytune_llm import pipeline
from raytune_llm.config import run

if __name__ == "__main__":
    run("check", pipeline.check)
