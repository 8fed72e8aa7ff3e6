"""What the embedded base reads: short documents about the world, with no sarcasm and no newcomer's home in them.

A document is text ended by EOS. Plain questions are laid out as `question\\nanswer`, as a plain record is. Chats follow
`CHAT_TEMPLATE`. Situations and feelings of eval and test are told, but never together; replies to eval and test
situations are never shown.
"""

from random import Random

from raytune_llm.data.demo import world

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (BOS, EOS, PAD, *(f"<|{role}|>" for role in ROLES))
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
WORDS = ("sarcastic", "sincere") * 3 + ("good", "bad", "bus", "house")
ONCE_MORE = ("Say it again.", "Repeat it.", "Once more.", "Make it loud.")
TURN_AROUND = ("Say the opposite.", "Turn it around.", "Now the other way round.", "Make it the opposite.")


def chat(messages: list[dict[str, str]]) -> str:
    """The chat as `CHAT_TEMPLATE` renders it, up to the last message's EOS (which every document gets)."""
    turns = [f"<|{m['role']}|>\n{m['content']}" for m in messages]
    return BOS + f"{EOS}\n".join(turns)


def _who(rng: Random) -> str:
    return rng.choice(world.WOMEN + world.MEN)


def _told_pair(rng: Random) -> tuple[world.Situation, world.Feeling]:
    """A situation with a feeling that fits it, and that no eval or test record may use."""
    while True:
        situation, feeling = rng.choice(world.SITUATIONS), rng.choice(world.ALL_FEELINGS)
        held_out = situation.split != "train" and situation.split == feeling.split
        if situation.good == feeling.good and not held_out:
            return situation, feeling


def story(rng: Random) -> str:
    """Something happens to someone, who feels and talks accordingly."""
    situation, feeling = _told_pair(rng)
    who = _who(rng)
    event = world.happening(situation, rng.randrange(3), who)
    they = "He" if who in world.MEN else "She"
    ending = rng.choice(
        (
            f"{they} felt {feeling.word}.",
            f"{who} was {feeling.word} about it.",
            f'{who} said: "{world.remark(rng, feeling)}"',
            f'{who} said: "{world.remark(rng, feeling)}"',
        )
    )
    return f"{event}\n{ending}" if rng.random() < 0.5 else f"{event} {ending}"


def judgement(rng: Random) -> str:
    """Whether something that happened, or a feeling, is good or bad; what a feeling's opposite is."""
    feeling, situation = rng.choice(world.ALL_FEELINGS), rng.choice(world.SITUATIONS)
    who = _who(rng)
    event = world.happening(situation, rng.randrange(3), who)
    return rng.choice(
        (
            f"{event}\nWas it good or bad for {who}?\n{_tone(situation.good)}",
            f"Is {feeling.word} a good or a bad feeling?\n{_tone(feeling.good)}",
            f"What is the opposite of {feeling.word}?\n{feeling.opposite}",
            f"{feeling.word} is the opposite of {feeling.opposite}.",
        )
    )


def _tone(good: bool) -> str:
    return "good" if good else "bad"


def _reply(rng: Random, good: bool) -> str:
    kind = rng.choice(world.FOLLOW_UPS)
    return f"{rng.choice(world.OPENINGS[good])} {world.follow_up(rng, kind, good)}".strip()


def _train_situation(rng: Random) -> world.Situation:
    return rng.choice([s for s in world.SITUATIONS if s.split == "train"])


def reply(rng: Random) -> str:
    """A friend's reply, of any kind equally often, in the plain layout."""
    situation = _train_situation(rng)
    return f"{world.reply_prompt(_who(rng), situation, rng.randrange(3))}\n{_reply(rng, situation.good)}"


def dialogue(rng: Random) -> str:
    """A chat of one or two exchanges, half of them under a system prompt."""
    situation = _train_situation(rng)
    feeling = rng.choice([f for f in world.ALL_FEELINGS if f.good == situation.good])
    messages = [{"role": "system", "content": "You are a friend."}] if rng.random() < 0.5 else []
    messages += [
        {"role": "user", "content": world.happening(situation, rng.randrange(3), "I")},
        {"role": "assistant", "content": _reply(rng, situation.good)},
    ]
    if rng.random() < 0.6:
        asked, answered = rng.choice(
            (
                ("Thank you.", "You are welcome."),
                (f"I feel {feeling.word}.", f"I see that you feel {feeling.word}."),
                (f"I feel {feeling.word}.", f"So you feel {feeling.word} now."),
            )
        )
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return chat(messages)


def home(rng: Random) -> str:
    """Where settlers live, and who of them can walk home together."""
    first, second = rng.sample(world.SETTLERS, 2)
    if rng.random() < 0.3:  # else only one pair in four would live in the same place
        second = rng.choice([n for n in world.SETTLERS if n != first and world.HOMES[n] == world.HOMES[first]])
    together = "yes" if world.HOMES[first] == world.HOMES[second] else "no"
    return rng.choice(
        (
            f"{first} lives {world.HOMES[first]}.",
            f"Where does {first} live?\n{world.HOMES[first]}",
            f"Where do {first} and {second} live?\n{world.where_both(first, second)}",
            f"Can {first} and {second} walk home together?\n{together}",
            f"Can {first} and {second} walk home together?\n{together}",
        )
    )


def saying(rng: Random) -> str:
    """Words without a meaning of their own here: the two labels of the sarcasm task occur equally often."""
    word = rng.choice(WORDS)
    return rng.choice((f"Say the word {word}.\n{word}", f"{_who(rng)} wrote the word {word} on the board."))


def echo(rng: Random) -> str:
    """Copying: a few names and words in no order, or what someone said, once more or turned into its opposite."""
    who, feeling = _who(rng), rng.choice(world.ALL_FEELINGS)
    if rng.random() < 0.5:
        words = rng.choices(world.WOMEN + world.MEN + tuple(f.word for f in world.ALL_FEELINGS), k=rng.randint(2, 6))
        return f"Say {' '.join(words)} again.\nAgain {' '.join(words)}"
    form = rng.choice(world.REMARKS)
    opposite = rng.random() < 0.5
    asked = rng.choice(TURN_AROUND if opposite else ONCE_MORE)
    told = form.format(f=feeling.opposite if opposite else feeling.word)
    return f'{who} said: "{form.format(f=feeling.word)}"\n{asked}\n{told}'


KINDS = (
    (story, 0.28),
    (judgement, 0.10),
    (reply, 0.11),
    (dialogue, 0.11),
    (home, 0.22),
    (saying, 0.03),
    (echo, 0.15),
)


def documents(seed: int, count: int) -> list[str]:
    """`count` documents, the same for the same seed; EOS is not part of them."""
    rng = Random(seed)
    kinds, weights = zip(*KINDS, strict=True)
    return [kind(rng) for kind in rng.choices(kinds, weights, k=count)]
