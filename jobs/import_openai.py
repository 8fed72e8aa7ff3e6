"""Move from OpenAI's fine-tuning.    python jobs/import_openai.py data.train=exported/ model.name_or_path=…"""

from raytune_llm.jobs import commands
from raytune_llm.jobs.config import run

if __name__ == "__main__":
    run("import_openai", commands.import_openai)
