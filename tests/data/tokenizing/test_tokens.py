"""What carries loss, that generation is fed what was trained on, and that every cut is counted."""

import json
import os
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from raytune_llm.data.dialects.parsing import parse
from raytune_llm.data.examples import IGNORED, TokenSequence
from raytune_llm.data.records import Chat, Message
from raytune_llm.data.tokenizing.template import PLAIN_TEMPLATE, supply_template
from raytune_llm.data.tokenizing.tokens import Tokens, Truncation

PUBLIC = os.environ.get("RAYTUNE_LLM_PUBLIC_DATA")
real = pytest.mark.skipif(PUBLIC is None, reason="RAYTUNE_LLM_PUBLIC_DATA is not set")

CORPUS = [
    "System: Be kind.\nUser: yes\n\nAssistant: no, not at all\n",
    "Is Mia sarcastic or sincere?\nsarcastic\nsincere\n",
] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|header|>", "[INST]", "[/INST]"]
SYSTEM = Message("system", "Be kind.")
CHAT = (
    SYSTEM,
    Message("user", "yes"),
    Message("assistant", "no, not at all"),
    Message("user", "sarcastic or sincere?"),
    Message("assistant", "sincere"),
)
TEMPLATES = {
    "plain": None,
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "header": "{{ bos_token }}{% for m in messages %}"
    "{{ '<|header|>' + m.role + '<|header|>\n' + m.content | trim + '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|header|>assistant<|header|>\n' }}{% endif %}",
    "inst": "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}"
    "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}",
}


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=360, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return made


