"""The stages before a policy's training: which reward model, which adapter, and whose base they must have; how reward
models and policies are compared; all in this process, without Ray."""

import math
from pathlib import Path

import pytest
from safetensors.torch import load_file
from worlds import Silent, precomputed, published, spec_of, trained, write_base, write_records

from raytune_llm.data.files import load as load_records
from raytune_llm.data.records import Preference
from raytune_llm.errors import InputError
from raytune_llm.jobs.compare import compare_systems
from raytune_llm.jobs.config import load
from raytune_llm.jobs.precompute import FrozenModels
from raytune_llm.jobs.prepare import check_knobs, prepare
from raytune_llm.jobs.stage_jobs import check, finished, inherited, stage_job
from raytune_llm.methods import model_refs
from raytune_llm.serving.catalog import read_catalog
from raytune_llm.stores.registry import Registry
from raytune_llm.training.packed.trials import PackedTrials
from raytune_llm.training.trial import WorkerContext, fit, start_model


def reward_job(job):
    """The job of the reward model before a policy."""
    return stage_job(job, next(stage for stage in job.method.needs.stages if stage.name == "reward"))


def refusing(job):
    """What is checked of a job before it runs."""
    check_knobs(job)
    check(job, load_records(job.data, job.method.records, job.seed).train)
    prepare(job)


