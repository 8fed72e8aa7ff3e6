"""A tuning service in OpenAI's and Vertex's words.    python jobs/service.py home=… service.port=8080 model=demo"""

from raytune_llm.jobs import commands
from raytune_llm.jobs.config import run

if __name__ == "__main__":
    run("service", commands.service)
