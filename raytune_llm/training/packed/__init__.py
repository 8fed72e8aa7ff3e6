"""Many trials as slots of one resident, frozen base, each exactly what it would be alone.

    pack.py           the slots: join, step, evaluate, leave
    slot.py           one trial's settings and its saved state
    batching.py       which rows go through the model together
    projection.py     label log-probabilities, computed only where they count
    tally.py          from a method's terms to each slot's loss and metrics
    scoring.py        evaluation of many adapters at once
    optimizer.py      AdamW and clipping row by row
    dropout.py        a dropout stream for each slot
    checkpointing.py  activations computed again instead of kept
    planner.py        how much goes through the model at once, by timing real steps
    memory.py         bytes of a slot and of a token, and what fits
    eligible.py       what can be packed, and why the rest can't
    export.py         a slot as a PEFT folder
    placement.py      a job's trial, as it is sent to a pack
    resident.py       a base with its pack: jobs' trials from their start to their end
    actor.py          a resident base as a Ray actor

All but the last three know neither jobs nor Ray. One optimizer step of a pack is one step of each of its slots. What a
slot computes depends on nothing but its own settings, examples and state: not on its neighbours, on the size of the
pack or on how a step was cut. The base runs in eval mode: its own dropout is off, only the adapters' is drawn.
"""
