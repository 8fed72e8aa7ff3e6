"""A policy learns what is rewarded; TRL's advantages against their formula; what can't be trained is refused first."""

import json
import math
import re
import shutil
import sys
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from worlds import spec_of, write_base, write_records

from raytune_llm.data.examples import TokenSequence
from raytune_llm.data.records import Preference
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError, worker_input_errors
from raytune_llm.evaluation.policy import roll_out
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs.config import load
from raytune_llm.jobs.prepare import prepare
from raytune_llm.jobs.setup import check_gpu
from raytune_llm.methods import model_refs
from raytune_llm.methods.base import TrainerInputs
from raytune_llm.models.forward import outputs
from raytune_llm.training.history import History
from raytune_llm.training.trainer_arguments import training_arguments
from raytune_llm.training.trial import WorkerContext, fit, start_model

OWN = ["method/rewards=function", "method.rewards.function.name=own_rewards:vowels", "allow_modules=[own_rewards]"]


@pytest.fixture(autouse=True)
def own_rewards(monkeypatch):
    module = types.ModuleType("own_rewards")
    module.vowels = lambda prompt, completion, answer: sum(completion.count(vowel) for vowel in "aeiou")
    monkeypatch.setitem(sys.modules, "own_rewards", module)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("llama"), "llama")


def job_of(base, folder, *overrides):
    train, evaluation = write_records(folder, kinds=[Preference])
    return load(
        "train",
        [
            "method=rlhf",
            f"model.name_or_path={base}",
            f"data.train={train}",
            f"data.eval={evaluation}",
            f"home={folder}",
            "tuning.warmup_steps=0",
            "tuning.batch_size=4",
            "tuning.steps=4",
            "tuning.eval_every=2",
            "method.max_completion_tokens=8",
            "method.eval_prompts=4",
            "model.learning_rate=1e-2",
            *overrides,
        ],
    )


class Log:
    def __init__(self):
        self.logged = {}

    def log(self, step, metrics):
        self.logged[step] = self.logged.get(step, {}) | dict(metrics)

    def finish(self, summary, failed): ...


def train(job, folder: Path, resume=None, keep=None):
    """Run a trial here; its reports, why it ended, its checkpoint's folder."""
    reports, log = [], Log()
    folder.mkdir()

    def report(metrics, checkpoint):
        reports.append(metrics)
        if keep is not None and metrics["step"] == keep[0]:
            shutil.copytree(checkpoint, keep[1])

    ended = fit(
        spec_of(job),
        prepare(job).examples,
        WorkerContext(folder, 0, 1, False),
        report=report,
        run=log,
        progress=lambda step, metrics: None,
        resume=resume,
    )
    return reports, ended, folder / "checkpoint", log


def session_of(job):
    return model_refs.open_session(
        job.method,
        job.model,
        registry_dir=job.registry_dir,
        allow_modules=job.allow_modules,
        batch_size=4,
        seed=0,
        use_gpu=False,
    )


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_it_learns_what_a_function_rewards(base, tmp_path, algorithm):
    job = job_of(
        base,
        tmp_path,
        *OWN,
        f"method/algorithm={algorithm}",
        "method.kl_coefficient=0.0",
        "method.unended_penalty=0.0",
        "method.reward_clip=null",
        "method.eval_prompts=8",
        "method.num_generations=8",
        "tuning.steps=30",
        "tuning.eval_every=15",
        "tuning.batch_size=8",
        "model.learning_rate=2e-2",
        "method.max_kl=null",
    )
    reports, ended, checkpoint, log = train(job, tmp_path / "run")
    assert ended == "complete"
    with session_of(job) as session:
        model = start_model(job.trial_config()).eval()
        start = session.measure(model, prepare(job).examples.eval, session.reference_model()).metrics
    assert start["eval/kl"].whole() == pytest.approx(0.0, abs=1e-6) and start["eval/win_rate"].whole() == 0.5
    assert reports[-1]["eval/reward"] > start["eval/reward"].whole() + 1
    assert reports[-1]["eval/kl"] > 0.01 and reports[-1]["eval/win_rate"] > 0.5
    assert reports[-1]["eval/objective"] == pytest.approx(reports[-1]["eval/reward"])
    assert {"train/reward", "train/grad_norm"} <= log.logged[10].keys()
    assert sorted(file.name for file in (checkpoint / "best").iterdir() if file.is_dir()) == []