def sentencepiece() -> Tokenizer:
    """Like Llama 2's: a dummy space before each text, byte fallback, a BOS that the tokenizer adds."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokens = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256))]
    words = [line.replace("\n", " ") for line in CORPUS]
    made.train_from_iterator(words, trainers.BpeTrainer(vocab_size=380, special_tokens=tokens, show_progress=False))
    plain = json.loads(made.to_str())
    plain["added_tokens"] = plain["added_tokens"][: len(SPECIAL)]
    plain["pre_tokenizer"] = None
    made = Tokenizer.from_str(json.dumps(plain))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return made


def t5_like() -> Tokenizer:
    made = sentencepiece()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", made.token_to_id("</s>"))]
    )
    return made


TOKENIZERS = {"bytes": byte_level(), "sentencepiece": sentencepiece(), "t5": t5_like()}


def tokenizer(name: str, template: str | None = None) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(TOKENIZERS[name].to_str()),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    made.chat_template = template
    supply_template(made)
    return made


def tokens(name: str, template: str | None = None, *, max_tokens: int | None = 512) -> Tokens:
    return Tokens(tokenizer(name, template), max_tokens=max_tokens, is_encoder_decoder=name == "t5")


def learned(made: Tokens, sequence: TokenSequence) -> list[str]:
    """The texts with loss, one for each run of labels."""
    runs, run = [], []
    for label in [*sequence.labels, IGNORED]:
        if label != IGNORED:
            run.append(label)
        elif run:
            runs.append(made.tokenizer.decode(run))
            run = []
    return runs


# plain text


@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
def test_completion_and_end_carry_loss(name):
    made = tokens(name)
    sequence = made.completion("Is Mia sincere?", "sarcastic")
    prompt, eos = made.prompt("Is Mia sincere?"), made.tokenizer.eos_token_id
    answer = sequence.input_ids[len(prompt) :]
    assert sequence.input_ids[: len(prompt)] == prompt
    assert sequence.labels == [IGNORED] * len(prompt) + answer
    assert answer[-1] == eos and answer.count(eos) == 1
    assert made.tokenizer.decode(answer[:-1]) == "sarcastic"
    assert made.tokenizer.decode(prompt, skip_special_tokens=True) == "Is Mia sincere?\n"
    bos = [made.tokenizer.bos_token_id] if name == "sentencepiece" else []
    assert prompt[:1] == bos or not bos
    assert sequence.input_ids.count(made.tokenizer.bos_token_id) == len(bos), "BOS once where the tokenizer adds it"
    assert made.prompt("<s>Is Mia sincere?").count(made.tokenizer.bos_token_id) == 1
    assert made.truncation == Truncation(records=1, label_tokens=len(answer), longest_tokens=len(sequence.input_ids))


@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
def test_a_long_prompt_loses_its_beginning(name):
    whole = tokens(name).completion("no, " * 30 + "yes", "sincere")
    made = tokens(name, max_tokens=20)
    sequence = made.completion("no, " * 30 + "yes", "sincere")
    head = len(whole.input_ids) - 20
    keeps_bos = name == "sentencepiece"
    assert sequence.input_ids[keeps_bos:] == whole.input_ids[head + keeps_bos :]
    assert sequence.input_ids[0] == (made.tokenizer.bos_token_id if keeps_bos else whole.input_ids[head])
    assert learned(made, sequence) == learned(made, whole)
    cut = made.truncation
    assert (cut.records, cut.cut, cut.prompts_cut, cut.completions_cut, cut.dropped) == (1, 1, 1, 0, 0)
    assert cut.longest_tokens == len(whole.input_ids) and cut.label_tokens_lost == 0


@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
def test_a_completion_too_long_by_itself_loses_its_end(name):
    made, whole = tokens(name, max_tokens=12), tokens(name)
    sequence, full = made.completion("yes", "no, " * 30), whole.completion("yes", "no, " * 30)
    labels = [label for label in full.labels if label != IGNORED]
    assert len(sequence.input_ids) == len(sequence.labels) == 12
    assert sequence.labels == [IGNORED, *labels[:11]], "the first token can't be predicted, so it is no label"
    assert made.tokenizer.eos_token_id not in sequence.labels, "a cut answer must not teach to stop"
    cut = made.truncation
    assert (cut.prompts_cut, cut.completions_cut, cut.dropped) == (1, 1, 0)
    assert (cut.label_tokens, cut.label_tokens_lost) == (len(labels), len(labels) - 11)


@pytest.mark.parametrize("name", ["bytes", "sentencepiece", "t5"])
def test_a_text_alone_is_learned_whole(name):
    made = tokens(name)
    sequence = made.text("no, not at all")
    labels = [label for label in sequence.labels if label != IGNORED]
    assert labels == tokens(name).completion("yes", "no, not at all").labels[-len(labels) :]
    assert labels[-1] == made.tokenizer.eos_token_id
    if name == "t5":
        assert made.tokenizer.decode(sequence.input_ids) == "</s>"
    else:
        assert sequence.labels == [IGNORED, *sequence.input_ids[1:]], "nothing predicts the first token"
        bos = "" if name == "bytes" else "<s> "
        assert made.tokenizer.decode(sequence.input_ids) == f"{bos}no, not at all</s>"
    assert made.truncation.label_tokens == len(labels)


@pytest.mark.parametrize("name", ["bytes", "sentencepiece", "t5"])
def test_a_long_text_loses_its_end(name):
    for max_tokens in (2, 12):
        made, whole = tokens(name, max_tokens=max_tokens), tokens(name).text("no, " * 30)
        sequence = made.text("no, " * 30)
        assert sequence.labels == whole.labels[:max_tokens] and sequence.input_ids == whole.input_ids[:max_tokens]
        cut = made.truncation
        assert (cut.prompts_cut, cut.completions_cut, cut.dropped) == (0, 1, 0)
    assert tokens(name).text("</s>").labels[-1] == made.tokenizer.eos_token_id


def test_a_text_that_begins_with_bos_has_it_once():
    made = tokens("sentencepiece")
    sequence = made.text("<s>no, not at all")
    bos = made.tokenizer.bos_token_id
    assert sequence.input_ids[0] == bos and sequence.input_ids.count(bos) == 1
    assert sequence.labels == [IGNORED, *sequence.input_ids[1:]]


# conversations


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
def test_loss_on_assistant_turns_and_their_ends_only(name, template):
    made = tokens(name, TEMPLATES[template])
    sequence = made.conversation(CHAT)
    end = {"plain": "</s>", "chatml": "<|im_end|>", "header": "</s>", "inst": " </s>"}[template]
    assert [text.strip() for text in learned(made, sequence)] == [f"no, not at all{end}", f"sincere{end}"]
    kept = [
        (token, label) for token, label in zip(sequence.input_ids, sequence.labels, strict=True) if label != IGNORED
    ]
    assert all(token == label for token, label in kept)
    assert sequence.input_ids.count(made.tokenizer.bos_token_id) == int(
        template in ("header", "inst") or (template == "plain" and name == "sentencepiece")
    )
    special = {made.tokenizer.eos_token_id, made.tokenizer.convert_tokens_to_ids(end.strip())}
    assert made.stop_ids() == sorted(special)
    for i in (2, 4):
        prompt = made.prompt(CHAT[:i])
        assert sequence.input_ids[: len(prompt)] == prompt
        assert sequence.labels[len(prompt) - 1] == IGNORED != sequence.labels[len(prompt)]
    text = made.tokenizer.decode(sequence.input_ids)
    assert text.count("Be kind.") == text.count("sarcastic or sincere?") == 1


WORDS = st.text(st.sampled_from(string.ascii_letters + string.punctuation + " \n\té🙂漢"), min_size=1, max_size=12)
ANSWERS = WORDS.filter(lambda text: text.strip())


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
def test_any_text_is_trained_as_it_is_prompted(name, template):
    made = tokens(name, TEMPLATES[template], max_tokens=None)

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.tuples(WORDS, ANSWERS), min_size=1, max_size=3))
    def check(turns):
        messages = tuple(m for ask, say in turns for m in (Message("user", ask), Message("assistant", say)))
        sequence = made.conversation(messages)
        texts = learned(made, sequence)
        assert [text.removesuffix("</s>").removesuffix("<|im_end|>").strip() for text in texts] == [
            say.strip() for _, say in turns
        ]
        for i in range(1, len(messages), 2):
            prompt = made.prompt(messages[:i])
            assert sequence.input_ids[: len(prompt)] == prompt
            assert sequence.labels[len(prompt) - 1] == IGNORED != sequence.labels[len(prompt)]

    check()


def test_turns_after_the_last_answer_are_left_out():
    made = tokens("bytes")
    assert made.conversation((*CHAT, Message("user", "Is that so?"))) == made.conversation(CHAT)


def test_white_space_around_answers_is_dropped():
    made = tokens("bytes", TEMPLATES["chatml"])
    assert made.conversation((CHAT[1], Message("assistant", "\n no \n"))) == made.conversation(
        (CHAT[1], Message("assistant", "no"))
    )


def test_completion_of_a_conversation_learns_the_completion_only():
    made = tokens("bytes")
    sequence = made.completion(CHAT[:4], "sincere")
    assert sequence.input_ids == made.conversation(CHAT).input_ids
    assert learned(made, sequence) == [" sincere</s>"]
    assert made.completion(CHAT[:4], CHAT[4:]) == sequence
    assert learned(made, made.completion(CHAT[:2], CHAT[2:])) == [" no, not at all</s>", " sincere</s>"]
    with pytest.raises(ValueError, match="a plain prompt takes a plain completion; give the prompt as messages too"):
        made.completion("yes", CHAT[4:])
    with pytest.raises(ValueError, match="the conversation has no assistant turn to learn"):
        made.conversation(CHAT[:2])


def test_long_conversations_lose_their_end():
    whole = tokens("bytes").conversation(CHAT)
    first_end = whole.labels.index(2) + 1
    made = tokens("bytes", max_tokens=first_end + 3)
    sequence = made.conversation(CHAT)
    assert sequence == TokenSequence(whole.input_ids[: first_end + 3], whole.labels[: first_end + 3])
    assert learned(made, sequence) == [" no, not at all</s>"]
    lost = sum(label != IGNORED for label in whole.labels[first_end:])
    cut = made.truncation
    assert (cut.cut, cut.prompts_cut, cut.completions_cut, cut.dropped) == (1, 1, 1, 0)
    assert cut.label_tokens_lost == lost and cut.longest_tokens == len(whole.input_ids)


def test_conversations_without_a_label_left_are_dropped_and_counted():
    made = tokens("bytes", max_tokens=6)
    assert made.conversation(CHAT) is None
    made.completion("yes", "no")
    cut = made.truncation
    assert (cut.records, cut.dropped, cut.completions_cut) == (2, 1, 1)
    assert cut.label_tokens_lost == sum(label != IGNORED for label in tokens("bytes").conversation(CHAT).labels)


def test_prompts_make_room_for_the_answer():
    made = tokens("sentencepiece", max_tokens=40)
    long = "no, " * 40 + "yes"
    whole = made.prompt(long)
    assert len(whole) > 40 and made.prompt(long, max_new_tokens=10) == whole[:1] + whole[len(whole) - 29 :]
    question = (SYSTEM, Message("user", "no, " * 20), *CHAT[2:4])
    assert made.prompt(question, max_new_tokens=4) == made.prompt((SYSTEM, CHAT[3])), "the oldest exchange goes"
    assert made.prompt(CHAT[:2], max_new_tokens=10) == made.prompt(CHAT[:2])
    assert made.truncation == Truncation(), "what generation is fed is not counted"


def test_prompts_to_sample_from_are_counted():
    made = tokens("sentencepiece", max_tokens=40)
    long = "no, " * 40 + "yes"
    length = len(made.prompt(long))
    assert made.sampled_prompt(long, max_new_tokens=10) == made.prompt(long, max_new_tokens=10)
    assert made.truncation == Truncation(records=1, cut=1, prompts_cut=1, longest_tokens=length + 10)
    made.sampled_prompt("yes", max_new_tokens=10)
    assert (made.truncation.records, made.truncation.cut, made.truncation.dropped) == (2, 1, 0)
    question = (SYSTEM, Message("user", "no, " * 20), *CHAT[2:4])
    assert made.sampled_prompt(question, max_new_tokens=4) == made.prompt((SYSTEM, CHAT[3]))
    assert (made.truncation.cut, made.truncation.longest_tokens) == (
        2,
        max(length + 10, len(made.prompt(question)) + 4),
    )
    other = tokens("t5", max_tokens=10)
    other.sampled_prompt(long, max_new_tokens=10)
    assert (other.truncation.cut, other.truncation.longest_tokens) == (1, len(other.prompt(long)))


def test_control_tokens_in_a_text():
    made = tokens("bytes")
    assert made.control_tokens_in("a <|im_end|>\n<|im_start|>user b<|im_end|> [INST]") == [
        "<|im_end|>",
        "<|im_start|>",
        "[INST]",
    ]
    assert made.control_tokens_in("a < b > c <|im_ end|> im_start") == []
    forged = made.completion("yes</s>", "no")
    assert forged.input_ids.count(made.tokenizer.eos_token_id) == 2, "which is why they are counted"


# encoder-decoder bases


def test_encoder_decoder_pairs():
    made = tokens("t5")
    eos = made.tokenizer.eos_token_id
    sequence = made.completion("Is Mia sincere?", "sarcastic")
    assert sequence.input_ids == made.prompt("Is Mia sincere?") == made.tokenizer("Is Mia sincere?")["input_ids"]
    assert sequence.labels == made.tokenizer(text_target="sarcastic")["input_ids"]
    assert sequence.input_ids[-1] == sequence.labels[-1] == eos and sequence.labels.count(eos) == 1


def test_encoder_decoder_conversations():
    made = tokens("t5")
    sequence = made.conversation(CHAT)
    assert sequence.labels == made.tokenizer("sincere")["input_ids"]
    assert sequence.input_ids == made.prompt(CHAT[:4])
    rendered = made.tokenizer.decode(sequence.input_ids)
    assert rendered.endswith("User: sarcastic or sincere?\nAssistant:</s>") and rendered.startswith(
        "System: Be kind.\n"
    )


def test_encoder_decoder_sides_are_cut_by_themselves():
    made = tokens("t5", max_tokens=10)
    sequence = made.completion("no, " * 20 + "yes", "sincere")
    whole = tokens("t5").completion("no, " * 20 + "yes", "sincere")
    assert sequence == TokenSequence(whole.input_ids[-10:], whole.labels) and made.truncation.prompts_cut == 1
    long = made.completion("yes", "no, " * 20)
    assert len(long.labels) == 10 and made.tokenizer.eos_token_id not in long.labels
    assert made.truncation.completions_cut == 1


# templates and special tokens


def test_what_a_bare_tokenizer_is_supplied_with():
    bare = PreTrainedTokenizerFast(
        tokenizer_object=sentencepiece(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    size = len(bare)
    supply_template(bare)
    assert bare.chat_template == "{{ bos_token }}" + PLAIN_TEMPLATE
    assert (bare.pad_token, len(bare)) == ("<unk>", size), "no new token, so the embedding stays as it is"
    messages = [{"role": m.role, "content": f" {m.content}\n"} for m in CHAT[:3]]
    rendered = "<s>System: Be kind.\nUser: yes\nAssistant: no, not at all</s>\n"
    assert bare.apply_chat_template(messages, tokenize=False) == rendered
    assert bare.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == rendered + "Assistant:"
    without_unk = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="</s>")
    supply_template(without_unk)
    assert without_unk.pad_token == "</s>" and without_unk.chat_template == PLAIN_TEMPLATE


def test_what_a_tokenizer_has_is_kept():
    own = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="</s>", pad_token="<|header|>")
    own.chat_template = TEMPLATES["chatml"]
    supply_template(own)
    assert (own.chat_template, own.pad_token) == (TEMPLATES["chatml"], "<|header|>")


def test_an_answer_must_be_able_to_end():
    endless = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    with pytest.raises(ValueError, match="the tokenizer has no eos_token, so that no answer could end"):
        supply_template(endless)
    with pytest.raises(ValueError, match=r"set it in tokenizer_config\.json"):
        Tokens(endless, max_tokens=8, is_encoder_decoder=False)


@real
@pytest.mark.real
def test_sgd_chat_with_stories260k():
    """Its 512 tokens spell a role line in 8; about half of the chats are longer than its context of 512."""
    made = AutoTokenizer.from_pretrained(f"{PUBLIC}/models/stories260K")
    supply_template(made)
    cut = Tokens(made, max_tokens=512, is_encoder_decoder=False)
    whole = Tokens(made, max_tokens=None, is_encoder_decoder=False)
    lines = Path(PUBLIC, "data/sgd_chat/train.jsonl").read_text().splitlines()
    chats = [parse(json.loads(line), (Chat,)) for line in lines]
    sequences = [cut.conversation(chat.messages) for chat in chats]
    for chat, sequence in list(zip(chats, sequences, strict=True))[::4]:
        full = whole.conversation(chat.messages)
        assert sequence == TokenSequence(full.input_ids[:512], full.labels[:512])
        answers = [m.content.strip() for m in chat.messages if m.role == "assistant"]
        assert learned(whole, full) == [f"{answer}</s>" for answer in answers]
        last = max(i for i, m in enumerate(chat.messages) if m.role == "assistant")
        prompt = whole.prompt(chat.messages[:last])
        assert full.input_ids[: len(prompt)] == prompt and full.input_ids[0] == 1 and full.input_ids.count(1) == 1
    assert cut.stop_ids() == [2]
    assert (cut.truncation.records, cut.truncation.cut, cut.truncation.dropped) == (558, 309, 0)
    assert 0.2 < cut.truncation.label_tokens_lost / cut.truncation.label_tokens < 0.3
    assert whole.truncation.cut == 0


@real
@pytest.mark.real
@pytest.mark.parametrize("base", ["stories260K", "babyllama361"])
def test_plain_text_with_real_bases(base):
    made = AutoTokenizer.from_pretrained(f"{PUBLIC}/models/{base}")
    supply_template(made)
    made = Tokens(made, max_tokens=None, is_encoder_decoder=False)
    for line in Path(PUBLIC, "data/isarcasm_gen/eval.jsonl").read_text().splitlines():
        row = json.loads(line)
        sequence = made.completion(row["input_text"], row["output_text"])
        prompt = made.prompt(row["input_text"])
        assert sequence.input_ids[: len(prompt)] == prompt and prompt[0] == 1 and sequence.input_ids.count(1) == 1
        assert learned(made, sequence) == [row["output_text"] + "</s>"]
