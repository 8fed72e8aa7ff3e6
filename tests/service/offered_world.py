"""Offered bases and versions of them, without weights."""

from types import SimpleNamespace

import numpy
from safetensors.numpy import save_file

from raytune_llm.models.base import DType
from raytune_llm.service.api.chat import PATHS
from raytune_llm.stores.card import Card
from raytune_llm.stores.registry import CHAMPION, Registry

BASES = ["tiny", "small"]


def offered(**revisions):
    """Bases by name, each with the hash of its weights."""
    return {
        name: SimpleNamespace(facts=SimpleNamespace(revision_hash=revision), dtype=DType.float32)
        for name, revision in revisions.items()
    }


def publish(root, name, *, revision, kind="adapter", champion=False):
    """A version of one small weight."""
    source = root / "source"
    source.mkdir(exist_ok=True)
    (source / "config.json").write_text("{}")
    save_file({"weight": numpy.ones(2, dtype=numpy.float32)}, source / "model.safetensors")
    card = Card(
        kind=kind,
        base="tiny",
        base_revision=revision,
        base_loading={"dtype": "float32"},
        method="sft",
        metrics={},
        intervals={},
        config={},
        data={},
        seed=0,
        step=1,
        probes=[],
        code_version="test",
    )
    registry = Registry(str(root / "registry"))
    version = registry.publish(name, source, card)
    return registry.alias(version.reference, CHAMPION) if champion else version


def asked(client, model, path=PATHS[0], **fields):
    """What the app behind was asked."""
    response = client.post(path, json={"model": model, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def kept_as(id, **fields):
    return {"id": id, "object": "model", **fields}
