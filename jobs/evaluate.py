"""Base against tuned, with confidence intervals.    python jobs/evaluate.py adapter=NAME@champion data.test=…"""

from raytune_llm import pipeline
from raytune_llm.config import run

if __name__ == "__main__":
    run("evaluate", pipeline.evaluate)
