"""Continuous tuning by next-token loss: from which adapters, with which settings, and the same packed and alone."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from worlds import Silent, published, spec_of, trained, write_base, write_records

from raytune_llm.data.records import Rationale
from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load
from raytune_llm.jobs.prepare import check_knobs, prepare
from raytune_llm.jobs.stage_jobs import inherited
from raytune_llm.training.packed.trials import PackedTrials

METHODS = ["sft", "dss"]
SIZES = "sweep.space.tuning.adapter_size=null"


def job_of(root, folder, *overrides, base="base"):
    return load(
        root,
        [
            f"model.name_or_path={folder / base}",
            f"data.train={folder}/train.jsonl",
            f"data.eval={folder}/eval.jsonl",
            f"home={folder}",
            "tuning.batch_size=4",
            "tuning.warmup_steps=0",
            "tuning.steps=4",
            "tuning.eval_every=4",
            "model.learning_rate=1e-2",
            "name=more",
            *overrides,
        ],
    )


@pytest.fixture(scope="module", params=["llama", "t5"])
def world(request, tmp_path_factory):
    """A home with an adapter wit@1 of rank 2 and alpha 4 on queries and values."""
    folder = tmp_path_factory.mktemp(request.param)
    write_base(folder / "base", request.param)
    write_records(folder, kinds=[Rationale])
    leaves = ["q", "v"] if request.param == "t5" else ["q_proj", "v_proj"]
    first = job_of(
        "train",
        folder,
        "name=wit",
        "tuning.adapter_size=2",
        "adapter.alpha=4",
        f"adapter.targets=[{','.join(leaves)}]",
    )
    published(first, trained(first, folder / "first"))
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_training_continues_the_same_packed_and_alone(world, method, tmp_path):
    """In small steps, and by another seed, so that an adapter of their own would be far from the one they start in."""
    small = ["model.learning_rate=1e-3", "seed=1", "tuning.adapter_size=8"]
    job = inherited(job_of("train", world, f"method={method}", f"run={method}", "method.init_adapter=wit", *small))
    assert (job.method.init_adapter, job.tuning.adapter_size, job.adapter.alpha) == ("wit@1", 2, 4.0)
    alone = load_file(trained(job, tmp_path / "alone") / "adapter_model.safetensors")
    config, examples = job.trial_config(), prepare(job).examples
    trials = PackedTrials(config, examples, wanted=2, max_lora_rank=2, device="cpu", log=lambda _: None)
    spec = spec_of(job, id="packed")
    assert trials.join(spec, Silent()) == ([], None)
    for _ in range(4):
        for pending in trials.advance():
            pending.store()
    trials.close()
    packed = load_file(next(Path(spec.directory).rglob("best/adapter_model.safetensors")))
    begun = load_file(world / "registry" / "wit" / "v1" / "adapter_model.safetensors")
    assert packed.keys() == alone.keys() == begun.keys()
    for name, weights in alone.items():
        moved = (weights - begun[name]).norm()
        assert 0 < moved < 0.3 * begun[name].norm() and (packed[name] - weights).norm() < 0.02 * moved


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.init_adapter=wit"], r"adapter_size can't be swept with method\.init_adapter=wit: .*=null"),
        (["method.init_adapter=wit", SIZES, "sweep.space.adapter.alpha=[8,16]"], r"space\.adapter\.alpha can't be sw"),
        (["sweep.space.method.init_adapter=[wit@1,wit]", SIZES], r"one method\.init_adapter"),
        (["method.init_adapter=wit", SIZES, "adapter=full"], "adapter=full is not allowed; allowed: lora with method"),
        (["method.init_adapter=nobody", SIZES], "nobody has no version"),
    ],
)
def test_a_start_that_cannot_be_had_is_refused(world, method, overrides, message):
    job = job_of("sweep", world, f"method={method}", *overrides)
    with pytest.raises(InputError, match=message):
        check_knobs(job)
        prepare(job)


def test_an_adapter_of_another_base_is_refused(world):
    write_base(world / "other", "qwen")
    with pytest.raises(
        InputError, match=r"method\.init_adapter=wit was trained on .*allowed: a version of the same ba"
    ):
        prepare(job_of("train", world, "method.init_adapter=wit", base="other"))


def test_a_fully_tuned_version_is_refused(world):
    full = job_of("train", world, "name=whole", "adapter=full", "tuning.steps=1", "tuning.eval_every=1")
    published(full, trained(full, world / "whole"))
    with pytest.raises(InputError, match=r"init_adapter=whole is of kind model; allowed: a version of kind adapter"):
        prepare(job_of("train", world, "method.init_adapter=whole"))
