"""Each private call into an upstream library, against the library itself: fails when upstream moves or changes it."""

import ast
import dataclasses
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from worlds import llama, t5, tokenizer

from raytune_llm import compat

PACKAGE = Path(compat.__file__).parent
PROMPT = torch.tensor([[5, 6, 7, 5, 6]])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return llama(300).eval()


def adapted(model, **options):
    """A PeftModel with two random adapters, `default` and `other`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options)
    found = get_peft_model(model, config)
    found.add_adapter("other", config)
    return found.eval()


def logits(model):
    with torch.no_grad():
        return model(PROMPT).logits


def test_trl_scores_labels_only(model, monkeypatch):
    """The same log-probabilities and gradients, from as many rows of the head as there are labels."""
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    labels = torch.tensor([[-100, -100, 7, -100, 6]])
    utils.add_fused_lm_head(model)
    function, rows = utils._ChunkedLogProbFunction, []
    weight = model.model.layers[0].self_attn.q_proj.weight

    class Counting:
        @staticmethod
        def apply(hidden, *others):
            rows.append(len(hidden))
            return function.apply(hidden, *others)

    def run():
        found = model(PROMPT, labels=labels, fused_lm_head=True).log_probs
        return found.detach(), *torch.autograd.grad(found.sum(), weight)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Counting)
    monkeypatch.setattr(utils, "_use_triton", chunked_logprob._use_triton)
    expected = run()
    compat.score_labels_only()
    found = run()
    assert rows == [4, 2]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)


def test_importing_it_imports_no_library():
    heavy = ("torch", "ray", "transformers", "trl", "peft", "wandb", "omegaconf")
    code = f"import sys, raytune_llm.compat; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_running_ray_address(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6399")
    assert compat.running_ray_address().endswith(":6399")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert compat.running_ray_address() is None


def test_loopback_node(monkeypatch):
    """Also of processes that start inside; test_session.py looks at their sockets."""
    from ray.util import get_node_ip_address

    monkeypatch.setattr("ray._private.worker._global_node", None)
    before = os.environ.copy()
    with compat.loopback_node():
        assert get_node_ip_address() == "127.0.0.1"
        asks = [sys.executable, "-c", "import ray; print(ray.util.get_node_ip_address())"]
        assert subprocess.run(asks, capture_output=True, text=True, check=True).stdout == "127.0.0.1\n"
    assert os.environ == before


def test_ray_token(monkeypatch, tmp_path):
    from ray.exceptions import AuthenticationError

    with monkeypatch.context() as changed:
        changed.setenv("HOME", str(tmp_path))
        changed.delenv("RAY_AUTH_TOKEN", raising=False)
        changed.setenv("RAY_AUTH_MODE", "disabled")
        compat.refresh_ray_authentication()
        assert (compat.has_ray_token(), compat.needs_ray_token()) == (False, False)
        changed.setenv("RAY_AUTH_TOKEN", "a-word")
        changed.setenv("RAY_AUTH_MODE", "token")
        assert not compat.needs_ray_token()  # read once
        compat.refresh_ray_authentication()
        assert (compat.has_ray_token(), compat.needs_ray_token()) == (True, True)
        changed.delenv("RAY_AUTH_TOKEN")
        changed.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
        changed.setenv("RAY_AUTH_MODE", "disabled")
        compat.refresh_ray_authentication()
        with pytest.raises(AuthenticationError, match="RAY_AUTH_TOKEN_PATH is set but file cannot be opened"):
            compat.has_ray_token()
    compat.refresh_ray_authentication()


def test_ray_gpu_count():
    """By NVML, which this machine may lack."""
    assert compat.ray_gpu_count() >= 0


def test_free_cpus_by_node(ray_session):
    import ray

    def seen():
        return compat.free_cpus_by_node()

    assert compat.free_cpus_by_node() == [2.0]
    assert ray.get(ray.remote(num_cpus=1)(seen).remote()) == [1.0]


def test_a_cluster_of_fixed_nodes_has_no_autoscaler(ray_session):
    """Its monitor must have reported for that to be seen."""
    from ray.experimental.internal_kv import _internal_kv_get

    deadline = time.monotonic() + 30
    while b"autoscaler_report" not in (_internal_kv_get("__autoscaling_status") or b""):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert compat.autoscaler_report() is None


def autoscaler_status(**changed):
    """What Ray's monitor writes, from Ray's own class of it."""
    from ray.autoscaler._private.autoscaler import AutoscalerSummary

    summary = AutoscalerSummary(
        **{
            "active_nodes": {"head": 1},
            "idle_nodes": None,
            "pending_nodes": [],
            "pending_launches": {},
            "failed_nodes": [],
            "node_type_mapping": {"ip": "head"},
            **changed,
        }
    )
    return json.dumps({"autoscaler_report": dataclasses.asdict(summary)}).encode()


def test_autoscaler_report(ray_session, monkeypatch):
    from ray.autoscaler._private.node_provider_availability_tracker import (
        NodeAvailabilityRecord,
        NodeAvailabilitySummary,
        UnavailableNodeInformation,
    )

    def report(**changed):
        status = autoscaler_status(**changed)
        monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", lambda key: status)
        return compat.autoscaler_report()

    assert report() == compat.AutoscalerReport({}, False, {})
    assert report(node_type_mapping={"ip": "node_0123"}) is None
    records = {
        "gpu": NodeAvailabilityRecord("gpu", False, 0.0, UnavailableNodeInformation("NoCapacity", "none left")),
        "cpu": NodeAvailabilityRecord("cpu", True, 0.0, None),
    }
    found = report(
        pending_launches={"gpu": 2},
        pending_nodes=[("10.0.0.7", "gpu", "setting-up")],
        pending_resources={"CPU": 4, "GPU": 3},
        node_availability_summary=NodeAvailabilitySummary(records),
    )
    assert found == compat.AutoscalerReport({"gpu": 3}, True, {"gpu": "NoCapacity: none left"})
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", lambda key: None)
    assert compat.autoscaler_report() is None


def test_autoscaler_v2_report(ray_session, monkeypatch):
    from ray.autoscaler.v2.schema import ClusterStatus, LaunchRequest, NodeInfo

    def node(name):
        return NodeInfo("g6.xlarge", name, "id", "ip")

    def launch(state, **more):
        return LaunchRequest("g6", "gpu", 2, LaunchRequest.Status[state], 0, **more)

    def report(**status):
        found = ClusterStatus(**status)
        monkeypatch.setattr("ray.autoscaler.v2.utils.is_autoscaler_v2", lambda **_: True)
        monkeypatch.setattr("ray.autoscaler.v2.sdk.get_cluster_status", lambda address: found)
        return compat.autoscaler_report()

    assert report(active_nodes=[node("node_0123")]) is None
    assert report(idle_nodes=[node("head")]) == compat.AutoscalerReport({}, False, {})
    found = report(
        active_nodes=[node("head")],
        pending_launches=[launch("PENDING")],
        pending_nodes=[node("gpu")],
        failed_launches=[launch("FAILED", details="no quota")],
    )
    assert found == compat.AutoscalerReport({"gpu": 3}, True, {"gpu": "no quota"})


def test_ray_serve_port(monkeypatch):
    """Ray Serve's client has the options that it was started with."""
    from ray.serve import context
    from ray.serve._private.client import ServeControllerClient
    from ray.serve.config import HTTPOptions

    assert inspect.signature(context._get_global_client).parameters
    assert isinstance(ServeControllerClient.http_config, property)
    client = type("Client", (), {"http_config": HTTPOptions(port=8123)})
    monkeypatch.setattr(context, "_get_global_client", lambda: client)
    assert compat.ray_serve_port() == 8123


