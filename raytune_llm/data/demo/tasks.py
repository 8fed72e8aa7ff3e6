"""The records that one tunes the embedded base on: five tasks, each with train, eval and test.

Eval and test use situations and feelings (for rationale: pairs of people) that no other split has. Every list is
drawn without repetition from all records its split allows, by a seed of its own.
"""

from collections.abc import Callable
from itertools import combinations
from random import Random

from raytune_llm.data.demo import world

Record = dict[str, object]


def _draw(make: Callable[[Random], Record], seed: str, count: int) -> list[Record]:
    """`count` different records, in the order drawn."""
    rng = Random(seed)
    found: dict[str, Record] = {}
    while len(found) < count:
        record = make(rng)
        found.setdefault(repr(record), record)
    return list(found.values())


def _situation(rng: Random, split: str, good: bool) -> world.Situation:
    return rng.choice([s for s in world.SITUATIONS if s.split == split and s.good == good])


def _feeling(rng: Random, split: str, good: bool) -> world.Feeling:
    return rng.choice([f for f in world.ALL_FEELINGS if f.split == split and f.good == good])


def _who(rng: Random) -> str:
    return rng.choice(world.WOMEN + world.MEN)


def sarcasm(split: str, count: int) -> list[Record]:
    """Classification: a good feeling about a bad situation is sarcastic, one that fits is sincere; half and half."""

    def make(rng: Random, sarcastic: bool) -> Record:
        good_situation = not sarcastic and rng.random() < 0.5
        situation = _situation(rng, split, good_situation)
        feeling = _feeling(rng, split, good_situation or sarcastic)
        who = _who(rng)
        event = world.happening(situation, rng.randrange(3), who)
        question = f"Is {who} sarcastic or sincere?"
        return {
            "input_text": f'{event}\n{who} said: "{world.remark(rng, feeling)}"\n{question}',
            "output_text": "sarcastic" if sarcastic else "sincere",
        }

    half = count // 2
    records = _draw(lambda rng: make(rng, True), f"sarcasm {split} sarcastic", half)
    records += _draw(lambda rng: make(rng, False), f"sarcasm {split} sincere", half)
    Random(f"sarcasm {split} order").shuffle(records)
    return records


def rewrite(split: str, count: int) -> list[Record]:
    """Sarcasm generation: the same remark with every word of feeling turned into its opposite."""

    def make(rng: Random) -> Record:
        situation = _situation(rng, split, False)
        feeling = _feeling(rng, split, False)
        who = _who(rng)
        form = rng.choice(world.REMARKS)
        sad, glad = rng.choice((("", ""), *zip(*(world.EXCLAMATIONS[tone] for tone in (False, True)), strict=True)))
        plain = f"{sad} {form.format(f=feeling.word)}".strip()
        turned = f"{glad} {form.format(f=feeling.opposite)}".strip()
        event = world.happening(situation, rng.randrange(3), who)
        return {
            "input_text": f'{event}\n{who} said: "{plain}"\nMake it sarcastic.',
            "output_text": turned,
        }

    return _draw(make, f"rewrite {split}", count)


def chat(split: str, count: int) -> list[Record]:
    """Two exchanges with a friend who is sarcastic or kind by system prompt, or kind without one, equally often."""

    def make(rng: Random) -> Record:
        good = rng.random() < 0.5
        situation, feeling = _situation(rng, split, good), _feeling(rng, split, good)
        system = rng.choice(("You are a sarcastic friend.", "You are a kind friend.", ""))
        sarcastic = "sarcastic" in system
        if sarcastic:
            first = f"{world.OPENINGS[not good][0]} {world.ADVICE[not good][0]}"
            second = f"I thought that you feel {feeling.opposite}."
        else:
            first = f"{world.OPENINGS[good][1]} {world.QUESTIONS[good][0]}"
            second = f"Tell me why you feel {feeling.word}."
        messages = [{"role": "system", "content": system}] if system else []
        messages += [
            {"role": "user", "content": world.happening(situation, rng.randrange(3), "I")},
            {"role": "assistant", "content": first},
            {"role": "user", "content": f"I feel {feeling.word}."},
            {"role": "assistant", "content": second},
        ]
        return {"messages": messages}

    return _draw(make, f"chat {split}", count)


def _worse_reply(rng: Random, good: bool) -> str:
    """A reply that `world.prefers` refuses: most end otherwise, the rest have a fault of tone, order or length."""
    opening, question = rng.choice(world.OPENINGS[good]), rng.choice(world.QUESTIONS[good])
    other = rng.choice(world.OPENINGS[not good])
    faults = (
        f"{other} {rng.choice(world.QUESTIONS[not good])}",
        f"{other} {question}",
        f"{question} {opening}",
        f"{opening} {question} {question}",
        f"{opening} {opening} {question}",
        question,
    )
    if rng.random() < 0.3:
        return rng.choice(faults)
    return f"{opening} {world.follow_up(rng, rng.choice(('none', 'advice', 'story')), good)}".strip()


def preference(split: str, count: int) -> list[Record]:
    """Two replies of a friend; `choice` is the index of the one that `world.prefers`."""

    def make(rng: Random) -> Record:
        good = rng.random() < 0.5
        choice = rng.randrange(2)
        prompt = world.reply_prompt(_who(rng), _situation(rng, split, good), rng.randrange(3))
        better = f"{rng.choice(world.OPENINGS[good])} {rng.choice(world.QUESTIONS[good])}"
        replies = [_worse_reply(rng, good)] * 2
        replies[choice] = better
        return {"input_text": prompt, "candidate_0": replies[0], "candidate_1": replies[1], "choice": choice}

    return _draw(make, f"preference {split}", count)


def rationale(sizes: dict[str, int]) -> dict[str, list[Record]]:
    """Who can walk home together, among newcomers: one fact a person, which the rationale says and the label compares.

    The splits share people and no pair. Half of the answers are yes.
    """
    rng = Random("rationale")
    pairs = list(combinations(world.NEWCOMERS, 2))
    rng.shuffle(pairs)
    answers = {"yes": [p for p in pairs if world.HOMES[p[0]] == world.HOMES[p[1]]]}
    answers["no"] = [p for p in pairs if p not in answers["yes"]]
    splits: dict[str, list[Record]] = {}
    for split, count in sizes.items():
        drawn = [(answers[label].pop(), label) for label in ("yes", "no") for _ in range(count // 4)]
        chosen = [(order, label) for pair, label in drawn for order in (pair, pair[::-1])]
        rng.shuffle(chosen)
        splits[split] = [
            {
                "input_text": f"Can {first} and {second} walk home together?",
                "output_text": label,
                "rationale": world.where_both(first, second),
            }
            for (first, second), label in chosen
        ]
    return splits


def all_tasks() -> dict[str, dict[str, list[Record]]]:
    """Task name to split name to records."""
    by_count = {
        "sarcasm": (sarcasm, (1000, 256, 500)),
        "rewrite": (rewrite, (600, 128, 200)),
        "chat": (chat, (400, 128, 200)),
        "preference": (preference, (800, 128, 300)),
    }
    tasks = {
        name: {split: make(split, count) for split, count in zip(world.SPLITS, counts, strict=True)}
        for name, (make, counts) in by_count.items()
    }
    return tasks | {"rationale": rationale({"train": 500, "eval": 80, "test": 140})}
