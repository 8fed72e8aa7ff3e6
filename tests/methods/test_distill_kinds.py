"""Distillation of hidden states, of relations, from an average of oneself and on one's own samples: each loss against
its closed form, and what is kept of a run and what isn't."""

import math

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import kl_div
from transformers import LlamaConfig, LlamaForCausalLM, TrainerState
from worlds import precomputed, spec_of, tokenizer, write_base, write_records

from raytune_llm.errors import InputError
from raytune_llm.jobs import config
from raytune_llm.jobs.prepare import check_knobs, prepare
from raytune_llm.methods.common.distillation import (
    Divergence,
    angles,
    cosine_distance,
    distances,
    relation_error,
    relative_error,
)
from raytune_llm.methods.distill_on_policy import BETAS, prompt_of
from raytune_llm.methods.trainers.ema import EMACallback, holding, trained
from raytune_llm.models.forward import outputs
from raytune_llm.models.frozen import with_features
from raytune_llm.models.hidden_states import attach_reader
from raytune_llm.models.outputs import Outputs
from raytune_llm.training.trial import WorkerContext, fit


def points(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def huber(one, other):
    apart = abs(one - other)
    return apart**2 / 2 if apart < 1 else apart - 0.5


def test_distances_of_hidden_states():
    student, teacher = points(2, 3, 5), points(2, 3, 5, seed=1)
    for b in range(2):
        for t in range(3):
            s, r = student[b, t], teacher[b, t]
            relative = sum((s - r) ** 2) / sum(r**2)
            cosine = 1 - sum(s * r) / math.sqrt(sum(s**2) * sum(r**2))
            assert relative_error(student, teacher)[b, t].item() == pytest.approx(relative.item())
            assert cosine_distance(student, teacher)[b, t].item() == pytest.approx(cosine.item())


def test_relations_as_the_paper_has_them():
    """Pairwise distances over their mean, and cosines of the angle at each middle one; any width."""
    student, teacher = points(2, 4, 5), points(2, 4, 3, seed=1)
    for b in range(2):
        pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
        triples = [(i, j, k) for j in range(4) for i in range(4) for k in range(i + 1, 4) if j not in (i, k)]
        relations = []
        for x in (student[b], teacher[b]):
            apart = [math.dist(x[i].tolist(), x[j].tolist()) for i, j in pairs]
            mean = sum(apart) / len(apart)
            to = {(i, j): (x[i] - x[j]) / (x[i] - x[j]).norm() for i in range(4) for j in range(4) if i != j}
            relations.append(([d / mean for d in apart], [(to[i, j] @ to[k, j]).item() for i, j, k in triples]))
        for place, relation in enumerate((distances, angles)):
            expected = [huber(s, t) for s, t in zip(relations[0][place], relations[1][place], strict=True)]
            found = relation_error(relation(student), relation(teacher))[b].item()
            assert found == pytest.approx(sum(expected) / len(expected), rel=1e-9)


def test_relations_know_no_rotation_scale_or_place():
    student = points(2, 4, 5)
    turned, _ = torch.linalg.qr(points(5, 5, seed=2))
    other = 3 * student @ turned + points(5, seed=3)
    for relation in (distances, angles):
        torch.testing.assert_close(relation(other), relation(student))
    assert torch.isfinite(torch.cat([distances(torch.zeros(1, 3, 2)), angles(torch.zeros(1, 3, 2))], -1)).all()


def outputs_of(features, teacher, mask):
    return Outputs(-mask, mask, mask, features=features, teacher_features=teacher)


def test_terms_of_features_are_means_over_label_tokens(base, tmp_path):
    method = job_of(
        "distill_feature", base, tmp_path, "method.alpha=0.25", "method.layers=[0,1]", "method.teacher_layers=[1,2]"
    ).method
    mask = torch.tensor([[1, 1, 0], [0, 1, 0]], dtype=torch.float64)
    student, teacher = points(2, 3, 2, 5), points(2, 3, 2, 5, seed=1)
    terms = method.terms({"completion": outputs_of(student, teacher, mask)})
    per_token = [relative_error(student, teacher)[b, t].mean() for b, t in ((0, 0), (0, 1), (1, 1))]
    found = terms["feature_distance"]
    assert (found.sum.sum() / found.weight.sum()).item() == pytest.approx((sum(per_token) / 3).item())
    assert (terms["label_loss"].coefficient, found.coefficient) == (0.25, 0.75)
    without_teacher = method.terms({"completion": Outputs(-mask, mask, mask)})
    assert (without_teacher["loss"].coefficient, without_teacher["label_loss"].coefficient) == (1, 0)


def test_terms_of_relations_couple_an_example_with_its_group(base, tmp_path):
    method = job_of("distill_relation", base, tmp_path, "method.alpha=0.25", "method.angle_weight=2").method
    mask = torch.tensor([[1, 1], [1, 0]], dtype=torch.float64)
    names = ["completion", "member1", "member2"]
    student, teacher = (
        [points(2, 2, 1, 5, seed=i) for i in range(3)],
        [points(2, 2, 1, 3, seed=9 + i) for i in range(3)],
    )
    terms = method.terms({n: outputs_of(s, t, mask) for n, s, t in zip(names, student, teacher, strict=True)})

    def group(all_of):  # the second row has one label token
        return torch.stack([torch.stack([x[0, :, 0].mean(0), x[1, 0, 0]]) for x in all_of], 1)

    for name, relation, weight in (("relation_distance", distances, 0.75), ("angle_distance", angles, 1.5)):
        expected = relation_error(relation(group(student)), relation(group(teacher)))
        torch.testing.assert_close(terms[name].sum, expected)
        assert terms[name].coefficient == weight and terms[name].weight.tolist() == [1, 1]


def job_of(method, base, folder, *overrides):
    train, evaluation = write_records(folder)
    return config.load(
        "train",
        [
            f"method={method}",
            f"model.name_or_path={base}",
            f"data.train={train}",
            f"data.eval={evaluation}",
            f"home={folder}",
            "tuning.adapter_size=4",
            "tuning.warmup_steps=0",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A teacher of another width and depth, of the same vocabulary."""
    folder, words = tmp_path_factory.mktemp("wide"), tokenizer()
    shape = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **shape, initializer_range=0.2)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("shape", ["llama", "t5"])
def test_what_is_kept_is_what_the_teacher_thinks(shape, tmp_path):
    """By its own hidden states, one sequence at a time; and from itself a model is nowhere apart."""
    job = job_of("distill_feature", write_base(tmp_path / "base", shape), tmp_path)
    model, few = job.model.load().eval(), prepare(job).examples.train[:5]
    shown = with_features(model, few, layers=(1, -1), pad_id=0, batch_size=2)
    for example in shown:
        sequence = example["completion"]
        ids, labels = torch.tensor([sequence.input_ids]), torch.tensor([sequence.labels])
        if shape == "t5":
            states = model(input_ids=ids, labels=labels, output_hidden_states=True).decoder_hidden_states
            expected = [states[layer][0] for layer in (1, 2)]
        else:
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
            expected = [states[layer][0, :-1][labels[0, 1:] != -100] for layer in (1, 2)]
        found = torch.from_numpy(sequence.features)
        torch.testing.assert_close(found, torch.stack(expected, 1).detach(), rtol=1e-4, atol=1e-5)
    attach_reader(model, (1, -1), other_width=None, seed=0)
    apart = outputs(model, [example["completion"] for example in shown], pad_id=0)
    torch.testing.assert_close(apart.features, apart.teacher_features, rtol=1e-4, atol=1e-5)


def run(job, folder, resume=None, report=None):
    """The reports of a trial here, and its checkpoint."""
    reports = []
    folder.mkdir()
    fit(
        spec_of(job),
        precomputed(job).examples,
        WorkerContext(folder, 0, 1, False),
        report=report or (lambda metrics, checkpoint: reports.append(metrics)),
        run=Quiet(),
        progress=lambda step, metrics: None,
        resume=resume,
    )
    return reports, folder / "checkpoint"


class Quiet:
    def log(self, step, metrics): ...

    def finish(self, summary, failed): ...


class KilledError(Exception):
    pass


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_projection_is_trained_and_resumed_but_no_part_of_the_result(adapter, base, wide, tmp_path):
    job = job_of(
        "distill_feature",
        base,
        tmp_path,
        f"method.teacher={wide}",
        f"adapter={adapter}",
        "tuning.steps=4",
        "tuning.eval_every=2",
        "method.teacher_layers=[3]",
        "model.learning_rate=1e-2",
    )
    whole, checkpoint = run(job, tmp_path / "whole")
    assert whole[-1]["eval/feature_distance"] < whole[0]["eval/feature_distance"]
    kept = tmp_path / "kept"

    def keep_and_die(metrics, checkpoint):
        checkpoint.rename(kept)
        raise KilledError

    with pytest.raises(KilledError):
        run(job, tmp_path / "first", report=keep_and_die)
    resumed, _ = run(job, tmp_path / "second", resume=kept)
    for metric in ("eval/feature_distance", "eval/loss"):
        assert resumed[-1][metric] == pytest.approx(whole[-1][metric], rel=1e-6)
    (weights,) = (checkpoint / "best").glob("*model.safetensors")
    with safe_open(weights, "pt") as file:
        assert not [name for name in file.keys() if "feature_reader" in name]  # noqa: SIM118
    assert (checkpoint / "state" / "extra_parameters.safetensors").is_file()


def test_the_average_follows_and_is_lent_only(base, tmp_path):
    job = job_of("distill_ema", base, tmp_path)
    model = job.adapter.apply(job.model.load(), lora_rank=4, seed=0)
    first = {name: weight.detach().clone() for name, weight in trained(model).items()}
    average, expected = dict(first), dict(first)
    follow = EMACallback(average, decay=0.6)
    for step, decay in enumerate((1 / 2, 0.6, 0.6)):  # 1 - 1 / (n + 1) would be 1 / 2, 2 / 3, 3 / 4
        with torch.no_grad():
            for weight in trained(model).values():
                weight += step + 1
        follow.on_step_end(None, TrainerState(global_step=step + 1), None, model=model)
        now = trained(model)
        expected = {name: decay * mean + (1 - decay) * now[name].detach() for name, mean in expected.items()}
    torch.testing.assert_close(average, expected)
    with holding(model, average):
        torch.testing.assert_close(dict(trained(model)), average, check_stride=False)
    torch.testing.assert_close({n: w.detach() for n, w in trained(model).items()}, {n: w + 6 for n, w in first.items()})


@pytest.mark.parametrize("kind", list(Divergence))
def test_trls_beta_is_the_divergence_of_that_name(kind):
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    student, teacher = points(1, 4, 6).float(), points(1, 4, 6, seed=1).float()
    head, other = points(7, 6, seed=2).float(), points(7, 6, seed=3).float()
    p, q = ((states @ weight.T / 2).log_softmax(-1).double() for states, weight in ((teacher, other), (student, head)))
    m = ((p.exp() + q.exp()) / 2).log()

    def kl(one, two):
        return kl_div(two, one, reduction="none", log_target=True).sum(-1)

    expected = {
        Divergence.forward: kl(p, q),
        Divergence.reverse: kl(q, p),
        Divergence.jensen_shannon: (kl(p, m) + kl(q, m)) / 2,
    }[kind]
    mask = torch.tensor([[1, 1, 1, 0]])
    loss, _, count = _chunked_divergence_loss(student, teacher, head, other, mask, BETAS[kind], temperature=2.0)
    assert count == 3 and loss.item() == pytest.approx(expected[0, :3].mean().item(), rel=1e-4)


def test_on_policy_runs_and_asks_what_comes_before_the_answer(base, wide, tmp_path):
    job = job_of(
        "distill_on_policy",
        base,
        tmp_path,
        f"method.teacher={wide}",
        "tuning.steps=4",
        "tuning.eval_every=2",
        "method.max_completion_tokens=4",
        "tuning.batch_size=4",
        "tuning.micro_batch_size=2",
    )
    reports, _ = run(job, tmp_path / "run")
    assert [report["step"] for report in reports] == [2, 4]
    assert all(math.isfinite(report["eval/loss"]) and "eval/perplexity" not in report for report in reports)
    prepared = prepare(job)
    sequence, record = prepared.examples.train[0]["completion"], prepared.splits.train[0]
    assert prompt_of(sequence) == prepared.tokens.prompt(record.prompt)


def test_bad_input_is_refused_before_weights_are_read(base, wide, tmp_path):
    with pytest.raises(InputError, match=r"method\.layers=3 is not allowed; allowed: -3 to 2: .* has 2 blocks"):
        prepare(job_of("distill_feature", base, tmp_path, f"method.teacher={wide}", "method.layers=[3]"))
    with pytest.raises(InputError, match=r"method\.teacher_layers=\[1, 2\] is not allowed; allowed: as many layers"):
        job_of("distill_feature", base, tmp_path, "method.teacher_layers=[1,2]")
    with pytest.raises(InputError, match=r"method\.group_size=2 is not allowed"):
        job_of("distill_relation", base, tmp_path, "method.group_size=2")
    with pytest.raises(InputError, match="is an encoder-decoder base: TRL's trainer that samples has no path"):
        prepare(job_of("distill_on_policy", write_base(tmp_path / "t5", "t5"), tmp_path))
    with pytest.raises(InputError, match=r"method\.decay=1\.0 is not allowed"):
        job_of("distill_ema", base, tmp_path, "method.decay=1.0")
    train, evaluation = write_records(tmp_path)
    sweep = config.load(
        "sweep",
        [
            "method=distill_relation",
            f"model.name_or_path={base}",
            f"data.train={train}",
            f"data.eval={evaluation}",
            "sweep.space.method.group_size=[3,4]",
        ],
    )
    with pytest.raises(InputError, match=r"method\.group_size is no axis: all trials share one"):
        check_knobs(sweep)
