"""The whole journey on the embedded base: sweep, prove, register, serve, ask.    python jobs/demo.py"""

from raytune_llm import pipeline
from raytune_llm.config import run

if __name__ == "__main__":
    run("demo", pipeline.demo)
