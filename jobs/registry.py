"""List, show, alias, roll back tuned models.    python jobs/registry.py action=list"""

from raytune_llm import pipeline
from raytune_llm.config import run

if __name__ == "__main__":
    run("registry", pipeline.registry)