def test_a_resumed_policy_ends_as_an_uninterrupted_one(base, tmp_path):
    job = job_of(base, tmp_path, *OWN)
    whole, *_ = train(job, tmp_path / "whole", keep=(2, tmp_path / "kept"))
    resumed, *_ = train(job, tmp_path / "resumed", resume=tmp_path / "kept")
    assert [report["step"] for report in resumed] == [4]
    assert resumed[-1]["eval/kl"] == pytest.approx(whole[-1]["eval/kl"], rel=1e-4)


def test_advantages_are_leave_one_out_with_the_divergence_taken_off(base, tmp_path):
    """Eq. 8 of arXiv 2402.14740, with r − kl_coefficient · (log π − log π_ref) for r."""
    job = job_of(base, tmp_path, *OWN, "method.kl_coefficient=0.3", "method.reward_clip=null")
    examples = prepare(job).examples.train
    with session_of(job) as session:
        trainer = session.trainer(
            TrainerInputs(
                model=start_model(job.trial_config()),
                examples=examples,
                indices=list(range(16)),
                tokenizer=job.model.tokenizer(),
                arguments=training_arguments(job.trial_config(), str(tmp_path), num_workers=1, use_gpu=False),
                callbacks=[],
            )
        )
        trainer.train()
        batch = [row for row in trainer.train_dataset.select(range(2)) for _ in range(4)]
        trainer.model.train()
        made = trainer._generate_and_score_completions(batch)
        reference = session.reference_model()
        prompts = [one for one in session.prompts(examples[:2]) for _ in range(4)]
        rewards = []
        for row, one in enumerate(prompts):
            mask = made["completion_mask"][row].bool()
            ids = made["completion_ids"][row][mask].tolist()
            sequence = TokenSequence(one.prompt_ids + ids, [-100] * len(one.prompt_ids) + ids)
            with torch.no_grad():
                ours, theirs = (
                    outputs(m.eval(), [sequence], pad_id=0).logprobs.sum().item() for m in (trainer.model, reference)
                )
            ended = ids[-1] in session.sampling.stop_ids
            vowels = sum(session.decode(ids).count(vowel) for vowel in "aeiou")
            rewards.append(vowels - (not ended) * job.method.unended_penalty - 0.3 * (ours - theirs))
    groups = np.array(rewards).reshape(2, 4)
    expected = groups - (groups.sum(1, keepdims=True) - groups) / 3
    assert made["advantages"].tolist() == pytest.approx(expected.ravel().tolist(), abs=1e-3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "method.max_kl=1e-9",
            r"KL runaway: eval/kl_per_token=.* is above method\.max_kl=1e-09; raise method\.kl_coefficient",
        ),
        ("method.min_entropy=1e3", r"entropy collapse: eval/entropy=.* nats per token is below method\.min_entropy"),
        ("method.max_repetition=-1.0", r"repeated text: eval/repetition=.*; raise method\.length_penalty"),
    ],
)
def test_it_stops_when_the_policy_goes_astray(base, tmp_path, override, message):
    job = job_of(base, tmp_path, *OWN, override)
    reports, ended, checkpoint, _ = train(job, tmp_path / "run")
    assert [report["step"] for report in reports] == [2]
    assert re.match(message, ended)
    history = History.load(checkpoint, job.trial_config(Better.higher).objective)
    assert history.stopped == ended and history.best.metrics["eval/objective"] == -math.inf, "it is never kept"


def test_a_function_that_fails_ends_the_run_with_its_prompt(base, tmp_path):
    job = job_of(base, tmp_path, *OWN)
    sys.modules["own_rewards"].vowels = lambda prompt, completion, answer: float("nan")
    message = r"the reward of method\.rewards\.function is nan for the prompt '"
    refused(job, message)
    sys.modules["own_rewards"].vowels = vowels_until_training()
    with pytest.raises(InputError, match=message):
        train(job, tmp_path / "run")
    sys.modules["own_rewards"].vowels = lambda prompt, completion, answer: completion.nothing
    refused(job, r"method\.rewards\.function\.name=own_rewards:vowels raised AttributeError: .* for the ")


