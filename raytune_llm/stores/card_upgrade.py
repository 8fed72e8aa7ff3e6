"""Cards of earlier formats, brought to the present one when they are read: work on plain dicts, no component is built.

Format 1 named each dataclass by its class path (`_target_`); format 2 names only choices, by short names (`type`).
Keys that were renamed are brought to their new names here, so nothing else knows an old one, and keys that were added
get the value that means what was done before. To rename or add a key of a component, add a function to UPGRADES under
the component's class name of format 1; one that is added to a method belongs into ADDED, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMAT = 2
"""The format of cards written today."""
TARGET = "_target_"

NAMES = {
    "SFT": "sft",
    "DSS": "dss",
    "DPO": "dpo",
    "RLHF": "rlhf",
    "Reward": "reward",
    "Distill": "distill",
    "DistillAverage": "distill_ema",
    "DistillFeature": "distill_feature",
    "DistillRelation": "distill_relation",
    "DistillOnPolicy": "distill_on_policy",
    "Transformers": "transformers",
    "VLLM": "vllm",
    "LoRA": "lora",
    "Full": "full",
    "NoTeacher": "none",
    "LocalTeacher": "local",
    "VersionTeacher": "version",
    "OpenAITeacher": "openai",
    "TensorBoard": "tensorboard",
    "WandB": "wandb",
    "Grid": "grid",
    "Random": "random",
    "Optuna": "optuna",
    "Auto": "auto",
    "Packed": "packed",
    "RayTrain": "ray_train",
    "ASHA": "asha",
    "HyperBand": "hyperband",
    "Median": "median",
    "RunAll": "none",
    "LocalEngine": "local",
    "VllmEngine": "vllm",
}
"""Class names of the choices of format 1, with their short names; all other classes were plain."""


def upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a card.json in the present format. Raises ValueError for a format that isn't known here."""
    match content.get("format", 1):
        case 2:
            return content | {"config": _completed(content["config"])}
        case 1:
            return _from_1(content)
        case other:
            raise ValueError(f"format={other} is not allowed; allowed: 1 to {FORMAT}; a later raytune_llm reads it")


def _from_1(content: dict[str, Any]) -> dict[str, Any]:
    config = upgraded_config(content["config"])
    method = config["method"]["type"] if "method" in config else content["method"]
    return content | {
        "format": FORMAT,
        "config": config,
        "method": method,
        "base_loading": _base(content["base_loading"]),
    }


