"""The packages of the wheel: all of raytune_llm, and conf/, which is at the top of the repository, as raytune_llm.conf.

Everything else about the project is in pyproject.toml.
"""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["raytune_llm", "raytune_llm.*"]), "raytune_llm.conf"])