def vowels_until_training():
    """A reward that is sound on the one answer that is checked, and NaN from then on."""
    values = iter([1.0])
    return lambda prompt, completion, answer: next(values, float("nan"))


def test_what_a_worker_found_wrong_is_raised_on_the_driver():
    class WorkerGroupError(Exception):
        worker_failures: ClassVar = {0: OSError("lost"), 1: InputError("the reward is nan")}

    with pytest.raises(InputError, match="the reward is nan"), worker_input_errors():
        raise WorkerGroupError
    with pytest.raises(OSError, match="lost"), worker_input_errors():
        raise OSError("lost")


def refused(job, message):
    with pytest.raises(InputError, match=message):
        prepare(job)


def test_cut_prompts_are_counted(base, tmp_path):
    job = job_of(base, tmp_path, *OWN)
    tokens = Tokens(job.model.tokenizer(), max_tokens=20, is_encoder_decoder=False)
    long, short = (Preference("what does the cat say " * count, "one", "two") for count in (20, 1))
    example = job.method.encode(long, tokens)["completion"]
    prompt = tokens.prompt(long.prompt, max_new_tokens=8)
    assert example.input_ids[: len(prompt)] == prompt and len(prompt) == 12
    job.method.encode(short, tokens)
    cut = tokens.truncation
    assert (cut.records, cut.cut, cut.prompts_cut, cut.label_tokens, cut.dropped) == (2, 1, 1, 0, 0)
    assert cut.longest_tokens == len(tokens.prompt(long.prompt)) + 8


def test_encoder_decoder_bases_are_refused(tmp_path):
    t5 = write_base(tmp_path / "t5", "t5")
    refused(job_of(t5, tmp_path, *OWN), "is an encoder-decoder base.*take method=dpo on the same preferences")


