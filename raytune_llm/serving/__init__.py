"""Tuned versions behind an OpenAI-compatible endpoint: deploy/ (where it runs), api/ (what clients see), verify/ (the
parity check), engine/ (how it decodes), catalog.py (what is served)."""

from __future__ import annotations

from typing import Any


def application(arguments: dict[str, Any]) -> Any:
    """What `serve deploy` builds from the args of a file that serve.config_file wrote."""
    from raytune_llm.serving.deploy import serve_yaml

    return serve_yaml.application(arguments)
