"""The base model that adapters sit on: how it is named, what it is, how it is loaded.

The recommended learning rate of a base that states none follows the fit of "LoRA Without Regret" (Schulman and Thinking
Machines Lab, 2025) for Llama shapes: 5e-4 · (2000 / hidden_size)^0.781 for adapters; full fine-tuning takes a tenth.
Only safetensors weights are read and no code from a model's repository is run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytune_llm.compat import has_architecture, hub_commit, supports_sdpa
from raytune_llm.data.demo import path as demo_path
from raytune_llm.errors import InputError, first_line
from raytune_llm.models.eos import EosToken, find_eos
from raytune_llm.models.folder_hash import folder_hash
from raytune_llm.models.load_options import check_load_options, device_map
from raytune_llm.stores.locations import LOCATION

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "demo:base"
"""What a card calls the embedded base."""
LONGEST_DEFAULT_CONTEXT = 2048
"""Tokens kept per record when data.max_tokens is null and the base could take more."""


class DType(Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float64 = "float64"


@dataclass(frozen=True, kw_only=True)
class Base:
    """A pretrained model, causal or encoder-decoder."""

    name_or_path: str = field(metadata=LOCATION)
    """Local folder, or id on the Hugging Face hub."""
    revision: str | None
    """Hub branch, tag or commit; null = main."""
    dtype: DType
    """Precision of the frozen weights; auto = bfloat16 on a GPU that has it, and on a CPU that multiplies faster in it
    for bases of at least 30 M parameters; else float32. Adapters, moments and losses are float32 in any case."""
    learning_rate: float | None
    """Recommended peak AdamW rate for a LoRA adapter on this base; null = by hidden size (see the module's formula)."""
    attention: str
    """transformers' attn_implementation: sdpa, eager, flash_attention_2 …"""
    chat_template: str | None = field(metadata=LOCATION)
    """Jinja template, or a path to one; null = the tokenizer's own, or the project's plain one when it has none."""
    eos_token: str | None
    """Token that ends an answer; null = the tokenizer's EOS, or its BOS when the base never learned its EOS."""
    from_pretrained: dict[str, Any]
    """Further arguments of transformers' from_pretrained: quantization_config (a mapping, e.g. {load_in_4bit: true}),
    experts_implementation, use_kernels. A quantised base takes one trial, not a pack."""

    def __post_init__(self) -> None:
        check_load_options(self.from_pretrained)

    @property
    def is_quantized(self) -> bool:
        """Whether its weights are quantised when they are loaded."""
        return bool(self.from_pretrained.get("quantization_config"))

    def recommended_rate(self) -> float:
        """Peak AdamW rate for an adapter."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 5e-4 * (2000 / self.facts.hidden_size) ** 0.781

    @cached_property
    def facts(self) -> Facts:
        """Read from the config and a weightless skeleton. Raises InputError when there is no such model."""
        return read_facts(self)

    @cached_property
    def eos(self) -> EosToken:
        """What ends answers. Raises InputError when eos_token isn't one token of this base."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.name_or_path, revision=self.revision)
        if self.eos_token is None:
            return find_eos(self.name_or_path, skeleton(self), tokenizer)
        if self.eos_token not in tokenizer.get_vocab():
            raise InputError(f"model.eos_token={self.eos_token} is not a token of {self.name_or_path}")
        return EosToken(self.eos_token, None)

    def loading(self) -> dict[str, Any]:
        """What a card keeps to load this base again; the embedded base by that name, wherever this package lies."""
        kept = {key: value.value if isinstance(value, Enum) else value for key, value in asdict(self).items()}
        return kept | ({"name_or_path": EMBEDDED} if self.name_or_path == str(demo_path("base")) else {})

    @classmethod
    def from_loading(cls, loading: dict[str, Any]) -> Base:
        embedded = {"name_or_path": str(demo_path("base"))} if loading["name_or_path"] == EMBEDDED else {}
        since: dict[str, Any] = {"from_pretrained": {}}  # not in cards that are older than this key
        return cls(**{**since, **loading, "dtype": DType(loading["dtype"]), **embedded})

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer with a chat template and a pad token, supplied where it has none of its own."""
        from transformers import AutoTokenizer

        from raytune_llm.data.tokenizing.template import supply_template

        tokenizer = AutoTokenizer.from_pretrained(self.name_or_path, revision=self.revision)
        tokenizer.eos_token = self.eos.token
        if self.chat_template is not None:
            tokenizer.chat_template = template_text(self.chat_template)
        supply_template(tokenizer)
        return tokenizer

    def load(self, *, own_dropout: bool = True, score: bool = False, device: str = "cpu") -> PreTrainedModel:
        """The model in its dtype on a device, cpu or cuda, parameters as stored, with or without its own dropout; with
        `score`, as a reward model (models/reward_head.py)."""
        from transformers import AutoConfig
        from transformers.utils import logging

        from raytune_llm.models.attention import prepare_attention

        prepare_attention()
        logging.disable_progress_bar()
        config = AutoConfig.from_pretrained(self.name_or_path, revision=self.revision)
        options: dict[str, Any] = {"revision": self.revision, **self.weight_options(device)}
        if not own_dropout:
            options["config"] = without_dropout(config)
        if score:
            from raytune_llm.models.reward_head import load_scorer

            return load_scorer(self.name_or_path, self.tokenizer(), **options | {"config": config})
        model = auto_class(self.facts.is_encoder_decoder).from_pretrained(self.name_or_path, **options)
        model.generation_config.do_sample = False
        return model

    def resolved(self, device: str) -> Base:
        """This base with the dtype that auto means on a device, to be loaded in it elsewhere."""
        return replace(self, dtype=DType(str(self.torch_dtype(device)).removeprefix("torch.")))

    def torch_dtype(self, device: str) -> Any:
        """The torch.dtype of its weights on a device, cpu or cuda, on which auto depends."""
        import torch

        from raytune_llm.models.cpu_dtype import prefers_bf16

        if self.dtype is not DType.auto:
            return getattr(torch, self.dtype.value)
        if torch.device(device).type == "cuda":
            has_bf16 = torch.cuda.is_bf16_supported()
        else:
            has_bf16 = prefers_bf16(self.facts.hidden_size, self.facts.num_parameters)
        return torch.bfloat16 if has_bf16 else torch.float32

    def cpu_dtype_note(self) -> str | None:
        """What auto means on this CPU and why, in a line; None where it could mean nothing else."""
        from raytune_llm.models.cpu_dtype import SMALLEST_BASE, bf16_gain

        if self.dtype is not DType.auto or self.facts.num_parameters < SMALLEST_BASE:
            return None
        name, gain = str(self.torch_dtype("cpu")).removeprefix("torch."), bf16_gain(self.facts.hidden_size)
        return f"model.dtype=auto: {name} (this CPU multiplies {gain:.1f}× as fast in bfloat16 as in float32)"

    def weight_options(self, device: str) -> dict[str, Any]:
        """The arguments of from_pretrained that load weights onto a device without a detour through CPU memory, also
        those of a model that was tuned from this base as a whole."""
        return {
            "dtype": self.torch_dtype(device),
            "attn_implementation": self.attention,
            "use_safetensors": True,
            **self.from_pretrained,
            **device_map(device),
        }


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What can be known of a base without its weights."""

    architecture: str
    is_encoder_decoder: bool
    hidden_size: int
    num_layers: int
    """Blocks; of an encoder-decoder model the decoder's."""
    context_tokens: int | None
    """Longest sequence it was built for; None = no bound (relative positions)."""
    num_parameters: int
    max_lora_rank: int
    """Smallest side of any linear layer that takes an adapter: a larger rank would add no freedom."""
    revision_hash: str
    """sha256 over the names, sizes and contents of config.json and the weight files; the hub's commit for hub ids."""

    def max_tokens(self, requested: int | None) -> int:
        """Tokens a record may have: those requested, within the context. Raises InputError when the context is
        exceeded."""
        if requested is None:
            return min(self.context_tokens or LONGEST_DEFAULT_CONTEXT, LONGEST_DEFAULT_CONTEXT)
        if self.context_tokens is not None and requested > self.context_tokens:
            raise InputError(
                f"data.max_tokens={requested} is more than the base's context of {self.context_tokens} tokens; "
                f"set it to {self.context_tokens} or less, or to null for the longest it can take"
            )
        return requested


def linear_targets(model: PreTrainedModel) -> list[str]:
    """Full names of the linear layers that take an adapter: all but the output head, or a reward model's."""
    from torch import nn

    from raytune_llm.models.reward_head import heads

    head = model.get_output_embeddings()
    others = tuple(f"{name}." for name in heads(model))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and not f"{name}.".startswith(others)
    ]