def test_full_tuning_is_refused(base, tmp_path):
    refused(job_of(base, tmp_path, *OWN, "adapter=full"), "adapter=full is not allowed; allowed: lora")


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_trls_config_has_vllm(base, tmp_path, algorithm):
    """Constructing TRL's config needs no vLLM; nothing here runs it."""
    arguments = {"output_dir": str(tmp_path), "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False}
    own = [*OWN, f"method/algorithm={algorithm}"]
    with session_of(job_of(base, tmp_path, *own)) as session:
        assert not session.config(arguments, longest_prompt=10).use_vllm
    vllm = [*own, "method/sampler=vllm", "method.sampler.gpu_memory_share=0.4", "method.max_completion_tokens=6"]
    with session_of(job_of(base, tmp_path, *vllm)) as session:
        inside = session.config(arguments, longest_prompt=10)
        assert inside.use_vllm and inside.vllm_mode == "colocate"
        assert (inside.vllm_gpu_memory_utilization, inside.vllm_max_model_length) == (0.4, 16)
        assert inside.generation_kwargs == {"stop_token_ids": list(session.sampling.stop_ids)}
    with session_of(job_of(base, tmp_path, *vllm, "method.sampler.server_url=http://gpu:8000")) as session:
        server = session.config(arguments, longest_prompt=10)
        assert server.use_vllm and (server.vllm_mode, server.vllm_server_base_url) == ("server", "http://gpu:8000")


def test_vllm_is_refused_where_it_cannot_be_had(base, tmp_path, monkeypatch):
    monkeypatch.setattr("raytune_llm.methods.samplers.vllm.find_spec", lambda name: None)
    message = r"method/sampler=vllm needs vLLM, which isn't installed: pip install 'raytune-llm\[vllm\]', or take"
    refused(job_of(base, tmp_path, *OWN, "method/sampler=vllm"), message)
    with pytest.raises(ValueError, match="method/sampler=vllm needs a GPU, and this job has none"):
        check_gpu(job_of(base, tmp_path, *OWN, "method/sampler=vllm").method.needs, use_gpu=False)
    check_gpu(job_of(base, tmp_path, *OWN).method.needs, use_gpu=False)
    with pytest.raises(InputError, match=r"method\.sampler\.server_url=gpu:8000 is not allowed; allowed: http://"):
        job_of(base, tmp_path, *OWN, "method/sampler=vllm", "method.sampler.server_url=gpu:8000")


def test_an_unknown_reward_adapter_is_refused(base, tmp_path):
    job = job_of(base, tmp_path, "method.rewards.model.adapter=kind@1")
    refused(job, "kind has no version in")


def test_a_trial_whose_reward_model_was_never_trained_is_refused(base, tmp_path):
    job = job_of(base, tmp_path, *OWN, "method/rewards=[model,function]", "method.rewards.model.weight=0")
    trial = job.with_values({"method.rewards.model.weight": 1.0})
    with pytest.raises(InputError, match=r"method\.rewards\.model\.adapter=null .*: no reward model has been trained"):
        session_of(trial).__enter__()


def test_a_function_of_a_module_that_is_not_allowed_is_refused(base, tmp_path):
    refused(job_of(base, tmp_path, *OWN[:2]), r"function\.name=own_rewards:vowels is not allowed.*allow_modules=\[\]")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.rewards.model.weight=0"], r"method\.rewards=\{'model': 0\.0\} is not allowed; allowed: at least one"),
        (["method.rewards.model.weight=-1"], r"method\.rewards\.model\.weight=-1\.0 is not allowed; allowed: ≥ 0"),
        (["method.rewards.model.steps=0"], r"method\.rewards\.model\.steps=0 is not allowed; allowed: ≥ 1"),
        (["method/rewards=pattern"], r"missing: method\.rewards\.pattern\.regex; give each"),
        (["method.num_generations=1"], "method.num_generations=1 is not allowed; allowed: ≥ 2"),
        (["method.kl_coefficient=-1.0"], "method.kl_coefficient=-1.0 is not allowed"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(base, tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        job_of(base, tmp_path, *overrides)


def test_rewards_need_what_they_look_at_in_the_data(base, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {word}"}) + "\n" for word in "abcdefgh"))
    job = job_of(base, tmp_path, f"data.train={prompts}", "method/rewards=exact")
    refused(job, r"no record of data\.train has an answer to compare with")


def test_an_empty_prompt_is_refused_with_its_line(base, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"prompt": "a"}\n{"prompt": "  "}\n')
    with pytest.raises(InputError, match=r"empty\.jsonl.*2.*the record has no prompt"):
        prepare(job_of(base, tmp_path, *OWN, f"data.train={empty}"))


def test_prompts_are_read_from_preferences_supervised_records_and_prompts(base, tmp_path):
    job = job_of(base, tmp_path, *OWN)
    with session_of(job) as session:
        prompts = session.prompts(prepare(job).examples.train)
        assert prompts[0].prompt.endswith(prompts[0].answer)  # the worlds' preferences: the last word is right
        rollouts = roll_out(session.reference_model(), prompts[:2], session.sampling, session.decode)
    assert [rollout.prompt for rollout in rollouts] == [one.prompt for one in prompts[:2]]


def test_rewards_are_chosen_weighted_and_swept_by_name(base, tmp_path):
    chosen = ["method/rewards=[exact,pattern]", "method.rewards.pattern.regex=cat", "method.rewards.exact.weight=0.5"]
    job = job_of(base, tmp_path, *chosen)
    assert {name: reward.weight for name, reward in job.method.rewards.items()} == {"exact": 0.5, "pattern": 1.0}
    assert not job.method.needs.stages and not job.method.versions()
    trial = job.with_values({"method.rewards.exact.weight": 0.0})
    assert list(trial.method.used_rewards) == ["pattern"] and list(job.method.used_rewards) == ["exact", "pattern"]
    with pytest.raises(ValueError, match=r"method\.rewards\.model\.weight is not a key of this job; at 'model' it has"):
        job.with_values({"method.rewards.model.weight": 1.0})
    with session_of(trial) as session:
        measured = session.measure(start_model(trial).eval(), prepare(trial).examples.eval[:2]).metrics
    assert {name: metric.better for name, metric in measured.items()} == job.method.directions()
