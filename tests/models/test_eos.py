import pytest
import torch
from worlds import llama, tokenizer, write_base

from raytune_llm.models.base import Base, DType
from raytune_llm.models.eos import find_eos


def base_at(path, **changed):
    values = {
        "name_or_path": str(path),
        "revision": None,
        "dtype": DType.float32,
        "learning_rate": None,
        "attention": "sdpa",
        "chat_template": None,
        "eos_token": None,
        "from_pretrained": {},
    }
    return Base(**{**values, **changed})


def write(folder, twins, bos=None):
    """A base whose tokens `twins` share one direction of the output head, as tokens that pretraining never met do."""
    words = tokenizer()
    words.bos_token = bos
    torch.manual_seed(0)
    model = llama(len(words))
    with torch.no_grad():
        for token in twins[1:]:
            model.lm_head.weight[token] = model.lm_head.weight[twins[0]] * 1.001
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return base_at(folder)


def test_a_learned_eos_stays(tmp_path):
    base = write(tmp_path, twins=[7])
    assert base.eos.token == "</s>" and base.eos.note is None
    assert base.tokenizer().eos_token == "</s>"


def test_a_learned_bos_replaces_an_unlearned_eos(tmp_path):
    base = write(tmp_path, twins=[1, 5, 6], bos="!")
    assert base.eos.token == "!" and "never learned its end token </s>" in base.eos.note
    assert base.tokenizer().eos_token == "!"


def test_with_neither_learned_the_user_reads_what_to_do(tmp_path):
    base = write(tmp_path, twins=[1, 5, 6])
    assert base.eos.token == "</s>" and "adapter=full" in base.eos.note


def test_a_token_of_the_users_own_must_be_one_of_the_base(tmp_path):
    write_base(tmp_path, "llama")
    assert base_at(tmp_path, eos_token="!").eos.token == "!"
    with pytest.raises(ValueError, match=r"model\.eos_token=<stop> is not a token"):
        _ = base_at(tmp_path, eos_token="<stop>").eos


@pytest.mark.real
@pytest.mark.parametrize("name", ["stories260K", "babyllama361"])
def test_public_bases_that_never_learned_to_end(name, public_data):
    assert base_at(public_data / "models" / name).eos.token == "<s>"


def test_a_base_without_local_weights_is_trusted(tmp_path):
    base = write_base(tmp_path / "a", "llama")
    words = base_at(base).tokenizer()
    assert find_eos(str(tmp_path / "nowhere"), llama(len(words)), words).token == "</s>"