def test_using_adapter(model):
    base = logits(model)
    peft_model = adapted(model)
    own = logits(peft_model)
    with compat.using_adapter(peft_model, "other"):
        other = logits(peft_model)
    with compat.using_adapter(peft_model, None):
        assert torch.equal(logits(peft_model), base)
    assert torch.equal(logits(peft_model), own)
    peft_model.set_adapter("other")
    assert torch.equal(logits(peft_model), other) and not torch.equal(other, own)


def test_has_architecture():
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, T5Config

    assert compat.has_architecture(AutoModelForCausalLM, LlamaConfig())
    assert not compat.has_architecture(AutoModelForCausalLM, T5Config())
    assert compat.has_architecture(AutoModelForSeq2SeqLM, T5Config())


def test_supports_sdpa():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, T5GemmaConfig, T5GemmaForConditionalGeneration

    with torch.device("meta"):
        assert compat.supports_sdpa(LlamaForCausalLM(LlamaConfig(num_hidden_layers=1)))
        assert not compat.supports_sdpa(T5GemmaForConditionalGeneration(T5GemmaConfig()))


def test_hub_commit(tmp_path, monkeypatch):
    from transformers import LlamaConfig

    commit = "0123456789abcdef" * 2 + "01234567"
    repository = tmp_path / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    LlamaConfig().save_pretrained(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert compat.hub_commit("org/name", None) == compat.hub_commit("org/name", "main") == commit
    LlamaConfig().save_pretrained(tmp_path / "folder")
    assert compat.hub_commit(str(tmp_path / "folder"), None) is None


def test_attention_implementation(model):
    from transformers import LlamaForCausalLM

    assert compat.attention_implementation(model) == "sdpa"
    eager = LlamaForCausalLM._from_config(model.config, attn_implementation="eager")
    assert compat.attention_implementation(eager) == "eager"


def test_is_stateful(model):
    from transformers import MambaConfig, MambaForCausalLM

    with torch.device("meta"):
        assert compat.is_stateful(MambaForCausalLM(MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=9)))
    assert not compat.is_stateful(model) and not compat.is_stateful(torch.nn.Linear(1, 1))


