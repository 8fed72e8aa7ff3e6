"""The small English world behind the embedded base and its data: who lives in it, what happens, what is said.

Three facts carry every task. A situation is good or bad; a feeling is good or bad and has an opposite; a person lives
in one place. Situations, feelings and people are each divided, once and here, so that no test combination can be met
earlier. Sentences are templates over these tables; drawing from them is left to `corpus.py` (what the base reads) and
`tasks.py` (what one tunes on). `prefers` is the true rule behind the preference data.
"""

from dataclasses import dataclass
from random import Random

SPLITS = ("train", "eval", "test")

# One line is one situation in three wordings; past tense fits "I" and a name alike. {s} = my/his/her, {o} = me/him/her.
BAD_SITUATIONS = (
    ("missed the last bus", "saw the last bus drive away", "got to the stop after the last bus"),
    ("lost {s} keys", "could not find {s} keys", "dropped {s} keys in the lake"),
    ("burnt the toast", "left the toast in too long", "turned the toast into charcoal"),
    ("failed the test", "got the worst mark on the test", "did not pass the test"),
    ("broke {s} phone", "dropped {s} phone on the stairs", "cracked the screen of {s} phone"),
    ("got a parking ticket", "had to pay a parking fine", "found a fine on {s} car"),
    ("caught a bad cold", "woke up with a fever", "got sick before the trip"),
    ("spilled soup on {s} shirt", "got soup all over {s} shirt", "poured soup on {s} new shirt"),
    ("lost the game", "came last in the game", "was beaten in the game"),
    ("forgot the umbrella in the storm", "got soaked by the rain", "had to walk through the storm"),
    ("had a flat tire", "drove over a nail", "got stuck with a flat tire"),
    ("got stung by a bee", "sat down on a bee", "was stung on the nose"),
    ("had to work all weekend", "got more work for the weekend", "spent the whole weekend at work"),
    ("waited three hours in a line", "stood in a line all morning", "queued for hours and got nothing"),
    ("lost {s} wallet", "left {s} wallet on the train", "had {s} wallet stolen"),
    ("broke a tooth", "bit on a stone", "had to see the dentist about a tooth"),
    ("got no sleep", "lay awake all night", "heard the neighbors shout all night"),
    ("fell off {s} bike", "crashed {s} bike into a fence", "fell into the mud with {s} bike"),
    ("heard that the show was cancelled", "came to a closed theater", "had a ticket for a cancelled show"),
    ("found a hole in the roof", "had water dripping on {s} bed", "woke up in a flooded room"),
    ("got the wrong order again", "was served cold food", "found a hair in {s} food"),
    ("lost all the files", "deleted {s} own report", "saw the computer crash"),
    ("stepped on a toy brick", "hit {s} toe on the door", "hurt {s} foot on a chair"),
    ("had {s} flight delayed", "was stuck at the airport", "slept on the airport floor"),
    ("killed the plants", "let {s} garden dry out", "found {s} flowers dead"),
    ("was left out of the team", "was not picked by the team", "got kicked out of the team"),
    ("tore {s} best coat", "ripped a hole in {s} coat", "caught {s} coat in a door"),
    ("got locked out", "stood before a locked house", "was shut out in the cold"),
    ("dropped the cake", "saw the dog eat the cake", "sat on the birthday cake"),
    ("lost {s} job", "was fired by {s} boss", "heard that {s} shop would close"),
    ("scratched {s} new car", "backed {s} car into a wall", "found a dent in {s} car"),
    ("ate a bad egg", "drank sour milk", "got sick from old fish"),
)
GOOD_SITUATIONS = (
    ("won the race", "came first in the race", "was the fastest in the race"),
    ("got a puppy", "was given a little dog", "brought home a puppy"),
    ("passed the exam", "got the best mark in the exam", "did very well in the exam"),
    ("got a raise", "was offered more money", "heard that {s} pay would go up"),
    ("found a gold coin", "dug up a box of coins", "picked up a coin of real gold"),
    ("got a free ticket to the concert", "was invited to the concert", "sat in the front row of the concert"),
    ("met an old friend", "heard from an old friend", "had dinner with an old friend"),
    ("baked a perfect pie", "made a very tasty pie", "took a lovely pie from the oven"),
    ("won a prize", "was given first prize", "took home a big prize"),
    ("had a sunny day off", "spent a free day in the sun", "lay in the sun all day"),
    ("got a new bike", "was given a shiny bike", "rode home on a new bike"),
    ("finished the book {p} wrote", "sold {s} first book", "saw {s} book in a shop"),
    ("got flowers from a friend", "was sent a box of roses", "found roses at {s} door"),
    ("learned to swim", "swam across the lake", "swam without help"),
    ("was praised by the teacher", "got a kind word from the teacher", "heard the teacher call {o} clever"),
    ("fixed the radio", "made the old radio play again", "got the radio to work"),
    ("went to the beach", "played in the warm sea", "built a castle on the beach"),
    ("got a letter from grandma", "was visited by grandma", "had tea with grandma"),
    ("saw a rainbow", "saw dolphins play", "watched a lovely sunset"),
    ("scored the winning goal", "won the cup", "was cheered by the crowd"),
    ("moved into a new house", "got a room with a view", "bought a house by the sea"),
    ("got well again", "left the hospital in good health", "could walk again"),
    ("found the lost cat", "got {s} cat back", "saw {s} cat come home"),
    ("sang on a stage", "got a long applause", "played the piano for a cheering crowd"),
    ("grew a giant pumpkin", "picked sweet berries in {s} garden", "saw {s} roses bloom"),
    ("got the job", "was hired at once", "was chosen for the best job"),
    ("had a party", "was surprised with a party", "danced at a party"),
    ("got a warm hug", "was hugged by {s} sister", "made up with {s} brother"),
    ("went on a holiday", "flew to a sunny island", "had a week of holiday"),
    ("paid off the house", "saved enough money", "got money back from the bank"),
    ("won at chess", "beat the chess champion", "played a brilliant game of chess"),
    ("ate a huge pizza", "got free ice cream", "had pancakes for breakfast"),
)
# (good, bad) opposites
FEELINGS = (
    ("happy", "sad"), ("glad", "upset"), ("thrilled", "furious"), ("excited", "worried"), ("lucky", "unlucky"),
    ("calm", "nervous"), ("joyful", "heartbroken"), ("hopeful", "hopeless"), ("wonderful", "awful"),
    ("great", "terrible"), ("blessed", "cursed"), ("content", "disappointed"),
    ("proud", "ashamed"), ("grateful", "bitter"), ("amazing", "horrible"),
    ("delighted", "miserable"), ("cheerful", "gloomy"), ("pleased", "annoyed"), ("merry", "cross"),
    ("fantastic", "dreadful"),
)  # fmt: skip
FEELING_ENDS = {"train": (0, 12), "eval": (12, 15), "test": (15, 20)}
SITUATION_ENDS = {"train": (0, 20), "eval": (20, 24), "test": (24, 32)}
EXCLAMATIONS = {
    True: ("Great.", "Lovely.", "How nice.", "Just perfect."),
    False: ("Oh no.", "What a shame.", "Not again.", "What a mess."),
}
REMARKS = ("I feel {f}.", "I feel so {f}.", "This makes me feel {f}.")

