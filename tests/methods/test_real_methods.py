"""Every method on a real base, in seconds each: what it is about improves, on records that it didn't train on where few
steps can show it."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from real_world import files_of, job_of, trained
from serving_world import card

from raytune_llm.jobs.config import CONF
from raytune_llm.jobs.prepare import prepare
from raytune_llm.methods import model_refs
from raytune_llm.stores.registry import Registry

pytestmark = pytest.mark.real
TEACHER = "method.teacher=teacher@1"


@dataclass(frozen=True)
class Case:
    """What a method is trained on, and what must come of it."""

    records: str
    overrides: tuple[str, ...]
    metric: str
    share: float
    """The metric after training, as a share of the base's: at most this if below 1, else at least."""
    on_train: bool = False
    """Whether the training records themselves are evaluated: preferences are only memorised in so few steps."""
    packs: bool = False


CASES = {
    "sft": Case("labels", ("tuning.steps=8",), "eval/loss", 0.5, packs=True),
    "dss": Case("rationales", ("tuning.steps=6",), "eval/rationale_loss", 0.8, packs=True),
    "reward": Case("preferences", ("tuning.steps=6",), "eval/accuracy", 1.5, on_train=True, packs=True),
    "dpo": Case("preferences", ("tuning.steps=4",), "eval/rewards/accuracies", 1.5, on_train=True, packs=True),
    "distill": Case("labels", (TEACHER, "method.alpha=0", "tuning.steps=3"), "eval/loss", 0.1, packs=True),
    "distill_feature": Case("labels", (TEACHER, "method.alpha=0", "tuning.steps=6"), "eval/label_loss", 0.6),
    "distill_relation": Case("labels", (TEACHER, "tuning.steps=4", "tuning.batch_size=4"), "eval/label_loss", 0.7),
    "distill_ema": Case("labels", ("tuning.steps=6",), "eval/label_loss", 0.5),
    "distill_on_policy": Case(
        "labels", (TEACHER, "tuning.steps=4", "tuning.batch_size=4", "method.max_completion_tokens=6"), "eval/loss", 0.7
    ),
}


@pytest.fixture(scope="module")
def home(real_base, tmp_path_factory) -> Path:
    """A home whose registry has teacher@1, an adapter that has begun to answer with labels."""
    folder = tmp_path_factory.mktemp("home")
    job = job_of(real_base, folder, files_of("labels", folder), "tuning.steps=3")
    adapter = trained(job, folder / "teacher", packed=True).folder
    job.model.tokenizer().save_pretrained(adapter)
    Registry(job.registry_dir).publish("teacher", adapter, card(job.model, "adapter"))
    return folder


def test_every_method_has_a_case():
    assert {*CASES, "rlhf"} == {file.stem for file in (CONF / "method").glob("*.yaml")}


@pytest.mark.parametrize(
    ("method", "packed"),
    [(name, packed) for name, case in CASES.items() for packed in (False, True)[: 1 + case.packs]],
)
def test_a_method_improves_what_it_is_about(real_base, home, tmp_path, method, packed):
    case = CASES[method]
    data = files_of(case.records, tmp_path, train=16 if case.on_train else 48, eval=16)
    if case.on_train:
        data[1] = data[0].replace("data.train=", "data.eval=")
    found = trained(job_of(real_base, home, data, f"method={method}", *case.overrides), tmp_path / "run", packed=packed)
    bound = case.share * found.before[case.metric]
    improved = found.after[case.metric] <= bound if case.share < 1 else found.after[case.metric] >= bound
    assert improved, f"{case.metric}: {found.before[case.metric]:.3f} → {found.after[case.metric]:.3f}"


def test_a_policy_learns_what_is_rewarded(real_base, home, tmp_path):
    """One of two labels, by a policy that begins as an adapter which gives both, and other answers."""
    reward = ["method/rewards=[pattern]", "method.rewards.pattern.regex='^(not|sincere)'"]
    policy = ["method.init_adapter=teacher@1", "method.kl_coefficient=0.01", "method.max_kl=null"]
    small = ["method.num_generations=8", "method.max_completion_tokens=4", "method.eval_prompts=12"]
    steps = ["tuning.steps=5", "tuning.batch_size=2", "tuning.learning_rate_multiplier=2.0"]
    data = files_of("labels", tmp_path, train=48, eval=12)
    job = job_of(real_base, home, data, "method=rlhf", *reward, *policy, *small, *steps)
    examples = prepare(job).examples.eval
    found = trained(job, tmp_path / "run", base=False)
    opened = {"registry_dir": job.registry_dir, "allow_modules": (), "batch_size": 8, "seed": 0, "use_gpu": False}
    with model_refs.open_session(job.method, job.model, **opened) as session:
        reference = session.reference_model()
        before = session.measure(reference, examples, reference).metrics["eval/reward"].whole()
    assert found.after["eval/reward"] > before + 0.2, f"{before:.3f} → {found.after['eval/reward']:.3f}"
