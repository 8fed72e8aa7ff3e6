"""Each divergence against its closed form, what is cached of a teacher, and who is refused as one."""

import math

import pytest
import torch
from torch.nn.functional import kl_div
from worlds import tokenizer, write_base, write_records

from raytune_llm.errors import InputError
from raytune_llm.evaluation.loss import evaluate
from raytune_llm.jobs import config
from raytune_llm.jobs.prepare import check_knobs, prepare
from raytune_llm.methods.common.distillation import DIVERGENCES, Divergence, softened
from raytune_llm.models.forward import outputs
from raytune_llm.models.frozen import with_teacher_top_k
from raytune_llm.models.outputs import Outputs

K, V = 3, 7


def logits(seed):
    return 2 * torch.randn(2, 4, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coarse(full, ids):
    """Log-probabilities of the candidates and of the rest together, from those of all tokens."""
    p = full.exp()
    known = p.gather(-1, ids)
    rest = p.scatter(-1, ids, 0.0).sum(-1, keepdim=True)
    return torch.cat([known, rest], -1).log()


def closed(kind, p, q):
    """By torch's own kl_div, from log-probabilities."""
    m = ((p.exp() + q.exp()) / 2).log()

    def kl(one, other):
        return kl_div(other, one, reduction="none", log_target=True).sum(-1)

    return {
        Divergence.forward: lambda: kl(p, q),
        Divergence.reverse: lambda: kl(q, p),
        Divergence.jensen_shannon: lambda: (kl(p, m) + kl(q, m)) / 2,
    }[kind]()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("kind", list(Divergence))
def test_all_of_the_vocabulary_is_exact(kind, temperature):
    """k = V: the divergence of the softened distributions themselves, value and gradient."""
    teacher, student = logits(0), logits(1).requires_grad_()
    ids = torch.arange(V).expand(2, 4, V)
    p, q = ((z / temperature).log_softmax(-1) for z in (teacher, student))
    expected = closed(kind, p, q)
    (slope,) = torch.autograd.grad(expected.sum(), student)
    full = torch.cat([teacher.log_softmax(-1), torch.full((2, 4, 1), -math.inf, dtype=torch.float64)], -1)
    found = DIVERGENCES[kind](*softened(full, student.log_softmax(-1).gather(-1, ids), temperature))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), student)[0], slope, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", list(Divergence))
def test_the_rest_is_one_more_outcome(kind):
    teacher, student = logits(0).log_softmax(-1), logits(1).log_softmax(-1)
    ids = teacher.topk(K).indices
    expected = closed(kind, coarse(teacher, ids), coarse(student, ids))
    found = DIVERGENCES[kind](*softened(coarse(teacher, ids), student.gather(-1, ids), 1.0))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def job_of(base, folder, *overrides):
    train, evaluation = write_records(folder)
    return config.load(
        "train",
        [
            "method=distill",
            f"model.name_or_path={base}",
            f"data.train={train}",
            f"data.eval={evaluation}",
            f"home={folder}",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), "llama")


def test_terms_weigh_labels_and_divergence_over_label_tokens(base, tmp_path):
    method = job_of(base, tmp_path, "method.alpha=0.25", "method.temperature=2").method
    teacher, student = logits(0).log_softmax(-1), logits(1).log_softmax(-1)
    ids = teacher.topk(K).indices
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0]], dtype=torch.float64)
    top_k = {"top_k_logprobs": student.gather(-1, ids), "teacher_logprobs": coarse(teacher, ids)}
    completion = Outputs(student[..., 0] * mask, mask, mask, **top_k)
    terms = method.terms({"completion": completion})
    p, q = ((x / 2).log_softmax(-1) for x in (coarse(teacher, ids), coarse(student, ids)))
    expected = 4 * (closed(Divergence.forward, p, q) * mask).sum() / 4
    found = terms["divergence"].sum.sum() / terms["divergence"].weight.sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    assert (terms["label_loss"].coefficient, terms["divergence"].coefficient) == (0.25, 0.75)


