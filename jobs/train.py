"""One tuning job.    python jobs/train.py method=sft model.name_or_path=… data.train=…"""

from raytune_llm import pipeline
from raytune_llm.config import run

if __name__ == "__main__":
    run("train", pipeline.train)
