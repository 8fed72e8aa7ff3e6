"""How many records a part is, and what is refused before anything is trained; a whole run is in test_bases.py."""

import json
from types import SimpleNamespace

import pytest
from worlds import WORDS, supervised, write_base

from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load
from raytune_llm.jobs.more_labels import check_more_labels, num_records
from raytune_llm.jobs.precompute import Precomputed
from raytune_llm.jobs.prepare import check_knobs, prepare, with_sources


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), "llama")


def job_of(base, folder, *overrides, counts=(64,)):
    paths = []
    for place, count in enumerate(counts):
        lines = [json.dumps(supervised([WORDS[i % 6], WORDS[i % 5], WORDS[i % 3]])) for i in range(count)]
        paths.append(folder / f"part{place}.jsonl")
        paths[-1].write_text("\n".join(lines) + "\n")
    train = f"[{','.join(map(str, paths))}]" if len(paths) > 1 else paths[0]
    given = [f"model.name_or_path={base}", f"data.train={train}", f"data.eval={paths[0]}", f"home={folder}"]
    return load("sweep", [*given, "sweep.more_labels=true", "sweep.confirm.top=0", *overrides])


def started(job):
    prepared = prepare(job)
    examples = with_sources(Precomputed(prepared.encoded, prepared.examples), job, prepared.splits)
    return SimpleNamespace(job=job, prepared=SimpleNamespace(examples=examples))


def test_records_of_a_part(base, tmp_path):
    found = started(job_of(base, tmp_path, "data.weights.part0=2", counts=(40, 24)))
    of_parts = {
        part: num_records(found.job.with_values({"data.subset": part}), found.prepared) for part in (0.125, 0.5, 1.0)
    }
    assert of_parts == {0.125: 8, 0.5: 32, 1.0: 64}
    without = found.job.with_values({"data.weights.part1": 0.0})
    assert num_records(without, found.prepared) == 40


@pytest.mark.parametrize(("override", "is_allowed"), [("seed=0", True), ("sweep.space.data.subset=[0.5,1.0]", False)])
def test_parts_of_too_few_records_are_refused(base, tmp_path, override, is_allowed):
    found = started(job_of(base, tmp_path, override))
    if is_allowed:
        check_more_labels(found)
    else:
        with pytest.raises(
            InputError, match=r"sweep\.more_labels=True is not allowed; allowed: false with under 64 records"
        ):
            check_more_labels(found)


def test_a_loss_that_couples_records_takes_no_parts(base, tmp_path):
    job = job_of(base, tmp_path, "method=distill_relation", f"method.teacher={base}")
    with pytest.raises(InputError, match=r"data\.subset=1\.0 is not allowed; allowed: 1 with this method"):
        check_knobs(job)
