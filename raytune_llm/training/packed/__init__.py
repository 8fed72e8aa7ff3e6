"""Many trials as slots of one resident, frozen base, each with exactly the result of its own unpacked run.

    hyperparameters.py  what a slot trains with
    trial_state.py      what resuming a trial needs
    snapshot.py         a trial copied to the host, so that it is written while its pack steps on
    pack.py             the slots: join, step, evaluate, leave
    slot.py             a live trial in a pack
    batches.py          which rows go through the model together
    label_head.py       label log-probabilities, computed only where they count
    score_head.py       a reward model's scores
    losses.py           from a method's terms to each slot's loss and metrics
    scoring.py          evaluation of many adapters at once
    optimizer.py        AdamW and clipping row by row
    dropout.py          a dropout stream for each slot
    checkpointing.py    activations computed again instead of kept
    planner.py          how much goes through the model at once, by timing real steps
    memory.py           bytes of a slot and of a token, and what fits
    eligibility.py      what can be packed, and why the rest can't
    export.py           a slot as a PEFT folder
    pending_report.py   a report whose checkpoint is still to be written
    rehearsal.py        what trials will take, measured before they come
    trials.py           a base with its pack: trials from their start to their end
    checkpoint_writer.py  the thread that writes checkpoints
    actor.py            a resident base as a Ray actor

All but trials.py, actor.py and what they use to report know no trial's config (only hyperparameters_of reads it), and
all but actor.py no Ray.
One optimizer step of a pack is one step of each of its slots. A slot's result depends on nothing but its own settings,
examples and state: not on other slots, on the size of the pack or on how a step was split into passes. The base runs in
eval mode: its own dropout is off, only the adapters' is drawn.

A trial is three ideas:

    spec     TrialSpec (training/config.py): config, id, values, milestones; light, picklable, without torch. The pack
             itself takes its Hyperparameters, plain numbers, so that it runs without a job.
    state    TrialState: the tensors and the step from which any pack resumes the trial.
    handle   the live trial, in one part per owner: Slot, its row of the pack's tables; LiveTrial
             (training/reporting.py, the same for an unpacked trial), its reports and log; TrialHandle, what
             the actor's callers wait on. The first two belong to the training thread alone and the last to whoever
             holds the actor's lock: merged, each step would have to hold that lock.
"""