def upgraded_config(value: Any) -> Any:
    """A config of format 1, or any part of one, in the present format."""
    if isinstance(value, list):
        return [upgraded_config(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    fields = {name: upgraded_config(entry) for name, entry in value.items() if name != TARGET}
    name = str(value.get(TARGET, "")).rpartition(".")[2]
    fields = UPGRADES.get(name, lambda same: same)(fields)
    return {"type": NAMES[name], **fields} if name in NAMES else fields


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """A config of format 2 with the keys that were added since."""
    if "method" not in config:
        return config
    method = config["method"]
    found = config | {"method": ADDED.get(method["type"], {}) | method, **_promote(config)}
    return found | {name: added | found[name] for name, added in SINCE.items() if name in found}


def _base(fields: dict[str, Any]) -> dict[str, Any]:
    return _renamed(fields, end_token="eos_token") | {"from_pretrained": {}}


def _scaling(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"gpus_per_worker": 1.0, "wait_seconds": 900.0, "usd_per_hour": None, "trainer": {}}


def _job(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"plan": False, **_promote(fields)}


def _promote(fields: dict[str, Any]) -> dict[str, Any]:
    """`promote` as a group, which was the value of its `when`."""
    when = fields.get("promote")
    return {"promote": {"when": when, "max_drift": None}} if isinstance(when, str) else {}


def _sweep(fields: dict[str, Any]) -> dict[str, Any]:
    bounds = dict.fromkeys(("hours", "gpu_hours", "usd", "tokens", "trials"))
    switches = dict.fromkeys(("warm_start", "stop_when_unresolvable", "extend", "more_labels"), False)
    return fields | {"first": [], "budget": bounds} | switches | SINCE["sweep"]


def _packed(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"compile": False}


def _evaluation(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"answers_per_eval": 64} | SINCE["evaluation"]


def _data(fields: dict[str, Any]) -> dict[str, Any]:
    added = {"columns": {}, "ignore": [], "on_error": "stop", "strict": False, "subset": 1.0, "weights": {}}
    return fields | added | SINCE["data"]


def _local_engine(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"cache_bytes": None, "prefill_chunk_tokens": None, "compile": False}


def _serve(fields: dict[str, Any]) -> dict[str, Any]:
    added = {
        "max_waiting_requests": 64,
        "body_timeout_seconds": 30.0,
        "drain_seconds": fields["request_timeout_seconds"],
    }
    return fields | added | {"cors_origins": [], "follow_seconds": 0.0, "discover": False}


def _wandb(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"sweep": None, "upload_winner": False}


def _new_adapter(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"init_adapter": None}


def _top_k(fields: dict[str, Any]) -> dict[str, Any]:
    return _renamed(fields, num_candidates="teacher_top_k")


def _rlhf(fields: dict[str, Any]) -> dict[str, Any]:
    """Rewards, each of which had keys of its own in format 1, and the algorithm become choices."""
    old = {name: fields.pop(name) for name in REWARD_KEYS}
    rewards = {
        "model": {"adapter": old["reward_adapter"], "steps": old["reward_steps"], "method": old["reward"]},
        "exact": {},
        "pattern": {"regex": old["pattern"]},
        "function": {"name": old["function"]},
    }
    used = {
        name: {"type": name, "weight": weight, **rewards[name]} for name in rewards if (weight := old[f"{name}_weight"])
    }
    return fields | {"algorithm": {"type": fields["algorithm"]}, "rewards": used}


REWARD_KEYS = (
    "reward_adapter",
    "reward_steps",
    "reward",
    "model_weight",
    "exact_weight",
    "pattern",
    "pattern_weight",
    "function",
    "function_weight",
)
"""Of rlhf in format 1."""


def _renamed(fields: dict[str, Any], **names: str) -> dict[str, Any]:
    """The fields with old names replaced by new ones, in the same order."""
    return {names.get(name, name): value for name, value in fields.items()}


ADDED: dict[str, dict[str, Any]] = {"sft": {"init_adapter": None}, "dss": {"init_adapter": None}}
"""By the short name of a method: keys that were added since format 2, as they were meant before."""
HARNESS: dict[str, Any] = {
    "tasks": [],
    "include_path": None,
    "limit": None,
    "num_fewshot": None,
    "batch_size": 8,
    "apply_chat_template": False,
}
SINCE: dict[str, dict[str, Any]] = {
    "data": {"guard": None},
    "evaluation": {
        "drift": False,
        "drift_prompts": 32,
        "drift_tokens": 32,
        "judge": {"type": "none"},
        "harness": HARNESS,
    },
    "sweep": {"confirm": {"top": 0, "seeds": 0, "records": "auto"}},
}
"""By part of a job: the same of keys that are no method's."""
UPGRADES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "Base": _base,
    "Scaling": _scaling,
    "TrainJob": _job,
    "SweepJob": _job,
    "Sweep": _sweep,
    "Auto": _packed,
    "Packed": _packed,
    "LocalEngine": _local_engine,
    "Serve": _serve,
    "Data": _data,
    "Evaluation": _evaluation,
    "WandB": _wandb,
    "SFT": _new_adapter,
    "DSS": _new_adapter,
    "Distill": _top_k,
    "DistillAverage": _top_k,
    "DistillOnPolicy": _top_k,
    "RLHF": _rlhf,
}
"""By class name of format 1: what makes today's fields of a component's fields, in which nested ones are done."""
