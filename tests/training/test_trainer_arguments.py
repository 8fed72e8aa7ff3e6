"""What users may pass on to a trial's trainer, and what becomes of it."""

import dataclasses
import os

import pytest
from worlds import spec_of, write_base, write_records

from raytune_llm.data.records import Preference
from raytune_llm.errors import InputError
from raytune_llm.jobs.config import CONF, load
from raytune_llm.jobs.prepare import check_knobs
from raytune_llm.jobs.stage_jobs import stage_job
from raytune_llm.sweep.plan import make_plan
from raytune_llm.sweep.resources import DRIVER, resources
from raytune_llm.training.reporting import LiveTrial
from raytune_llm.training.tracking.base import CompositeRun
from raytune_llm.training.trainer_arguments import KEYS, REASONS, check_passed_on, training_arguments

OWN = {  # what each method's file says of its trainer, once more
    "sft": "max_length",
    "dpo": "beta",  # without sft_weight, which TRL's trainer doesn't have
    "reward": "center_rewards_coefficient",
    "rlhf": "num_generations",
    "distill_on_policy": "max_completion_length",
}
METHODS = sorted(file.stem for file in (CONF / "method").glob("*.yaml"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), "llama")


def job_of(base, *overrides, root="train"):
    return load(root, [f"model.name_or_path={base}", "data.train=x.jsonl", *overrides])


def refused(base, *overrides):
    with pytest.raises(InputError) as error:
        check_knobs(job_of(base, *overrides))
    return str(error.value)


def test_what_is_passed_on_reaches_the_trainer_next_to_the_jobs_own(base):
    job = job_of(base, "scaling.trainer.optim=adafactor", "scaling.trainer.dataloader_num_workers=2", "tuning.steps=7")
    check_knobs(job)
    found = training_arguments(job.trial_config(), "folder", num_workers=1, use_gpu=False)
    assert (found["optim"], found["dataloader_num_workers"], found["max_steps"]) == ("adafactor", 2, 7)
    plain = training_arguments(job_of(base, "tuning.steps=7").trial_config(), "folder", num_workers=1, use_gpu=False)
    assert plain == {name: value for name, value in found.items() if name != "dataloader_num_workers"} | {
        "optim": "adamw_torch"
    }


@pytest.mark.parametrize(
    ("passed", "message"),
    [
        ("learning_rate=1e-3", "scaling.trainer.learning_rate=0.001 is not allowed: the job sets it; use tuning.lear"),
        ("max_steps=3", "scaling.trainer.max_steps=3 is not allowed: the job sets it; use tuning.steps"),
        ("packing=true", "scaling.trainer.packing=True is not allowed: a step takes tuning.batch_size examples"),
        ("fsdp=full_shard", "scaling.trainer.fsdp=full_shard is not allowed: evaluations and checkpoints need"),
        ("max_length=10", "scaling.trainer.max_length=10 is not allowed: the job sets it; use data.max_tokens"),
        (
            "use_liger_kernl=true",
            "SFTConfig, the config of this method's trainer, has no use_liger_kernl; nearest: use_",
        ),
        ("use_liger_kernel=true", "scaling.trainer.use_liger_kernel=true needs Liger's kernels: pip install liger-ker"),
        ("optim=addam", "scaling.trainer.optim=addam is not allowed: addam is not a valid OptimizerNames"),
    ],
)
def test_refused_before_anything_starts_with_value_and_remedy(base, passed, message):
    assert message in refused(base, f"scaling.trainer.{passed}")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_what_its_trainer_takes(base, method):
    """A key that the method itself sets is refused, another one taken."""
    more = ["method.sft_weight=0"] if method == "dpo" else []
    job = job_of(base, f"method={method}", "scaling.trainer.dataloader_num_workers=1", *more)
    config = job.method.trainer_config(is_encoder_decoder=False)
    check_passed_on(job.scaling.trainer, config)
    own = OWN.get(method, "remove_unused_columns")
    assert own in config.own
    with pytest.raises(InputError, match=rf"scaling\.trainer\.{own}=1 is not allowed: "):
        check_passed_on({own: 1}, config)
    with pytest.raises(AssertionError, match="not declared"):
        config.build({}, learning_rate=1.0)


