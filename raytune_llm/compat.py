"""Every call into the private parts of an upstream library, one function each; tests/test_compat.py pins their meaning.

Each function names the version that it was checked on. Libraries are imported inside the functions.

Private methods that a subclass here overrides stay in the subclass, and are pinned by the same tests:

    trl 1.16            DPOTrainer: _prepare_dataset, _precompute_ref_logps             methods/dpo.py
                        RLOOTrainer, GRPOTrainer, DistillationTrainer: _tokenize_prompts
                                                                                        methods/trainers/policy.py
    transformers 5.23   Trainer: _save, _load_from_checkpoint                           methods/trainers/loss_terms.py
    uvicorn 0.54        HttpToolsProtocol: its parser's callbacks, connections, cycle   serving/deploy/connections.py
"""

from __future__ import annotations

import importlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import GenerationConfig, LogitsProcessorList, PretrainedConfig, PreTrainedModel

T = TypeVar("T")


# Ray


def running_ray_address() -> str | None:
    """host:port of the cluster that ray.init() would join (RAY_ADDRESS, or `ray start` on this machine), None when it
    would start one. ray 2.60."""
    from ray._private.services import canonicalize_bootstrap_address

    return canonicalize_bootstrap_address(None)


@contextmanager
def loopback_node() -> Iterator[None]:
    """A Ray session that starts inside has 127.0.0.1 as its node's address and listens on nothing else, as Ray does on
    macOS; its processes inherit that. ray 2.60."""
    from ray._private import ray_constants

    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    variable = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[name]
        os.environ |= {} if variable is None else {name: variable}


