import json
import math
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from raytune_llm.data.examples import IGNORED, Example, TokenSequence
from raytune_llm.data.tables.example_table import ExampleTable
from raytune_llm.evaluation.loss import Scores, evaluate
from raytune_llm.evaluation.terms import Better, Term
from raytune_llm.models.outputs import Outputs


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.5, attention_dropout=0.3)
    return LlamaForCausalLM(config).train()


def examples(number: int, names: tuple[str, ...] = ("completion",)) -> list[Example]:
    """Prompts of 1 to 9 tokens, completions of 1 to 5."""
    generator = torch.Generator().manual_seed(1)
    made: list[Example] = []
    for i in range(number):
        example = {}
        for name in names:
            prompt, completion = 1 + i * 5 % 9, 1 + i * 3 % 5
            ids = torch.randint(3, 61, (prompt + completion,), generator=generator).tolist()
            example[name] = TokenSequence(ids, [IGNORED] * prompt + ids[prompt:])
        made.append(example)
    return made


def token_mean(outputs: dict[str, Outputs]) -> dict[str, Term]:
    completion = outputs["completion"]
    num_tokens = completion.mask.sum(-1)
    return {
        "loss": Term(-completion.logprobs.sum(-1), num_tokens),
        "token_accuracy": Term(completion.correct.sum(-1), num_tokens, coefficient=0.0),
    }


def two_losses(outputs: dict[str, Outputs]) -> dict[str, Term]:
    return {
        name: Term(-outputs[name].logprobs.sum(-1), outputs[name].mask.sum(-1), coefficient=coefficient)
        for name, coefficient in (("label", 0.7), ("rationale", 0.3))
    }


def hf_losses(model: LlamaForCausalLM, rows: list[TokenSequence]) -> list[float]:
    model.eval()
    with torch.no_grad():
        losses = [model(torch.tensor([r.input_ids]), labels=torch.tensor([r.labels])).loss.item() for r in rows]
    model.train()
    return losses


def test_loss_is_the_token_mean_of_transformers_losses_and_modes_are_restored():
    model, data = tiny(), examples(11)
    rows = [example["completion"] for example in data]
    weights = [sum(label != IGNORED for label in row.labels) for row in rows]
    expected = np.average(hf_losses(model, rows), weights=weights)
    metrics = evaluate(model, data, token_mean, pad_id=0, batch_size=4).metrics()
    assert set(metrics) == {"eval/loss", "eval/token_accuracy", "eval/perplexity"}
    assert metrics["eval/loss"] == pytest.approx(expected, abs=1e-5)
    assert metrics["eval/perplexity"] == pytest.approx(math.exp(metrics["eval/loss"]))
    assert all(module.training for module in model.modules())


def test_scores_are_in_the_examples_order_and_do_not_depend_on_the_batch_size():
    model, data = tiny(), examples(11)
    expected = np.array(hf_losses(model, [example["completion"] for example in data]))
    found = {size: evaluate(model, data, token_mean, pad_id=0, batch_size=size) for size in (1, 3, 11, 100)}
    for scores in found.values():
        loss = scores.terms["loss"]
        assert loss.sum.dtype == loss.weight.dtype == np.float64
        np.testing.assert_allclose(loss.sum / loss.weight, expected, atol=1e-5)
        assert loss.weight.tolist() == [1 + i * 3 % 5 for i in range(11)]
        assert scores.metrics() == pytest.approx(found[1].metrics(), rel=1e-6)


def test_several_terms_each_have_their_own_denominator():
    model, data = tiny(), examples(7, ("label", "rationale"))
    metrics = evaluate(model, data, two_losses, pad_id=0, batch_size=3).metrics("train")
    assert set(metrics) == {"train/loss", "train/label", "train/rationale"}
    assert metrics["train/loss"] == pytest.approx(0.7 * metrics["train/label"] + 0.3 * metrics["train/rationale"])
    rows = [example["label"] for example in data]
    weights = [sum(label != IGNORED for label in row.labels) for row in rows]
    assert metrics["train/label"] == pytest.approx(np.average(hf_losses(model, rows), weights=weights), abs=1e-5)


def test_bits_per_byte_are_the_labels_nats_over_the_targets_bytes():
    model, data = tiny(), examples(11)
    sized = [{"completion": replace(example["completion"], num_bytes=3 + i % 4)} for i, example in enumerate(data)]
    nats = [
        loss * sum(label != IGNORED for label in example["completion"].labels)
        for loss, example in zip(hf_losses(model, [example["completion"] for example in data]), data, strict=True)
    ]
    expected = sum(nats) / math.log(2) / sum(3 + i % 4 for i in range(11))
    for batch_size, given in ((1, sized), (4, sized), (11, ExampleTable.of(sized))):
        scores = evaluate(model, given, token_mean, pad_id=0, batch_size=batch_size)
        assert scores.metrics()["eval/bits_per_byte"] == pytest.approx(expected, rel=1e-5)
        assert scores.directions()["eval/bits_per_byte"] is Better.lower
    some = [*sized[:-1], data[-1]]
    assert "eval/bits_per_byte" not in evaluate(model, some, token_mean, pad_id=0, batch_size=4).metrics()


def test_a_uniform_model_takes_log2_of_the_vocabulary_a_token():
    model = tiny()
    model.lm_head.weight.data.zero_()
    data = [{"completion": replace(example["completion"], num_bytes=2)} for example in examples(5)]
    tokens = sum(label != IGNORED for example in data for label in example["completion"].labels)
    found = evaluate(model, data, token_mean, pad_id=0, batch_size=2).metrics()["eval/bits_per_byte"]
    assert found == pytest.approx(tokens * math.log2(61) / (2 * 5), rel=1e-6)