def test_arguments_that_are_named_exist(base):
    """In at least one of the trainers' configs: none is a misspelling."""
    kinds = {
        job_of(base, f"method={method}").method.trainer_config(is_encoder_decoder=False).kind for method in METHODS
    }
    known = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert {*KEYS, *REASONS} <= known


def test_an_encoder_decoder_base_has_another_trainer(tmp_path):
    base = write_base(tmp_path, "t5")
    check_knobs(job_of(base, "scaling.trainer.dataloader_num_workers=1"))
    assert "TrainingArguments, the config of this method's trainer, has no padding_free" in refused(
        base, "scaling.trainer.padding_free=true"
    )


def test_earlier_stages_have_trainers_of_their_own(base, tmp_path):
    write_records(tmp_path, kinds=(Preference,))
    job = job_of(base, "method=rlhf", f"data.train={tmp_path}/train.jsonl", "scaling.trainer.log_completions=false")
    check_knobs(job)
    stages = [stage_job(job, stage) for stage in job.method.needs.stages]
    assert stages and all(stage.scaling.trainer == {} for stage in stages)
    for stage in stages:
        check_knobs(stage)


def test_judging_values_leaves_no_environment_behind(base):
    before = dict(os.environ)
    check_knobs(job_of(base, "scaling.trainer.torch_compile=true", "scaling.trainer.bf16=true"))
    assert dict(os.environ) == before


def test_quantised_bases_take_adapters_only(base, monkeypatch):
    monkeypatch.setattr("raytune_llm.models.load_options.find_spec", lambda name: name)
    four_bit = "model.from_pretrained.quantization_config.load_in_4bit=true"
    check_knobs(job_of(base, four_bit))
    assert "adapter=full can't train the quantised weights" in refused(base, four_bit, "adapter=full")


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("scaling.trainer.optim=adafactor", "scaling.trainer has optim, of which packed trials have no trainer"),
        ("scaling.gpus_per_worker=0.5", "scaling.gpus_per_worker=0.5: a pack takes a whole GPU"),
        ("model.from_pretrained.quantization_config.load_in_4bit=true", "model.from_pretrained quantises the base"),
    ],
)
def test_what_packed_trials_can_not_have_is_the_reason_not_to_pack(base, override, reason):
    job = job_of(base, "sweep/backend=packed", override, root="sweep")
    config = job.trial_config()
    assert job.sweep.backend.why_not(config, make_plan(config, job.sweep.axes())).startswith(reason)


@pytest.mark.parametrize("shares", [(0.25, 1), (1, 2), (1, 1)])
def test_workers_reserve_their_share_of_a_gpu(base, shares):
    share, workers = shares
    scaling = job_of(base, f"scaling.gpus_per_worker={share}", f"scaling.num_workers={workers}").scaling
    assert scaling.worker_resources(use_gpu=True) == {"CPU": 1.0, "GPU": share}
    assert scaling.worker_resources(use_gpu=False) == {"CPU": 1.0}
    reserved = resources(scaling, {}, use_gpu=True).required_resources
    assert reserved == (DRIVER if workers > 1 else {"CPU": 1.0, "GPU": share})


@pytest.mark.parametrize(
    "overrides", [["0"], ["1.5"], ["2"], ["-1"], ["0.5", "scaling.num_workers=2"]], ids=lambda value: "-".join(value)
)
def test_shares_of_a_gpu_that_can_not_be_are_refused(base, overrides):
    with pytest.raises(InputError, match=r"scaling\.gpus_per_worker=.* is not allowed"):
        job_of(base, f"scaling.gpus_per_worker={overrides[0]}", *overrides[1:])


def test_a_share_of_a_gpu_costs_a_share_of_an_hour(base, tmp_path):
    train, _ = write_records(tmp_path)
    spec = spec_of(job_of(base, f"home={tmp_path}", f"data.train={train}"))
    trial = LiveTrial(spec, CompositeRun(()), tmp_path / "trial", num_gpus=0.25)
    report = trial.report(5, {"eval/loss": 1.0}, seconds=3600, saver=None)
    assert report.metrics["cost/gpu_hours"] == 0.25
