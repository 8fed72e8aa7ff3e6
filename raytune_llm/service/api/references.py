"""What a request names: models and data. What isn't the asker's doesn't exist."""

from __future__ import annotations

import re

from raytune_llm.errors import InputError
from raytune_llm.service.api.backend import Backend
from raytune_llm.service.api.uploads import FINE_TUNE
from raytune_llm.service.records import DataRef, owns_name
from raytune_llm.serving.api.errors import ApiError, invalid
from raytune_llm.stores.card import Version

REFERENCE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})(@[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")
URI = re.compile(r"[A-Za-z0-9._~/+@=:-]+")
"""Characters of a URI that have no meaning to a shell, a pattern of file names, or a config."""


def data_ref(backend: Backend, owner: str, name: str, param: str) -> DataRef:
    """Records by a file's id, or by a URI that may be read. Raises ApiError."""
    file = backend.file(name, owner)
    if file is not None and file.purpose != FINE_TUNE:
        raise invalid(f"{name} has the purpose {file.purpose}; allowed: {FINE_TUNE}", param=param)
    if file is not None:
        return DataRef(name=name, location=file.location)
    prefixes = backend.service.data_prefixes
    if "/" in name and not any(_is_below(name, prefix) for prefix in prefixes):
        allowed = f"; locations may begin with {', '.join(prefixes)}" if prefixes else ""
        raise invalid(f"{param} must be the id of a file uploaded to /v1/files{allowed}", param=param)
    if "/" in name:
        return DataRef(name=name, location=name)
    raise ApiError(404, f"no such file: {name}", code="not_found", param=param)


def _is_below(uri: str, prefix: str) -> bool:
    """Whether a URI lies below a folder: nothing in the rest of it leads elsewhere."""
    folder = prefix.rstrip("/") + "/"
    rest = uri.removeprefix(folder)
    return (
        uri.startswith(folder)
        and URI.fullmatch(rest) is not None
        and all(part not in ("", ".", "..") for part in rest.split("/"))
    )


def base_and_version(backend: Backend, owner: str, model: str, param: str) -> tuple[str, Version | None]:
    """The offered base that a model is or was tuned from, and the version that it is. Raises ApiError."""
    if model in backend.bases:
        return model, None
    found = REFERENCE.fullmatch(model)
    if found is not None and owns_name(owner, found[1]):
        try:
            version = backend.registry.resolve(model)
        except InputError:
            raise _no_model(backend, model, param) from None
        base = _offered(backend, version)
        if base is None or version.card.kind != "adapter":
            text = f"{version.reference} is a {version.card.kind} of {version.card.base}; only adapters of "
            raise invalid(f"{text}{_names(backend)} can be continued", param=param)
        return base, version
    raise _no_model(backend, model, param)


def _offered(backend: Backend, version: Version) -> str | None:
    """The offered base that a version was tuned from."""
    loading = version.card.base_loading
    same = {name: base.loading() for name, base in backend.bases.items()}
    whole = (name for name, one in same.items() if one == loading)
    weights = ("name_or_path", "revision")
    alike = (name for name, one in same.items() if all(one[key] == loading.get(key) for key in weights))
    return next(whole, None) or next(alike, None)


def _no_model(backend: Backend, model: str, param: str) -> ApiError:
    text = f"the model '{model}' does not exist; offered: {_names(backend)}, and what was tuned from them"
    return ApiError(404, text, code="model_not_found", param=param)


def _names(backend: Backend) -> str:
    return ", ".join(backend.bases)
