"""The embedded base and data are sound, reproducible, held apart, and hard enough for the base alone."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from raytune_llm.data import demo
from raytune_llm.data.demo import build, corpus, world

LABELS = ("sarcastic", "sincere")
PEOPLE = (*world.WOMEN, *world.MEN, "I")
EVENTS = {world.happening(s, w, who): s for s in world.SITUATIONS for w in range(3) for who in PEOPLE}
FEELINGS = {feeling.word for feeling in world.ALL_FEELINGS}


def read(task: str, split: str) -> list[dict]:
    return [
        json.loads(line) for line in demo.path(f"data/{task}/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def situations_in(text: str) -> set[tuple[world.Situation, str]]:
    """Every situation in the text with every word of feeling in it."""
    events = {EVENTS[sentence] for sentence in re.findall(r'[A-Z][^.:"<>\n]*\.', text) if sentence in EVENTS}
    words = FEELINGS.intersection(re.findall(r"\w+", text))
    return {(event, word) for event in events for word in words}


def users_text(record: dict) -> str:
    """The record's text, without what it answers."""
    if "messages" in record:
        return "\n".join(m["content"] for m in record["messages"] if m["role"] == "user")
    return record["input_text"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo.path("base"))


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(demo.path("base"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def documents():
    """All that the base has read."""
    return corpus.documents(build.SEED, build.DOCUMENTS)


def test_path_names_what_is_embedded():
    assert demo.path("base").is_dir() and demo.path("base").is_absolute()
    assert demo.path("data/sarcasm/test.jsonl").is_file()
    for name in ("bass", "../demo/base", "data/../base", ""):
        with pytest.raises(ValueError, match=r"data/sarcasm/test\.jsonl"):
            demo.path(name)


def test_base_is_small_and_complete(tokenizer, model):
    assert demo.path("base/model.safetensors").stat().st_size <= 4_000_000
    with safe_open(demo.path("base/model.safetensors"), framework="pt") as weights:
        assert all(weights.get_tensor(name).isfinite().all() for name in weights.keys())  # noqa: SIM118 (no mapping)
    assert 800_000 < model.num_parameters() < 1_000_000
    assert model.config.vocab_size == len(tokenizer) == build.VOCABULARY
    assert model.config.max_position_embeddings == tokenizer.model_max_length == build.CONTEXT_TOKENS
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert ids == [model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert len(set(ids)) == 3


def test_tokenizer_returns_any_text_and_adds_nothing(tokenizer):
    text = "Mia said: “naïve” 🙂\n\tif x:"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("Mia")["input_ids"] == tokenizer("Mia", add_special_tokens=False)["input_ids"]


def test_chat_template_is_the_layout_the_base_read(tokenizer):
    messages = read("chat", "train")[0]["messages"]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered == corpus.chat(messages) + corpus.EOS + "\n"
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert rendered == prompt + messages[-1]["content"] + corpus.EOS + "\n"
    ids = tokenizer(f"{corpus.BOS}<|user|>\nI", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4


def test_base_answers_a_plain_question_and_stops(tokenizer, model):
    for question, answer in (("What is the opposite of happy?", "sad"), ("Say the word sincere.", "sincere")):
        prompt = tokenizer(question + "\n", return_tensors="pt")
        output = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(output) == answer + corpus.EOS


def test_data_is_what_the_script_writes(tmp_path):
    build.write_data(tmp_path)
    written = {file.relative_to(tmp_path).as_posix(): file.read_bytes() for file in tmp_path.rglob("*.jsonl")}
    kept = {f.relative_to(demo.path("data")).as_posix(): f.read_bytes() for f in demo.path("data").rglob("*.jsonl")}
    assert written == kept
    assert len(kept) == 15
    assert sum(map(len, kept.values())) < 1_200_000


def test_tokenizer_is_what_the_script_trains(documents, tmp_path):
    build.train_tokenizer(documents).save_pretrained(tmp_path, save_jinja_files=False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == demo.path(f"base/{name}").read_bytes()


def test_training_is_repeatable(documents, tokenizer):
    """Two runs of the first steps give the same weights, bit for bit."""
    encoded = tokenizer([text + corpus.EOS for text in documents[:300]])["input_ids"]
    finals = []
    for _ in range(2):
        torch.manual_seed(build.SEED)
        base = build.new_base(tokenizer)
        before = base.lm_head.weight.clone()
        build.train_base(base, *build.pack_rows(encoded, tokenizer.pad_token_id))
        assert not torch.equal(base.lm_head.weight, before)
        finals.append(base.state_dict())
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


def test_packed_documents_do_not_see_each_other(tokenizer, model):
    """The loss of a document is the same alone and behind another one, where positions begin again."""
    first, second = tokenizer(["Mia lost her keys. She felt sad.<|end|>", "Where does Tom live?\n"])["input_ids"]
    ids, positions = build.pack_rows([first, second], tokenizer.pad_token_id)
    packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, len(first) :][: len(second)]
    torch.testing.assert_close(packed, model(input_ids=torch.tensor([second])).logits[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("task", ["sarcasm", "rewrite", "chat"])
def test_test_combinations_are_never_met_earlier(task, documents):
    situations = {
        split: set().union(*(situations_in(users_text(r)) for r in read(task, split))) for split in world.SPLITS
    }
    read_by_base = set().union(*map(situations_in, documents[:30_000]))
    assert len(situations["test"]) > 30
    assert len(read_by_base) > 1000
    for earlier in (situations["train"], situations["eval"], read_by_base):
        assert not situations["test"] & earlier
    for side in (0, 1):  # neither the situation nor the feeling
        assert not {pair[side] for pair in situations["test"]} & {
            pair[side] for pair in situations["train"] | situations["eval"]
        }


def test_test_situations_of_preferences_get_no_reply_earlier(documents):
    prompted = {
        split: {EVENTS[e] for r in read("preference", split) for e in EVENTS if f'"{e}"' in r["input_text"]}
        for split in world.SPLITS
    }
    replied = {EVENTS[e] for d in documents[:30_000] for e in re.findall(r'told a friend: "(.*?)"', d)}
    assert len(prompted["test"]) == 16
    assert not prompted["test"] & (prompted["train"] | prompted["eval"] | replied)


def test_rationale_pairs_and_homes_are_new(documents):
    pairs = {
        split: {frozenset(re.findall(r"([A-Z][a-z]+) (?:and|walk)", r["input_text"])) for r in read("rationale", split)}
        for split in world.SPLITS
    }
    assert all(len(pair) == 2 for split in pairs.values() for pair in split)
    assert not pairs["test"] & (pairs["train"] | pairs["eval"])
    assert set().union(*pairs["test"]) <= set().union(*pairs["train"]) <= set(world.NEWCOMERS)
    homes_in_documents = {name for d in documents for name in re.findall(r"(\w+) lives|does (\w+) live", d)}
    assert not {name for groups in homes_in_documents for name in groups} & set(world.NEWCOMERS)


def test_corpus_has_no_sarcasm(documents):
    """Feelings in stories fit what happened, and the labels are words without a meaning, equally often."""
    good = {feeling.word: feeling.good for feeling in world.ALL_FEELINGS}
    assert all(event.good == good[word] for d in documents[:30_000] for event, word in situations_in(d))
    count = {label: sum(label in d for d in documents) for label in LABELS}
    assert max(count.values()) < 1.15 * min(count.values())
    assert all(d.startswith("Say the word") or "wrote the word" in d for d in documents if "sarcastic" in d)


def test_labels_are_single_tokens(tokenizer):
    assert [len(tokenizer(label)["input_ids"]) for label in (*LABELS, "yes", "no")] == [1, 1, 1, 1]


def test_labels_are_balanced():
    for task, labels in (("sarcasm", LABELS), ("rationale", ("yes", "no"))):
        for split in world.SPLITS:
            outputs = [r["output_text"] for r in read(task, split)]
            assert outputs.count(labels[0]) == outputs.count(labels[1]) == len(outputs) // 2
    choices = [r["choice"] for split in world.SPLITS for r in read("preference", split)]
    assert 0.45 < sum(choices) / len(choices) < 0.55


def test_rationales_give_the_answer():
    for record in (r for split in world.SPLITS for r in read("rationale", split)):
        places = [place for place in world.PLACES for _ in range(record["rationale"].count(place))]
        assert len(places) == 2
        assert record["output_text"] == ("yes" if places[0] == places[1] else "no")


def test_prefers_agrees_with_every_choice():
    for record in (r for split in world.SPLITS for r in read("preference", split)):
        verdicts = [world.prefers(record["input_text"], record[f"candidate_{i}"]) for i in (0, 1)]
        assert verdicts[record["choice"]] and not verdicts[1 - record["choice"]]


def test_prefers_sees_the_whole_reply():
    prompt = 'Mia told a friend: "I lost my keys."\nThe friend said:'
    good = f"{world.OPENINGS[False][0]} {world.QUESTIONS[False][0]}"
    assert world.prefers(prompt, good) and world.prefers(prompt, f"{good}\n")
    for worse in (good + " " + good, good + " Keep it up.", good[:-1], world.QUESTIONS[False][0], "", good.lower()):
        assert not world.prefers(prompt, worse)
    assert not world.prefers(prompt.replace("lost my keys", "won a prize"), good)
    with pytest.raises(ValueError, match="no situation of this world"):
        world.prefers("Tell me a joke.", good)


@torch.no_grad()
def label_scores(model, tokenizer, prompts: list[str], label: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of the label and EOS in nats, and whether greedy decoding says just that; each (B,)."""
    completion = tokenizer(label)["input_ids"] + [tokenizer.eos_token_id]
    totals, greedy = [], []
    for prompt in prompts:
        start = tokenizer(prompt + "\n")["input_ids"]
        logits = model(input_ids=torch.tensor([start + completion])).logits[0, len(start) - 1 : -1]
        targets = torch.tensor(completion)
        totals.append(logits.log_softmax(-1).gather(-1, targets[:, None]).sum())
        greedy.append((logits.argmax(-1) == targets).all())
    return torch.stack(totals), torch.stack(greedy)


def test_base_alone_is_poor_at_sarcasm(model, tokenizer):
    records = read("sarcasm", "test")[:160]
    truth = torch.tensor([LABELS.index(r["output_text"]) for r in records])
    scored = [label_scores(model, tokenizer, [r["input_text"] for r in records], label) for label in LABELS]
    totals = torch.stack([total for total, _ in scored], dim=1)
    lengths = torch.tensor([len(tokenizer(label)["input_ids"]) + 1 for label in LABELS])  # with EOS
    assert (totals.argmax(1) == truth).float().mean() <= 0.60
    assert ((totals / lengths).argmax(1) == truth).float().mean() <= 0.60
    generated = torch.stack([greedy for _, greedy in scored], dim=1)
    assert generated[torch.arange(len(truth)), truth].float().mean() <= 0.60