@pytest.mark.parametrize("shape", ["llama", "t5"])
def test_what_is_cached_is_what_the_teacher_says(shape, tmp_path):
    """By its own logits, one sequence at a time; and of itself a model has no divergence."""
    job = job_of(write_base(tmp_path / "base", shape), tmp_path)
    prepared = prepare(job)
    model = job.model.load().eval()
    few = prepared.examples.train[:5]
    with_top_k = with_teacher_top_k(model, few, top_k=K, vocabulary=len(tokenizer()), pad_id=0, batch_size=2)
    for example in with_top_k:
        sequence = example["completion"]
        ids, labels = torch.tensor([sequence.input_ids]), torch.tensor([sequence.labels])
        if shape == "t5":
            whole = model(input_ids=ids, labels=labels).logits[0]
        else:
            whole = model(input_ids=ids).logits[0, :-1][labels[0, 1:] != -100]
        expected = whole.double().log_softmax(-1)
        top = expected.topk(K)
        assert sequence.teacher.ids.tolist() == top.indices.tolist()
        found = torch.from_numpy(sequence.teacher.logprobs).double()
        torch.testing.assert_close(found, coarse(expected, top.indices), rtol=1e-4, atol=1e-5)
    found = outputs(model, [example["completion"] for example in with_top_k], pad_id=0)
    terms = job.method.terms({"completion": found})
    assert terms["divergence"].sum.abs().max() < 1e-5


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_metric_is_there_and_means_the_same_whatever_alpha_is(alpha, base, tmp_path):
    job = job_of(base, tmp_path, f"method.alpha={alpha}")
    model, few = job.model.load().eval(), prepare(job).examples.train[:5]
    with_top_k = with_teacher_top_k(model, few, top_k=K, vocabulary=len(tokenizer()), pad_id=0, batch_size=5)
    metrics = evaluate(model, with_top_k, job.method.terms, pad_id=0, batch_size=5).metrics()
    plain = [outputs(model, [example["completion"]], pad_id=0) for example in few]
    expected = -sum((one.logprobs * one.mask).sum() for one in plain) / sum(one.mask.sum() for one in plain)
    assert metrics[job.method.metric] == pytest.approx(expected.item(), rel=1e-5)
    assert ("eval/perplexity" in metrics) == (alpha == 1)


def test_a_teacher_of_another_vocabulary_is_refused_before_weights_are_read(base, tmp_path):
    other = tmp_path / "other"
    write_base(other, "qwen")
    words = tokenizer()
    words.add_tokens(["extra"])
    words.save_pretrained(other)
    (other / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match=r"method\.teacher=.*vocabulary of \d+ tokens isn't the student's.*'extra'"):
        prepare(job_of(base, tmp_path, f"method.teacher={other}"))


def test_teachers_that_are_not_there_or_of_another_kind(base, tmp_path):
    with pytest.raises(InputError, match=r"method\.teacher=nobody@3"):
        prepare(job_of(base, tmp_path, "method.teacher=nobody@3"))
    other = write_base(tmp_path / "t5", "t5")
    with pytest.raises(InputError, match="one of teacher and student is an encoder-decoder model"):
        prepare(job_of(base, tmp_path, f"method.teacher={other}"))


def test_what_all_trials_share_is_no_axis(base, tmp_path):
    train, evaluation = write_records(tmp_path)
    job = config.load(
        "sweep",
        [
            "method=distill",
            f"model.name_or_path={base}",
            f"data.train={train}",
            f"data.eval={evaluation}",
            "sweep.space.method.teacher_top_k=[8,16]",
        ],
    )
    with pytest.raises(InputError, match=r"method\.teacher_top_k is no axis: all trials share one"):
        check_knobs(job)


@pytest.mark.parametrize("override", ["method.alpha=1.5", "method.temperature=0.0", "method.teacher_top_k=0"])
def test_bad_values_are_refused(override, base, tmp_path):
    with pytest.raises(InputError, match=f"{override} is not allowed"):
        job_of(base, tmp_path, override)