def job_of(root, base, folder, *overrides):
    train, evaluation = write_records(folder, kinds=[Preference])
    return load(
        root,
        [
            f"model.name_or_path={base}",
            f"data.train={train}",
            f"data.eval={evaluation}",
            f"home={folder}",
            "tuning.warmup_steps=0",
            "tuning.batch_size=4",
            "tuning.steps=30",
            "tuning.eval_every=15",
            "name=cats",
            "run=first",
            "tuning.adapter_size=4",
            "model.learning_rate=1e-2",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A home with a reward model cats-reward@1 and an adapter kind@1 of rank 4."""
    folder = tmp_path_factory.mktemp("home")
    base = write_base(folder / "base", "llama")
    stage = reward_job(job_of("train", base, folder, "method=rlhf", "method.rewards.model.steps=30"))
    published(stage, trained(stage, folder / "reward"))
    adapter = job_of(
        "train",
        base,
        folder,
        "method=rlhf",
        "method/rewards=exact",
        "name=kind",
        "tuning.steps=2",
        "method.max_completion_tokens=4",
        "method.eval_prompts=2",
    )
    published(adapter, trained(adapter, folder / "adapter"))
    return base, folder


def test_the_reward_job_is_the_same_job_with_the_reward_method(world):
    base, folder = world
    job = job_of(
        "train", base, folder, "method=rlhf", "tuning.learning_rate_multiplier=0.1", "method.rewards.model.steps=7"
    )
    stage = reward_job(job)
    assert (stage.name, stage.run, stage.kind) == ("cats-reward", "first", "reward")
    assert (stage.tuning.steps, stage.tuning.learning_rate_multiplier, stage.tuning.adapter_size) == (7, 1.0, 4)
    assert stage.data == job.data and stage.method == job.method.rewards["model"].method


def test_a_resumed_run_takes_the_reward_model_that_it_published(world):
    base, folder = world
    stage = reward_job(job_of("train", base, folder, "method=rlhf"))
    assert finished(stage).reference == "cats-reward@1"
    assert finished(reward_job(job_of("train", base, folder, "method=rlhf", "run=second"))) is None


def test_training_continues_in_an_adapter_of_its_own_size(world):
    base, folder = world
    job = job_of("train", base, folder, "method=rlhf", "method.init_adapter=kind", "tuning.adapter_size=8")
    continued = inherited(job)
    assert continued.method.init_adapter == "kind@1" and continued.tuning.adapter_size == 4
    continued = continued.with_values({"method.rewards.model.adapter": "cats-reward@1"})
    with model_refs.open_session(
        continued.method,
        job.model,
        registry_dir=job.registry_dir,
        allow_modules=[],
        batch_size=4,
        seed=0,
        use_gpu=False,
    ) as session:
        model = start_model(continued.trial_config())
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert trainable and model.peft_config["default"].r == 4
        learned = session.measure(model, prepare(job).examples.eval[:2], session.reference_model()).metrics
        assert learned["eval/kl"].whole() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["method.rewards.model.adapter=kind@1"],
            r"method\.rewards\.model\.adapter=kind@1 is of kind adapter; allowed: .* kind reward",
        ),
        (
            ["method.init_adapter=cats-reward@1"],
            r"method\.init_adapter=cats-reward@1 is of kind reward; allowed: .* ada",
        ),
        (["method.judge_adapter=kind@1"], r"method\.judge_adapter=kind@1 is of kind adapter"),
        (["method.rewards.model.adapter=nobody@1"], "nobody has no version"),
    ],
)
def test_versions_of_another_kind_are_refused(world, overrides, message):
    base, folder = world
    with pytest.raises(InputError, match=message):
        refusing(job_of("train", base, folder, "method=rlhf", *overrides))


def test_versions_of_another_base_are_refused(world, tmp_path):
    _, folder = world
    other = write_base(tmp_path / "other", "qwen")
    with pytest.raises(InputError, match=r"method\.rewards\.model\.adapter=cats-reward@1 was trained on .*same base"):
        prepare(job_of("train", other, folder, "method=rlhf", "method.rewards.model.adapter=cats-reward@1"))


SIZES = "sweep.space.tuning.adapter_size=null"
SWEPT = "sweep.space.tuning.adapter_size=[4,8]"


@pytest.mark.parametrize("method", ["rlhf", "dpo"])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.init_adapter=kind", SWEPT], r"adapter_size can't be swept with method\.init_adapter=kind: .*=null"),
        (["method.sft_data=chosen", SWEPT], r"adapter_size can't be swept with method\.sft_data=chosen: .*=null"),
        (
            ["method.sft_data=chosen", SIZES, "sweep.space.adapter.alpha=[8,16]"],
            r"space\.adapter\.alpha can't be swept",
        ),
        (["method.sft_data=chosen", SIZES, "sweep.space.method.sft_steps=[8,16]"], r"method\.sft_steps is no axis"),
        (["method.init_adapter=kind", "method.sft_data=chosen", SIZES], "both set where training starts; give one"),
        (["method.init_adapter=cats-reward", SIZES], "is of kind reward; allowed: a version of kind adapter"),
        (["method.sft_data=chosen", SIZES, "adapter=full"], "adapter=full is not allowed; allowed: lora"),
        (
            ["method.sft.init_adapter=kind", SIZES],
            r"is read with method\.sft_data only; .* set method\.init_adapter=kind",
        ),
        (["method.sft_steps=0"], r"method\.sft_steps=0 is not allowed; allowed: ≥ 1"),
    ],
)
def test_an_initialisation_that_cannot_be_had_is_refused(world, method, overrides, message):
    base, folder = world
    with pytest.raises(InputError, match=message):
        refusing(job_of("sweep", base, folder, f"method={method}", *overrides))


def test_a_stage_needs_records_that_it_can_learn_from(world, tmp_path):
    base, folder = world
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    given = f"data.train={tmp_path}/prompts.jsonl"
    with pytest.raises(
        InputError, match=r"a reward model .*: 2 of its 2 records are of kind Prompt; name a reward model with meth"
    ):
        refusing(job_of("train", base, folder, "method=rlhf", given))
    own = ["method/rewards=pattern", "method.rewards.pattern.regex=x", "method.sft_data=chosen"]
    with pytest.raises(
        InputError, match=r"learns given answers: 2 of its 2 .*; name records of answers with method\.sft"
    ):
        refusing(job_of("train", base, folder, "method=rlhf", given, *own))


def test_the_stage_that_learns_given_answers(world, tmp_path):
    base, folder = world
    answers = write_records(tmp_path / "answers")[0]
    job = job_of("train", base, folder, "method=dpo", f"method.sft_data={answers}", "method.sft_steps=3")
    (stage,) = job.method.needs.stages
    own = stage_job(job, stage)
    assert (own.name, own.kind, own.tuning.steps, own.tuning.adapter_size) == ("cats-sft", "adapter", 3, 4)
    assert own.data.train == str(answers) and own.data.eval is None and own.method == job.method.sft
    whole = job_of("train", base, folder, "method=rlhf", "method.sft_data=chosen")
    assert [one.name for one in whole.method.needs.stages] == ["sft", "reward"]
    learned = prepare(stage_job(whole, whole.method.needs.stages[0])).examples.train
    right = prepare(job_of("train", base, folder, "method=dpo")).examples.train
    assert [example["completion"] for example in learned] == [example["chosen"] for example in right]
    further = job_of("train", base, folder, "method=dpo", f"method.sft_data={answers}", "method.sft.init_adapter=kind")
    assert inherited(stage_job(further, *further.method.needs.stages)).method.init_adapter == "kind@1"
    filled = job.with_values({"method.init_adapter": "kind@1"})
    assert not filled.method.needs.stages and inherited(filled).tuning.adapter_size == 4


def test_dpo_from_an_adapter_is_the_same_packed_and_alone(world, tmp_path):
    """The reference is that adapter, so the first loss is log 2; both backends continue from its weights."""
    base, folder = world
    job = inherited(
        job_of(
            "train",
            base,
            folder,
            "method=dpo",
            "method.init_adapter=kind",
            "tuning.adapter_size=2",
            "method.sft_weight=0",
            "tuning.steps=4",
            "tuning.eval_every=4",
        )
    )
    examples = precomputed(job).examples
    alone = tmp_path / "alone"
    alone.mkdir()
    reports = []
    fit(
        spec_of(job, [1]),
        examples,
        WorkerContext(alone, 0, 1, False),
        report=lambda metrics, _: reports.append(metrics),
        run=Silent(),
        progress=lambda *_: None,
        resume=None,
    )
    assert reports[0]["train/loss"] == pytest.approx(math.log(2), rel=1e-5)
    trials = PackedTrials(job.trial_config(), examples, wanted=1, max_lora_rank=4, device="cpu", log=lambda _: None)
    spec = spec_of(job, [1], id="packed")
    trials.join(spec, Silent())
    packed = []
    for _ in range(4):
        for pending in trials.advance():
            pending.store()
            packed.append(pending.report)
    assert [report.metrics["eval/loss"] for report in packed] == pytest.approx(
        [r["eval/loss"] for r in reports], rel=1e-4
    )
    found, expected = (
        load_file(next(path.rglob("best/adapter_model.safetensors"))) for path in (Path(spec.directory), alone)
    )
    assert found.keys() == expected.keys()
    begun = load_file(folder / "registry" / "kind" / "v1" / "adapter_model.safetensors")
    for name, weights in expected.items():
        moved = (weights - begun[name]).norm()
        assert moved > 0 and (found[name] - weights).norm() < 0.02 * moved
    trials.close()


def test_a_reward_model_is_not_served(world):
    _, folder = world
    with pytest.raises(InputError, match="cats-reward@1 is of kind reward, which gives no answers"):
        read_catalog(Registry(f"{folder}/registry"), ["cats-reward"])


def comparison_of(job, systems):
    prepared = prepare(job)
    return compare_systems(
        FrozenModels.of(job, use_gpu=False),
        systems,
        prepared.encoded.train,
        job.evaluation,
        tokens=prepared.tokens,
        seed=0,
        allow_modules=[],
    )


def test_a_reward_model_is_compared_by_how_it_ranks(world):
    base, folder = world
    job = reward_job(job_of("train", base, folder, "method=rlhf"))
    result = comparison_of(job, {"base": None, "tuned": f"{folder}/registry/cats-reward/v1"})
    metrics = result.comparison.metrics
    assert metrics["eval/accuracy"]["base"].value == 0.5
    assert metrics["eval/accuracy"]["tuned"].value > 0.9 and metrics["eval/margin"]["tuned"].low > 0
    assert metrics["eval/calibration_error"]["tuned"].value < 0.5
    assert list(result.tables) == ["Calibration of tuned"] and "rejected: " in result.samples[0].prompt


def test_a_policy_is_compared_by_the_reward_model(world):
    base, folder = world
    job = job_of(
        "train",
        base,
        folder,
        "method=rlhf",
        "method.rewards.model.adapter=cats-reward@1",
        "method.judge_adapter=cats-reward@1",
        "method.max_completion_tokens=4",
    )
    result = comparison_of(job, {"base": None, "tuned": f"{folder}/registry/kind/v1"})
    metrics = result.comparison.metrics
    assert metrics["eval/kl"]["base"].value == 0.0 and metrics["eval/kl"]["tuned"].value > 0.0
    assert metrics["eval/win_rate"]["base"].value == 0.5
    assert metrics["eval/judge_win_rate"] == metrics["eval/win_rate"]  # the same reward model
    assert result.comparison.directions == job.method.directions()
    assert result.samples[0].answers.keys() == {"base", "tuned"}