def test_exclude_from_saving(model, tmp_path):
    from safetensors.torch import load_file

    model.add_module("extra", torch.nn.Linear(2, 2))
    compat.exclude_from_saving(model, ["extra.weight"])
    compat.exclude_from_saving(model, ["extra.bias"])
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert "model.norm.weight" in saved and not [name for name in saved if "extra" in name]


def test_set_checkpoint_function(model):
    expected = logits(model)
    calls = []

    def run(function, *args):
        calls.append(function)
        return function(*args)

    for block in model.model.layers:
        compat.set_checkpoint_function(block, run)
    assert torch.equal(logits(model), expected) and not calls
    for block in model.model.layers:
        block.gradient_checkpointing = block.training = True
    assert torch.equal(logits(model), expected) and len(calls) == len(model.model.layers)


@pytest.mark.parametrize("shape", [llama, t5])
def test_logits_processors(shape):
    """Greedy decoding by hand through the processors is that of generate."""
    torch.manual_seed(1)
    model = shape(300).eval()
    config = model.generation_config
    config.update(repetition_penalty=3.0, no_repeat_ngram_size=2, do_sample=False, max_new_tokens=6, eos_token_id=None)
    is_encoder_decoder = model.config.is_encoder_decoder
    expected = model.generate(PROMPT)
    seen = torch.zeros(1, 1, dtype=torch.long) if is_encoder_decoder else PROMPT
    processors = compat.logits_processors(
        model, config, prompt_length=seen.shape[1], encoder_ids=PROMPT if is_encoder_decoder else None
    )
    for _ in range(6):
        with torch.no_grad():
            inputs = {"input_ids": PROMPT, "decoder_input_ids": seen} if is_encoder_decoder else {"input_ids": seen}
            scores = processors(seen, model(**inputs).logits[:, -1].float())
        seen = torch.cat([seen, scores.argmax(-1, keepdim=True)], 1)
    assert len(processors) >= 2 and seen.tolist() == expected.tolist()


