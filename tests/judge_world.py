"""Scripted judges that tests share: what they are asked, read back from the prompt, and how they reply."""

from __future__ import annotations

import json
import re

from raytune_llm.evaluation.judging.asking import Judging
from raytune_llm.evaluation.judging.cache import ReplyCache
from raytune_llm.evaluation.judging.pairs import Pair
from raytune_llm.jobs.config import load

ASKED = re.compile(
    r"(?:\[An answer that is right\]\n(.*)\n\n)?\[Prompt\]\n(.*)\n\n\[Answer A\]\n(.*)\n\n\[Answer B\]\n(.*)"
)


def asked(text):
    """(reference or None, prompt, first answer, second answer) of a judge's user turn by the default template."""
    return ASKED.fullmatch(text).groups()


def by_reference(text):
    """The judge who prefers the answer that is the reference."""
    reference, _, first, second = asked(text)
    right = [answer == reference for answer in (first, second)]
    verdict = "tie" if right[0] == right[1] else "A" if right[0] else "B"
    return json.dumps({"reason": "scripted", "verdict": verdict})


def evaluation_of(url, *overrides, model="m"):
    """The evaluation of a job with a judge at a URL."""
    own = ["evaluation/judge=openai", f"evaluation.judge.model={model}", "evaluation.judge.api_key_env=null"]
    job = load("train", ["model=demo", "data=demo_sarcasm", *own, f"evaluation.judge.base_url={url}", *overrides])
    return job.evaluation


def judge_at(url, *overrides):
    """A session of a judge at a URL, with the given keys below evaluation.judge."""
    return evaluation_of(url, *(f"evaluation.judge.{one}" for one in overrides)).judge.open()


def pair(place, answer, other_answer, reference="right", system="tuned", other="base"):
    return Pair(place, f"question {place}", reference, system, other, answer, other_answer)


def judging(session, pairs, home):
    return Judging(session, pairs, ReplyCache(str(home), session.identity))
