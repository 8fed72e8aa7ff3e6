"""A teacher writes rationales and labels.    python jobs/annotate.py teacher=openai teacher.model=… data.train=…"""

from raytune_llm import pipeline
from raytune_llm.config import run

if __name__ == "__main__":
    run("annotate", pipeline.annotate)
