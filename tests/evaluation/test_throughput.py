"""A student next to its teacher."""

from worlds import write_base

from raytune_llm.evaluation.throughput import side_by_side
from raytune_llm.jobs import config


def test_sizes_speeds_and_right_answers(tmp_path):
    base = config.load("check", [f"model.name_or_path={write_base(tmp_path, 'llama')}", "data.train=x.jsonl"]).model
    model, tokenizer = base.load().eval(), base.tokenizer()
    prompts = [[5, 6, 7]] * 70
    header, teacher, student = side_by_side(
        {"teacher": model, "student": model},
        tokenizer,
        prompts,
        ["no such answer"] * 70,
        max_new_tokens=3,
        stop_ids=[1],
    )
    assert header == ["", "parameters", "weights, MB", "answer tokens per second", "exact answers of 64"]
    assert teacher[0] == "teacher" and student[0] == "student"
    assert teacher[1] == f"{base.facts.num_parameters:,}" and float(student[3]) > 0 and student[4] == "0"
    assert float(teacher[2]) == round(4 * base.facts.num_parameters / 1e6, 1)
