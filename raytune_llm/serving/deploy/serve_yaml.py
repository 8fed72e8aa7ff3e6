"""The endpoint as a file for `serve deploy`, Ray Serve's way to run it unattended on a cluster.

    python jobs/serve.py adapter=NAME@champion serve.config_file=endpoint.yaml …
    serve deploy endpoint.yaml

References are written as NAME@number and keys as hashes. To load and unload versions without a restart, edit `versions`
of user_config and deploy again; other changes replace replicas one after another. The cluster's nodes need this
package, and the registry and base at the paths in the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from raytune_llm.serving.catalog import read_catalog
from raytune_llm.serving.deploy.application import APPLICATION, DEPLOYMENT, QUIET, http_options, make_application
from raytune_llm.serving.deploy.config import Serve
from raytune_llm.stores.components import build, describe
from raytune_llm.stores.registry import Registry
from raytune_llm.stores.storage import is_local

BUILDER = "raytune_llm.serving:application"
"""What files name; a path that stays, because files outlive releases."""


def write(serve: Serve, registry_dir: str, references: Sequence[str]) -> Path:
    """Write serve.config_file; returns its path. Raises InputError for references that can't share an endpoint."""
    assert serve.config_file is not None
    file = Path(serve.config_file).expanduser().resolve()
    registry = Registry(registry_dir)
    versions = [version.reference for version in read_catalog(registry, references).versions]
    root = registry.root if not is_local(registry.root) else str(Path(registry.root).resolve())
    arguments = {
        "serve": describe(dataclasses.replace(serve, api_key_env=None, host="127.0.0.1", config_file=None)),
        "registry_dir": root,
        "versions": versions,
        "key_hashes": list(serve.key_hashes()),
    }
    content = {
        "proxy_location": "EveryNode",
        "http_options": http_options(serve),
        "logging_config": QUIET,
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": BUILDER,
                "args": arguments,
                "deployments": [{"name": DEPLOYMENT, "user_config": {"versions": versions}}],
            }
        ],
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return file


def application(arguments: dict[str, Any]) -> Any:
    """The Serve application of a file's args. Raises InputError for args that aren't a serve config."""
    serve: Serve = build(Serve, arguments["serve"], key="serve.")
    catalog = serve.engine.named(read_catalog(Registry(arguments["registry_dir"]), arguments["versions"]))
    return make_application(serve, arguments["registry_dir"], catalog, tuple(arguments["key_hashes"]))
