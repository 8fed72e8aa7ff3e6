"""How a train run's worker says how far it is, and what its driver shows of it."""

import math

import pytest

from raytune_llm.training.objective import Objective
from raytune_llm.training.progress import MARK, Progress, TrainView
from raytune_llm.training.screen import cells, plain

LOSS = Objective("eval/loss", lower_is_better=True)


def view(**more):
    known = {"title": "n/r", "steps": 40, "objective": LOSS, "num_devices": 2.0, "usd_per_hour": 3.0}
    return TrainView(**known | more)


def printed(capsys, *, live, shown=True):
    progress = Progress(40, shown=shown, live=live)
    for step in range(1, 21):
        progress(step, {})
        if step % 10 == 0:
            progress(step, {"train/loss": 1.0, "eval/loss": math.nan if step == 20 else 0.5})
    return capsys.readouterr().out.splitlines()


def test_a_log_gets_a_line_an_evaluation(capsys):
    lines = printed(capsys, live=False)
    assert [line.split("  ")[:3] for line in lines] == [
        ["step 10/40", "train/loss 1.0000", "eval/loss 0.5000"],
        ["step 20/40", "train/loss 1.0000", "eval/loss nan"],
    ]
    assert not printed(capsys, live=False, shown=False) and not printed(capsys, live=True, shown=False)


def test_a_view_takes_what_is_meant_for_it(capsys):
    shown = view()
    left = [line for line in printed(capsys, live=True) if not shown.takes(line)]
    assert len(left) == 2 and not any(MARK in line for line in left)
    assert shown.takes(f'(TrainWorker pid=12) {MARK}{{"step":21,"metrics":{{}},"rate":2.0}}')
    text = plain(shown.draw(100, 24))
    assert text.splitlines()[0] == "n/r train"
    assert "21/40 · 2 steps/s · 10 s left · 0 s so far · 0 GPU hours · $0.00" in text
    assert "train/loss 1 · eval/loss nan · ▁▁ · best 0.5 at step 10" in text


@pytest.mark.parametrize(("width", "height"), [(20, 2), (80, 24), (200, 50)])
def test_every_size_is_kept(width, height):
    shown = view(title="name" * 100)
    for step in range(1, 200):
        metrics = f'{{"train/loss":0.1,"eval/loss":{1 / step}}}'
        assert shown.takes(f'{MARK}{{"step":{step},"metrics":{metrics},"rate":2.0}}')
    lines = shown.draw(width, height)
    assert len(lines) <= height
    assert all(cells("".join(piece.text for piece in line)) <= width for line in lines)


def test_before_the_first_step():
    text = plain(view(num_devices=0.0, usd_per_hour=None).draw(80, 24))
    assert "0/40" in text and "so far" in text and "$" not in text and "GPU" not in text