def test_target_modules(model):
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(target_modules=["q_proj", "down_proj"], layers_to_transform=[1])
    expected = ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    assert compat.target_modules(config, model) == expected
    layers = [name for name, module in adapted_with(model, config).named_modules() if isinstance(module, LoraLayer)]
    assert layers == expected
    assert compat.target_modules(LoraConfig(target_modules=r".*\.0\..*k_proj"), llama(300)) == [
        "model.layers.0.self_attn.k_proj"
    ]


def adapted_with(model, config):
    from peft import get_peft_model

    return get_peft_model(model, config).base_model.model


def test_value_of_pattern(model):
    from peft import LoraConfig

    ranks = {"v_proj": 2, r"layers\.1\.self_attn\.q_proj": 3}
    peft_model = adapted_with(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], rank_pattern=ranks))
    found = {}
    for layer in (0, 1):
        for name in ("q_proj", "v_proj"):
            full_name = f"model.layers.{layer}.self_attn.{name}"
            found[layer, name] = compat.value_of_pattern(ranks, full_name, 4)
            assert peft_model.get_submodule(full_name).r["default"] == found[layer, name]
    assert found == {(0, "q_proj"): 4, (0, "v_proj"): 2, (1, "q_proj"): 3, (1, "v_proj"): 2}
    assert compat.value_of_pattern({}, "model.layers.0.self_attn.q_proj", 4) == 4


def test_switch_adapter(model):
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = logits(model)
    peft_model = adapted(model)
    layers = [module for module in peft_model.modules() if isinstance(module, BaseTunerLayer)]
    assert layers
    for name in ("other", None, "default"):
        compat.switch_adapter(layers, name)
        found = logits(peft_model)
        if name is None:
            assert torch.equal(found, base)
            continue
        peft_model.set_adapter(name)
        assert torch.equal(found, logits(peft_model)) and not torch.equal(found, base)


def test_has_wandb_credentials(tmp_path, monkeypatch):
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not compat.has_wandb_credentials()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert compat.has_wandb_credentials()
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(wandb.errors.AuthenticationError):
        compat.has_wandb_credentials()


def test_language_classifier(monkeypatch, tmp_path):
    """That of the library, whose model takes no room in the temporary folder."""
    from py3langid import modelio
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    theirs = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
        with pytest.raises(FileNotFoundError):
            LanguageIdentifier.from_model_file(MODEL_FILE)
        classify = compat.language_classifier()
    assert modelio.tempfile is tempfile
    for text in ("The delivery was three days late.", "Die Lieferung kam zu spät.", "今晩、予約したい。", "x = 1", ""):
        assert classify(text) == theirs.classify(text)


def test_config_nodes():
    from omegaconf import OmegaConf

    config = OmegaConf.create({"a": {"b": None, "c": "???", "d": "${a.e}", "e": 3}, "f": None})
    inner = compat.config_node(config, "a")
    null, missing, reference, number = (compat.config_node(inner, name) for name in "bcde")
    assert [compat.is_null(node) for node in (inner, null, missing, number)] == [False, True, False, False]
    assert compat.is_null(compat.config_node(config, "f")) and compat.config_node(config, "none") is None
    assert (compat.node_value(number), compat.node_value(null)) == (3, None)
    assert compat.node_value(reference) == "${a.e}"
    assert compat.config_root(number) is config and compat.config_root(inner) is config


def overridden(owner, name):
    """The parameters of a private method that a subclass here overrides."""
    return list(inspect.signature(getattr(owner, name)).parameters)[1:]