def read_facts(base: Base) -> Facts:
    """Facts of a base. Raises InputError as `skeleton` does."""
    model = skeleton(base)
    config = model.config
    sides = [min(model.get_submodule(name).weight.shape) for name in linear_targets(model)]
    return Facts(
        architecture=type(model).__name__,
        is_encoder_decoder=bool(config.is_encoder_decoder),
        hidden_size=config.get_text_config().hidden_size,
        num_layers=_num_layers(config),
        context_tokens=_context(config),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        max_lora_rank=min(sides, default=0),
        revision_hash=_revision_hash(base.name_or_path, base.revision),
    )


def skeleton(base: Base, *, score: bool = False) -> PreTrainedModel:
    """The model without weights, with `score` as a reward model. Raises InputError naming model.name_or_path when there
    is none, or none of a known shape, and for sdpa where it has none."""
    import torch
    from transformers import AutoConfig

    _require_model_folder(base.name_or_path)
    try:
        config = AutoConfig.from_pretrained(base.name_or_path, revision=base.revision)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model.name_or_path={base.name_or_path}: no model could be read there ({first_line(error)}); "
            "give a local folder with config.json, or the id of a model on the hub that this machine can reach"
        ) from error
    if not has_architecture(auto_class(config.is_encoder_decoder), config):
        raise InputError(
            f"model.name_or_path={base.name_or_path} is a {config.model_type} model, which transformers offers "
            "neither as a causal nor as an encoder-decoder language model"
        )
    auto = auto_class(config.is_encoder_decoder, score=score)
    if not has_architecture(auto, config):
        raise InputError(
            f"model.name_or_path={base.name_or_path} is a {config.model_type} model, which transformers doesn't offer "
            "with a score head (AutoModelForSequenceClassification); methods that need one can't use it"
        )
    if score:
        config.num_labels = 1
    with torch.device("meta"):
        model = auto.from_config(config)
    if base.attention == "sdpa" and not supports_sdpa(model):
        raise InputError(f"model.attention=sdpa: transformers has none for {type(model).__name__}; set it to eager")
    return model


