from raytune_llm.jobs.clock import Clock


def test_a_line_names_the_parts_in_order_and_their_sum():
    ticks = iter([10.0, 12.0, 20.4, 21.4])
    clock = Clock(lambda: next(ticks))
    clock.lap("start")
    clock.lap("training")
    clock.lap("start")
    assert clock.text() == "11 s: start 3, training 8"