def test_a_loss_per_example_has_no_perplexity():
    def pairs(outputs: dict[str, Outputs]) -> dict[str, Term]:
        margin = outputs["chosen"].logprobs.sum(-1) - outputs["rejected"].logprobs.sum(-1)
        return {"loss": Term(-torch.nn.functional.logsigmoid(margin), torch.ones_like(margin))}

    metrics = evaluate(tiny(), examples(4, ("chosen", "rejected")), pairs, pad_id=0, batch_size=2).metrics()
    assert set(metrics) == {"eval/loss"}


def test_a_resample_divides_by_its_own_weight():
    scores = evaluate(tiny(), examples(5), token_mean, pad_id=0, batch_size=5)
    loss, index = scores.terms["loss"], np.array([[0, 3, 3], [1, 2, 4]])
    expected = loss.sum[index].sum(-1) / loss.weight[index].sum(-1)
    np.testing.assert_allclose(scores.resamplable()["eval/loss"].at(index), expected)
    np.testing.assert_allclose(scores.resamplable()["eval/perplexity"].at(index), np.exp(expected))


def test_a_broken_model_shows_as_nan():
    model = tiny()
    model.lm_head.weight.data[0] = torch.nan
    metrics = evaluate(model, examples(3), token_mean, pad_id=0, batch_size=2).metrics()
    assert math.isnan(metrics["eval/loss"]) and math.isnan(metrics["eval/perplexity"])


def test_nothing_to_learn_is_not_a_perfect_loss():
    data = [{"completion": TokenSequence([4, 5], [IGNORED, IGNORED])}]
    assert math.isnan(evaluate(tiny(), data, token_mean, pad_id=0, batch_size=1).metrics()["eval/loss"])


def test_bad_examples_and_terms_are_refused():
    model, data = tiny(), examples(3)
    with pytest.raises(ValueError, match="no examples"):
        evaluate(model, [], token_mean, pad_id=0, batch_size=1)
    with pytest.raises(ValueError, match=r"example 1 has sequences \['label'\]"):
        evaluate(model, [data[0], {"label": data[1]["completion"]}], token_mean, pad_id=0, batch_size=1)
    with pytest.raises(ValueError, match=r"term 'loss' has shape \(\)"):
        evaluate(
            model, data, lambda outputs: {"loss": Term(torch.tensor(1.0), torch.tensor(1.0))}, pad_id=0, batch_size=2
        )
    with pytest.raises(ValueError, match=r"include \['loss'\]"):
        terms = evaluate(model, data, token_mean, pad_id=0, batch_size=2).terms
        doubled = {"loss": terms["loss"], "other": terms["loss"]}
        Scores(doubled, terms["loss"].weight).metrics()


def test_processes_share_the_work_and_agree(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(score_in_process, (2, port, str(tmp_path)), nprocs=2)
    for number in (1, 7):
        alone = evaluate(tiny(), examples(number), token_mean, pad_id=0, batch_size=2)
        for rank in range(2):
            saved = np.load(tmp_path / f"{number}-{rank}.npz")
            np.testing.assert_allclose(saved["sum"], alone.terms["loss"].sum, atol=1e-5)
            assert saved["weight"].tolist() == alone.terms["loss"].weight.tolist()
            assert saved["loss"] == pytest.approx(alone.metrics()["eval/loss"], abs=1e-6)
            assert saved["num_forwards"] == {1: 1, 7: 2}[number]


def score_in_process(rank: int, world_size: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    for number in (1, 7):
        model, calls = tiny(), []
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        data = examples(number)
        scores = evaluate(model, data, token_mean, pad_id=0, batch_size=2, rank=rank, world_size=world_size)
        loss = scores.terms["loss"]
        found = {"sum": loss.sum, "weight": loss.weight, "loss": scores.metrics()["eval/loss"]}
        np.savez(f"{folder}/{number}-{rank}.npz", **found, num_forwards=len(calls))
    torch.distributed.destroy_process_group()


@pytest.mark.real
@pytest.mark.skipif("RAYTUNE_LLM_PUBLIC_DATA" not in os.environ, reason="needs RAYTUNE_LLM_PUBLIC_DATA")
def test_a_real_base_has_its_known_loss_on_real_data():
    public = Path(os.environ["RAYTUNE_LLM_PUBLIC_DATA"])
    model = AutoModelForCausalLM.from_pretrained(public / "models/stories260K")
    tokenizer = AutoTokenizer.from_pretrained(public / "models/stories260K")
    data = []
    for line in (public / "data/isarcasm_cls/eval.jsonl").read_text().splitlines()[:64]:
        record = json.loads(line)
        prompt = tokenizer(record["input_text"] + "\n").input_ids
        answer = [*tokenizer(record["output_text"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        data.append({"completion": TokenSequence(prompt + answer, [IGNORED] * len(prompt) + answer)})
    metrics = evaluate(model, data, token_mean, pad_id=0, batch_size=16).metrics()
    rows = [example["completion"] for example in data]
    weights = [sum(label != IGNORED for label in row.labels) for row in rows]
    assert metrics["eval/loss"] == pytest.approx(np.average(hf_losses(model, rows), weights=weights), abs=1e-5)
    assert metrics["eval/loss"] == pytest.approx(7.4, abs=0.1)
