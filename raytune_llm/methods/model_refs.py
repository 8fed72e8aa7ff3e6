"""What a method reads from the registry in addition to its base: reward models, a teacher, the adapter in which
training continues."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from raytune_llm.errors import InputError, first_line, require
from raytune_llm.methods.base import Method, ModelRefs, Needs, SamplingMethod, Session
from raytune_llm.models.base import Base
from raytune_llm.stores.card import Version
from raytune_llm.stores.registry import Registry


@contextmanager
def open_session(
    method: Method,
    base: Base,
    *,
    registry_dir: str,
    allow_modules: Sequence[str],
    batch_size: int,
    seed: int,
    use_gpu: bool,
) -> Iterator[Session | None]:
    """The session of a method that samples, with its files for as long as the context lasts; None for other methods."""
    if not isinstance(method, SamplingMethod):
        yield None
        return
    registry = Registry(registry_dir)
    with tempfile.TemporaryDirectory(prefix="model-refs-") as scratch:
        refs = ModelRefs(
            base=base,
            tokenizer=base.tokenizer(),
            folders={
                reference: registry.local_copy(registry.resolve(reference), Path(scratch))
                for reference in method.versions()
            },
            allow_modules=tuple(allow_modules),
            batch_size=batch_size,
            seed=seed,
            device="cuda" if use_gpu else "cpu",
        )
        yield method.session(refs)


@contextmanager
def initial_adapter(method: Method, registry_dir: str) -> Iterator[Path | None]:
    """The files of the adapter in which training continues, for as long as the context lasts; None where it starts
    from the base."""
    reference = method.needs.init_adapter
    if reference is None:
        yield None
        return
    registry = Registry(registry_dir)
    with tempfile.TemporaryDirectory(prefix="initial-") as scratch:
        yield registry.local_copy(registry.resolve(reference), Path(scratch))


def load_reference(base: Base, method: Method, registry_dir: str, *, use_gpu: bool) -> Any:
    """The model that training starts from, in eval mode: the base, or an adapter on it."""
    from raytune_llm.models.loading import load_model

    with initial_adapter(method, registry_dir) as folder:
        return load_model(base, None if folder is None else str(folder), use_gpu=use_gpu)


def resolve_ref(registry: Registry, key: str, reference: str, *, kind: str, base: Base) -> Version:
    """The version that a key names. Raises InputError when it is of another kind, or was trained on another base."""
    version = registry.resolve(reference)
    card = version.card
    if card.kind != kind:
        raise InputError(f"{key}={reference} is of kind {card.kind}; allowed: a version of kind {kind}")
    if card.base_revision != base.facts.revision_hash:
        raise InputError(
            f"{key}={reference} was trained on {card.base} ({card.base_revision[:12]}); this job's base is "
            f"{base.name_or_path} ({base.facts.revision_hash[:12]}): allowed: a version of the same base"
        )
    return version


def check_base(needs: Needs, base: Base) -> None:
    """Refuse an encoder-decoder base that the method can't train. Raises InputError."""
    if needs.decoder_only_reason is not None and base.facts.is_encoder_decoder:
        raise InputError(
            f"model.name_or_path={base.name_or_path} is an encoder-decoder base: {needs.decoder_only_reason}"
        )


def check_teacher(needs: Needs, base: Base, registry_dir: str) -> None:
    """Refuse a teacher of other tokens than the student's, and layers that a model doesn't have. Reads no weights.
    Raises InputError."""
    teacher, _ = resolve_teacher(needs.teacher, base, registry_dir)
    for key, layers, owner in (("layers", needs.layers, base), ("teacher_layers", needs.teacher_layers, teacher)):
        most = owner.facts.num_layers
        for layer in layers:
            require(
                -most - 1 <= layer <= most,
                f"method.{key}",
                layer,
                f"{-most - 1} to {most}: {owner.name_or_path} has {most} blocks",
            )


def resolve_teacher(reference: str | None, base: Base, registry_dir: str) -> tuple[Base, str | None]:
    """The teacher of a student: a base, and the folder of what is tuned on it (None: the base itself).

    Raises InputError when there is no such teacher, or its vocabulary isn't the student's. Reads no weights.
    """
    if reference is None:
        return base, None
    try:
        if "@" in reference:
            version = Registry(registry_dir).resolve(reference)
            if version.card.kind == "reward":
                raise InputError("it is a reward model, which has no distribution over tokens")
            found, folder = Base.from_loading(version.card.base_loading), version.path
        else:
            found, folder = replace(base, name_or_path=reference, revision=None, eos_token=None), None
        own, other = _vocabulary(base), _vocabulary(found)
        if found.facts.is_encoder_decoder != base.facts.is_encoder_decoder:
            raise InputError("one of teacher and student is an encoder-decoder model, the other is not")
        if own != other:
            raise InputError(
                f"its vocabulary of {len(other)} tokens isn't the student's of {len(own)} ({_differing(own, other)}); "
                "distributions over different tokens can't be compared: let it write rationales and labels instead "
                "(jobs/annotate.py)"
            )
    except InputError as error:
        raise InputError(f"method.teacher={reference}: {error}") from error
    return found, folder


@contextmanager
def teacher_model(needs: Needs, base: Base, registry_dir: str, *, device: str) -> Iterator[Any]:
    """The teacher itself, in eval mode on a device, where a method's trainer needs it; else None."""
    if not needs.teacher_model:
        yield None
        return
    from raytune_llm.models.loading import load_tuned

    found, folder = resolve_teacher(needs.teacher, base, registry_dir)
    if folder is None:
        yield found.load(device=device).eval()
        return
    with tempfile.TemporaryDirectory(prefix="teacher-") as scratch:
        registry = Registry(registry_dir)
        version = registry.resolve(str(needs.teacher))
        yield load_tuned(registry.local_copy(version, Path(scratch)), found, device=device)


def _vocabulary(base: Base) -> dict[str, int]:
    """Ids of the tokens; unlike Base.tokenizer, it never looks at weights."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base.name_or_path, revision=base.revision)
    except (ValueError, OSError) as error:  # transformers' for what isn't there or isn't a tokenizer
        raise InputError(f"no tokenizer could be read there ({first_line(error)})") from error
    return dict(tokenizer.get_vocab())


def _differing(own: dict[str, int], other: dict[str, int]) -> str:
    """The first token by which two vocabularies differ."""
    token = min(dict(set(own.items()) ^ set(other.items())), key=lambda text: own.get(text, other.get(text, 0)))
    return f"{token!r} is token {own.get(token)} of the student's and {other.get(token)} of the teacher's"