def has_ray_token() -> bool:
    """Whether RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token holds a token, in any RAY_AUTH_MODE. Raises
    Ray's AuthenticationError when RAY_AUTH_TOKEN_PATH names no such file. ray 2.60."""
    return bool(_raylet().AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def needs_ray_token() -> bool:
    """Whether this process's Ray asks for a token and sends one, as RAY_AUTH_MODE was when it was read. ray 2.60."""
    return bool(_raylet().get_authentication_mode() == _raylet().AuthenticationMode.TOKEN)


def refresh_ray_authentication() -> None:
    """Have Ray read RAY_AUTH_MODE and the token again, which it does once otherwise; without a session. ray 2.60."""
    # in this order: a thread that reads the token in mode `token` ends the process when there is none
    _raylet().Config.initialize("")
    _raylet().AuthenticationTokenLoader.instance().reset_cache()


def _raylet() -> Any:
    """Ray's compiled part, of which mypy knows too little."""
    return importlib.import_module("ray._raylet")


def ray_gpu_count() -> int:
    """GPUs that Ray counts on this machine by NVML, 0 where that fails; CUDA_VISIBLE_DEVICES is not looked at.
    ray 2.60."""
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    return NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()


def free_cpus_by_node() -> list[float]:
    """CPUs that nothing reserves at present, of each live node of the connected cluster. ray 2.60."""
    from ray._private.state import available_resources_per_node

    return [float(resources.get("CPU", 0)) for resources in available_resources_per_node().values()]


def use_http_protocol(protocol: type) -> None:
    """Have every uvicorn server of this process that doesn't name one use this class for its connections; Ray Serve's
    proxy names none. uvicorn 0.54."""
    from uvicorn import config

    config.HTTP_PROTOCOLS["auto"] = f"{protocol.__module__}:{protocol.__qualname__}"


def ray_serve_port() -> int:
    """The port that the HTTP proxies of the running Ray Serve listen on. ray 2.60."""
    from ray.serve.context import _get_global_client

    return int(_get_global_client().http_config.port)


@dataclass(frozen=True)
class AutoscalerReport:
    """What the autoscaler of the connected cluster reported last."""

    starting: Mapping[str, int]
    """Nodes that it is starting, by node type."""
    starts_gpus: bool
    """Whether they have GPUs; autoscaler v2 reports no resources, so there any node counts."""
    unavailable: Mapping[str, str]
    """Node types that couldn't be started, with the reason."""


def autoscaler_report() -> AutoscalerReport | None:
    """The last report of the connected cluster's autoscaler; None for a cluster whose nodes are fixed. There, too, a
    monitor runs, which calls each node's type `node_` and the node's id. ray 2.60."""
    import ray
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    if is_autoscaler_v2(fetch_from_server=True):
        return _autoscaler_v2_report(ray.get_runtime_context().gcs_address)
    report = json.loads(_internal_kv_get("__autoscaling_status") or "{}").get("autoscaler_report") or {}
    if not any(_is_node_type(name) for name in (report.get("node_type_mapping") or {}).values()):
        return None
    starting = Counter(report["pending_launches"]) + Counter(node_type for _, node_type, _ in report["pending_nodes"])
    types = report["node_availability_summary"]["node_availabilities"]
    found = {name: one["unavailable_node_information"] for name, one in types.items() if not one["is_available"]}
    reasons = {name: f"{why['category']}: {why['description']}" if why else "" for name, why in found.items()}
    return AutoscalerReport(starting, report["pending_resources"].get("GPU", 0) > 0, reasons)


def _autoscaler_v2_report(gcs_address: str) -> AutoscalerReport | None:
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(gcs_address)
    nodes = [*status.active_nodes, *status.idle_nodes]
    if not any(_is_node_type(node.ray_node_type_name) for node in nodes):
        return None
    starting = Counter({launch.ray_node_type_name: launch.count for launch in status.pending_launches})
    starting += Counter(node.ray_node_type_name for node in status.pending_nodes)
    return AutoscalerReport(
        starting, bool(starting), {f.ray_node_type_name: f.details or "" for f in status.failed_launches}
    )


def _is_node_type(name: str) -> bool:
    """Whether an autoscaler's config has this node type; else it is what a monitor calls a fixed node."""
    return bool(name) and not name.startswith("node_")


def resume_trial(tune_controller: Any, trial: Any) -> None:
    """Let a trial continue whose report a scheduler of Ray Tune answered with NOOP, for which there is no public call.
    `tune_controller` is what the scheduler's methods receive. ray 2.60."""
    tune_controller._tune_controller._schedule_trial_train(trial)


# TRL


def score_labels_only() -> None:
    """Have TRL's trainers in this process project to the vocabulary only where a label is due, also on a CPU, where
    they would project every position to keep shapes static for compilers. trl 1.16."""
    from trl.trainer import utils

    utils._use_triton = lambda device: True


def using_adapter(model: Any, name: str | None) -> AbstractContextManager[None]:
    """A PeftModel with this adapter active, None = without any; afterwards the previous one is active again.
    trl 1.16."""
    from trl.trainer.utils import use_adapter

    return use_adapter(model, name)


# transformers


def has_architecture(auto_class: Any, config: PretrainedConfig) -> bool:
    """Whether an AutoModelFor… class has a model for this config. transformers 5.23."""
    return type(config) in auto_class._model_mapping


def hub_commit(name_or_path: str, revision: str | None) -> str | None:
    """The commit of a model on the hub, from where its config.json is cached; None for a folder. transformers 5.23."""
    from transformers.utils import cached_file, extract_commit_hash

    if Path(name_or_path).expanduser().is_dir():
        return None
    return extract_commit_hash(cached_file(name_or_path, "config.json", revision=revision), None)


def attention_implementation(model: PreTrainedModel) -> str | None:
    """The attention that a model runs with: sdpa, eager, … transformers 5.23."""
    return model.config._attn_implementation


def supports_sdpa(model: PreTrainedModel) -> bool:
    """Whether transformers runs a model's attention by torch's scaled_dot_product_attention. transformers 5.23."""
    return bool(model._supports_sdpa)


def is_stateful(model: Any) -> bool:
    """Whether a model keeps a recurrent state in place of a key-value cache. transformers 5.23."""
    return bool(getattr(model, "_is_stateful", False))


def exclude_from_saving(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Leave these parameters, by their full names, out of save_pretrained. transformers 5.23."""
    model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *names}


def set_checkpoint_function(block: nn.Module, function: Callable[..., Any]) -> None:
    """What a GradientCheckpointingLayer calls in training, as function(forward, *inputs), while its
    `gradient_checkpointing` is set. transformers 5.23."""
    block._gradient_checkpointing_func = function  # type: ignore[assignment]


def logits_processors(
    model: PreTrainedModel, config: GenerationConfig, *, prompt_length: int, encoder_ids: Tensor | None
) -> LogitsProcessorList:
    """The processors that model.generate would apply to each token's logits. transformers 5.23.

    Args:
        config: changed in place; its special tokens become tensors.
        prompt_length: tokens that the decoder has read.
        encoder_ids: the encoder's input, (1, T); None for causal models.
    """
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True, device=model.device)
    return model._get_logits_processor(
        config, input_ids_seq_length=prompt_length, encoder_input_ids=encoder_ids, device=str(model.device)
    )


# PEFT


def target_modules(config: Any, model: nn.Module) -> list[str]:
    """Full names of the modules that a PEFT config would adapt, in the model's order. peft 0.21."""
    from peft.tuners.tuners_utils import check_target_module_exists

    return [name for name, _ in model.named_modules() if name and check_target_module_exists(config, name)]


def value_of_pattern(pattern: Mapping[str, T], name: str, default: T) -> T:
    """A module's value in a PEFT rank_pattern or alpha_pattern, else the default. peft 0.21."""
    from peft.utils.other import get_pattern_key

    return pattern.get(get_pattern_key(list(pattern), name), default)


def switch_adapter(layers: Iterable[Any], name: str | None) -> None:
    """Make one adapter active in PEFT's layers, None = none, without set_adapter's walk over requires_grad: 2.9 ms on
    a base whose decoding step takes 2.1 ms. peft 0.21."""
    for layer in layers:
        layer._disable_adapters = name is None
        layer._active_adapter = [] if name is None else [name]


# Weights & Biases


def has_wandb_credentials() -> bool:
    """Whether wandb finds an API key (environment, netrc, settings); contacts no server, prompts for nothing.
    wandb 0.31.

    Raises:
        wandb.errors.AuthenticationError: it finds one of invalid format.
    """
    import wandb
    from wandb.sdk.lib import wbauth

    host = wandb.setup().settings.base_url
    found = wbauth.authenticate_session(host=host, source="raytune_llm", prompt=False, update_session=False)
    return found is not None


# py3langid


def language_classifier() -> Callable[[str], tuple[str, float]]:
    """py3langid's: a text's language, by its ISO 639 code, and its probability. The model, 68 MB, is unpacked in
    memory; the library takes a temporary file, for which there may be no room. py3langid 0.4."""
    from py3langid import langid, modelio

    theirs = modelio.tempfile
    modelio.tempfile = SimpleNamespace(TemporaryFile=lambda **_: io.BytesIO())
    try:
        return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True).classify
    finally:
        modelio.tempfile = theirs


# OmegaConf


def config_node(config: Any, name: Any) -> Any:
    """The unresolved node of a key: no exception for a missing value, None without such a key.
    omegaconf 2.3."""
    return config._get_node(name)


def is_null(node: Any) -> bool:
    """Whether a node's value is null. omegaconf 2.3."""
    return node._is_none()


def node_value(node: Any) -> Any:
    """A leaf's value as plain Python. omegaconf 2.3."""
    return node._value()


def config_root(node: Any) -> Any:
    """The outermost config that a node is part of. omegaconf 2.3."""
    return node._get_root()