WOMEN = (
    "Mia", "Ann", "Eva", "Lea", "Ida", "Zoe", "Amy", "Eve", "Liv", "Kim", "Sue", "Meg", "Joy", "Fay", "Peg", "Lou",
    "Nina", "Rosa", "Emma", "Lily", "Ella", "Jane", "Kate", "Lena", "Vera", "Dora", "Ruth", "Hana", "Tina", "Nora",
    "Gina", "Mona", "Iris", "June", "Beth", "Cleo", "Anna", "Sara", "Lisa", "Tess",
)  # fmt: skip
MEN = (
    "Tom", "Ben", "Sam", "Max", "Leo", "Dan", "Jim", "Tim", "Bob", "Joe", "Ray", "Ned", "Ted", "Gus", "Hal", "Ian",
    "Adam", "Noah", "Jack", "Luke", "Paul", "Mark", "Finn", "Owen", "Hugo", "Carl", "Ivan", "Omar", "Karl", "Otto",
    "Alan", "Bill", "Fred", "John", "Mike", "Nick", "Pete", "Rick", "Theo", "Walt",
)  # fmt: skip
PLACES = ("by the river", "on the hill", "in the forest", "at the harbor")


@dataclass(frozen=True)
class Situation:
    """Something that happens to someone, in three wordings."""

    good: bool
    split: str
    wordings: tuple[str, ...]


