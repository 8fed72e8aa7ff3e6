"""An OpenAI-compatible endpoint.    python jobs/serve.py adapter=NAME@champion"""

from raytune_llm import pipeline
from raytune_llm.config import run

if __name__ == "__main__":
    run("serve", pipeline.serve)