def without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    """The config with every dropout probability at 0."""
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def auto_class(is_encoder_decoder: bool, *, score: bool = False) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    if score:
        return AutoModelForSequenceClassification
    return AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM


def _num_layers(config: PretrainedConfig) -> int:
    for name in ("num_decoder_layers", "decoder_layers") if config.is_encoder_decoder else ():
        if hasattr(config, name):
            return int(getattr(config, name))
    return int(config.get_text_config().num_hidden_layers)


def _context(config: PretrainedConfig) -> int | None:
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return getattr(config, "n_positions", None) if found is None else found


def _require_model_folder(name_or_path: str) -> None:
    """Say at once what is missing of a local folder, instead of asking the hub for an id of that name."""
    folder = Path(name_or_path).expanduser()
    looks_local = folder.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") != 1
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            found = sorted(entry.name for entry in folder.iterdir())[:8]
            raise InputError(f"model.name_or_path={name_or_path} has no config.json; found {found}")
        if not list(folder.glob("*.safetensors")):
            raise InputError(
                f"model.name_or_path={name_or_path} has no *.safetensors weights; other formats are not loaded"
            )
    elif looks_local and ("/" in name_or_path or folder.exists()):
        raise InputError(f"model.name_or_path={name_or_path}: no such folder")


def _revision_hash(name_or_path: str, revision: str | None) -> str:
    return hub_commit(name_or_path, revision) or folder_hash(Path(name_or_path).expanduser())


def template_text(value: str) -> str:
    """The chat template that model.chat_template gives, itself or in a file. Raises InputError for neither."""
    if "{" in value:
        return value
    file = Path(value).expanduser()
    if not file.is_file():
        what = "a folder" if file.is_dir() else "no such file"
        parent = file if file.is_dir() else file.parent
        found = sorted(entry.name for entry in parent.iterdir())[:8] if parent.is_dir() else []
        where = f"; {parent} has {', '.join(found)}" if found else ""
        raise InputError(f"model.chat_template={value}: {what}, and no Jinja template, which has braces{where}")
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"model.chat_template={value}: can't be read: {first_line(error)}") from error