@dataclass(frozen=True)
class Feeling:
    """A feeling word, whether it is a good one, and its opposite."""

    word: str
    good: bool
    split: str
    opposite: str


def _split_of(index: int, ends: dict[str, tuple[int, int]]) -> str:
    return next(split for split, (low, high) in ends.items() if low <= index < high)


SITUATIONS = tuple(
    Situation(good, _split_of(index, SITUATION_ENDS), wordings)
    for good, table in ((False, BAD_SITUATIONS), (True, GOOD_SITUATIONS))
    for index, wordings in enumerate(table)
)
ALL_FEELINGS = tuple(
    Feeling(pair[side], side == 0, _split_of(index, FEELING_ENDS), pair[1 - side])
    for index, pair in enumerate(FEELINGS)
    for side in (0, 1)
)
# The homes of settlers stand in the base's corpus, the homes of newcomers only in the rationale task.
SETTLERS = WOMEN[:20] + MEN[:20]
NEWCOMERS = WOMEN[20:] + MEN[20:]
HOMES = {name: PLACES[index % 4] for group in (SETTLERS, NEWCOMERS) for index, name in enumerate(group)}

# What a friend says back: an opening, then perhaps one more sentence. True and False: about something good or bad.
OPENINGS = {
    True: ("What lovely news.", "I am happy to hear that.", "Good for you.", "That is a nice surprise."),
    False: ("That sounds hard.", "I am sorry to hear that.", "Poor you.", "That is a real pity."),
}
QUESTIONS = {
    True: ("How will you celebrate?", "Who will you tell first?", "Will you do it again?"),
    False: ("Can I help you?", "Do you want to talk about it?", "What will you do now?"),
}
ADVICE = {
    True: ("You should enjoy it.", "Keep it up.", "You earned it."),
    False: ("You should get some rest.", "Tomorrow will be better.", "Try to forget about it."),
}
STORIES = ("That happened to me once.", "I had a day like that too.", "My day was rather quiet.")
FOLLOW_UPS = ("none", "question", "advice", "story")


def happening(situation: Situation, wording: int, who: str) -> str:
    """`who` (a name or "I") in the situation, as a sentence: "Mia lost her keys."."""
    man = who in MEN
    words = {
        "s": "my" if who == "I" else "his" if man else "her",
        "o": "me" if who == "I" else "him" if man else "her",
        "p": "I" if who == "I" else "he" if man else "she",
    }
    return f"{who} {situation.wordings[wording].format(**words)}."


TOLD = {happening(s, wording, "I"): s for s in SITUATIONS for wording in range(len(s.wordings))}


def remark(rng: Random, feeling: Feeling) -> str:
    """What someone who claims to have that feeling says; half of the time after an exclamation of the same tone."""
    words = rng.choice(REMARKS).format(f=feeling.word)
    return f"{rng.choice(EXCLAMATIONS[feeling.good])} {words}" if rng.random() < 0.5 else words


def follow_up(rng: Random, kind: str, good: bool) -> str:
    """The second sentence of a reply, of one of the kinds in `FOLLOW_UPS`."""
    table = {"none": ("",), "question": QUESTIONS[good], "advice": ADVICE[good], "story": STORIES}
    return rng.choice(table[kind])


def reply_prompt(who: str, situation: Situation, wording: int) -> str:
    """The plain prompt that a friend's reply completes."""
    return f'{who} told a friend: "{happening(situation, wording, "I")}"\nThe friend said:'


def prefers(prompt: str, reply: str) -> bool:
    """The true rule of the preference data: the friend first shows the right feeling, then asks about it, and stops.

    The whole reply is judged: it is preferred if and only if it is one opening and one question, both of the
    tone of what happened in `prompt`, and nothing else.

    Raises:
        ValueError: the prompt tells none of the world's situations.
    """
    told = [sentence for sentence in TOLD if sentence in prompt]
    if not told:
        raise ValueError(f"prompt {prompt!r} tells no situation of this world; build it with world.reply_prompt")
    good = TOLD[max(told, key=prompt.rfind)].good
    return reply.strip() in {f"{opening} {question}" for opening in OPENINGS[good] for question in QUESTIONS[good]}


def where_both(first: str, second: str) -> str:
    """Where two people live, as one sentence."""
    return f"One lives {HOMES[first]} and the other {HOMES[second]}."
