"""CUDA graphs: how many are kept, and what becomes of those for which there is no memory."""

import torch

from raytune_llm.models.decoding.graphs import MAX_GRAPHS, Graphs


def test_graphs_are_bounded_and_the_latest_used_are_kept():
    captured, firsts = [], []

    def capture(step, is_first):
        captured.append(step())
        firsts.append(is_first)
        return step

    graphs = Graphs(capture)
    for key in range(MAX_GRAPHS):
        graphs.run(key, lambda: torch.zeros(1))
    graphs.run(0, lambda: torch.zeros(1))
    graphs.run("one more", lambda: torch.zeros(1))
    assert len(captured) == MAX_GRAPHS + 1 and len(graphs._replays) == MAX_GRAPHS
    graphs.run(0, lambda: torch.zeros(1))
    assert len(captured) == MAX_GRAPHS + 1
    graphs.run(1, lambda: torch.zeros(1))
    assert len(captured) == MAX_GRAPHS + 2
    graphs.clear()
    graphs.run(1, lambda: torch.zeros(1))
    assert firsts == [True, *[False] * (MAX_GRAPHS + 1), True]


def test_no_memory_for_a_graph_keeps_the_step_until_memory_was_freed():
    tries = []

    def capture(step, is_first):
        tries.append(step)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("no memory")
        return step

    graphs = Graphs(capture)
    assert graphs.run(0, lambda: torch.ones(1)) == 1
    assert len(tries) == 1 and len(graphs) == 0
    graphs.clear()
    assert graphs.run(0, lambda: torch.ones(1)) == 1
    assert len(tries) == 2 and len(graphs) == 1
