"""A registry that grows while it is served."""

import pytest
from serving_world import make_base, publish, write_adapter

from raytune_llm.stores.registry import Registry


@pytest.fixture
def growing(tmp_path):
    """A registry with wit@1, and what publishes more to it: `more(name, seed, **options)`."""
    base = make_base(tmp_path / "tiny")
    registry = Registry(str(tmp_path / "registry"))

    def more(name, seed, *, kind="adapter", **options):
        folder = write_adapter(base, tmp_path / f"{name}{seed}", seed=seed, **options)
        return publish(registry, base, name, folder, kind=kind)

    more("wit", 1)
    return registry, more