def test_overridden_methods_of_trl():
    import trl

    from raytune_llm.methods.trainers.policy import encoded

    for trainer in (trl.RLOOTrainer, trl.GRPOTrainer, trl.DistillationTrainer):
        assert overridden(trainer, "_tokenize_prompts") == ["prompts"]
        assert "prompt_ids, images, multimodal_fields = self._tokenize_prompts(prompts)" in inspect.getsource(trainer)
        assert encoded(trainer)._tokenize_prompts(None, [[1, 2]]) == ([[1, 2]], None, {})
    assert overridden(trl.DPOTrainer, "_prepare_dataset")[0] == "dataset"
    assert overridden(trl.DPOTrainer, "_precompute_ref_logps")[0] == "dataset"
    source = inspect.getsource(trl.DPOTrainer.__init__)
    assert "train_dataset = self._prepare_dataset(" in source
    assert "self.train_dataset = self._precompute_ref_logps(" in source


def test_overridden_methods_of_transformers(model, tmp_path):
    """The trainer's own save and resume pass through them."""
    from transformers import Trainer, TrainingArguments

    assert overridden(Trainer, "_save") == ["output_dir", "state_dict"]
    assert overridden(Trainer, "_load_from_checkpoint") == ["resume_from_checkpoint", "model"]
    calls = []

    class Recording(Trainer):
        def _save(self, output_dir=None, state_dict=None):
            calls.append(("save", Path(output_dir).name))
            super()._save(output_dir, state_dict)

        def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
            calls.append(("load", Path(resume_from_checkpoint).name))
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def train(steps, **options):
        arguments = TrainingArguments(
            tmp_path, max_steps=steps, save_steps=1, report_to=[], disable_tqdm=True, use_cpu=True
        )
        rows = [{"input_ids": PROMPT[0], "labels": PROMPT[0]}] * 8
        Recording(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer()).train(**options)

    train(1)
    train(2, resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert calls == [("save", "checkpoint-1"), ("load", "checkpoint-1"), ("save", "checkpoint-2")]


DOCUMENTED = {"_exit"}
"""Public in spite of its name: os._exit."""


def test_no_other_module_makes_private_calls():
    """Private names are used on self, or were defined in the same module."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.name == "compat.py":
            continue
        tree = ast.parse(file.read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        defined |= {node.attr for node in attributes if isinstance(node.ctx, ast.Store) and is_own(node)}
        foreign = {
            node.attr
            for node in attributes
            if node.attr.startswith("_") and not node.attr.startswith("__") and not is_own(node)
        }
        found = foreign - defined - DOCUMENTED
        assert not found, f"{file} uses {found}; such calls belong in compat.py"
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in modules if "._" in str(name)], f"{file} imports a private module"


def is_own(node):
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def test_ray_tune_gives_schedulers_a_controller_that_can_resume_a_trial():
    """By the wrapper that a scheduler receives; tests/sweep/schedulers/test_batched.py does so in a real sweep."""
    from ray.tune.execution.tune_controller import TuneController

    resumed = []

    class Controller(TuneController):
        def __init__(self):
            self._resource_updater = self._search_alg = None  # all that the wrapper looks at

        def _schedule_trial_train(self, trial):
            resumed.append(trial)

    assert callable(TuneController._schedule_trial_train)
    compat.resume_trial(Controller()._wrapped(), "trial")
    assert resumed == ["trial"]


def test_use_http_protocol(monkeypatch):
    """And what serving/deploy/connections.py overrides: callbacks of the parser, the set of connections, the cycle."""
    from uvicorn import Config, config
    from uvicorn.server import ServerState

    from raytune_llm.serving.deploy.connections import BoundedConnection

    monkeypatch.setattr(config, "HTTP_PROTOCOLS", dict(config.HTTP_PROTOCOLS))
    compat.use_http_protocol(BoundedConnection)
    server = Config("no:app", log_config=None)
    server.http_protocol_class = None
    monkeypatch.setattr("uvicorn.config.import_from_string", lambda path: path)
    server.load()
    assert server.http_protocol_class == "raytune_llm.serving.deploy.connections:BoundedConnection"
    assert ServerState().connections == set()
    for name in (
        "connection_made",
        "on_message_begin",
        "on_headers_complete",
        "send_400_response",
        "pause_writing",
        "resume_writing",
    ):
        assert hasattr(BoundedConnection.__mro__[1], name)
