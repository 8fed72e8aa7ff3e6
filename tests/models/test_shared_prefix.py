"""Rows laid out with a shared prefix give what rows of their own give."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raytune_llm.models.attention import use_maskless_attention
from raytune_llm.models.shared_prefix import SharedPrefix

PREFIX = [5, 6, 7, 8, 9]


def rows(*endings, prefix=PREFIX):
    """Ids (1, C, T) of rows that begin alike, padded with 0."""
    width = max(map(len, endings))
    return np.array([[prefix + list(ending) + [0] * (width - len(ending)) for ending in endings]])


def test_the_layout_of_rows_that_begin_alike():
    ids = rows([1, 2], [3], [1, 4])
    shared = SharedPrefix.of(ids)
    assert shared == SharedPrefix(num_rows=3, prefix_tokens=5, row_tokens=7)
    assert shared.long_rows(ids).tolist() == [[5, 6, 7, 8, 9, 1, 2, 3, 0, 1, 4]]
    assert shared.positions().tolist() == [[0, 1, 2, 3, 4, 5, 6, 5, 6, 5, 6]]


def test_every_token_of_a_row_has_its_place():
    ids = np.concatenate([rows([1, 2], [3], [1, 4]), rows([10, 11], [12, 13], [14, 15], prefix=[20, 21, 22, 23, 24])])
    shared = SharedPrefix.of(ids)
    places = shared.places(*np.divmod(np.arange(ids.size), ids.shape[-1]))
    assert shared.long_rows(ids).ravel()[places].tolist() == ids.ravel().tolist()


def test_the_prefix_is_what_the_rows_of_every_slot_share():
    one, other = rows([1, 2], [1, 3], prefix=[5, 6, 7, 8]), rows([1, 1], [2, 1], prefix=[5, 6, 7, 9])
    assert SharedPrefix.of(one).prefix_tokens == 5
    assert SharedPrefix.of(np.concatenate([one, other])).prefix_tokens == 4


@pytest.mark.parametrize(
    "ids", [rows([1]), rows([1, 2, 3], [4, 5, 6], prefix=[]), rows(list(range(1, 60)), list(range(2, 61)), prefix=[7])]
)
def test_rows_with_too_little_in_common_are_left_as_they_are(ids):
    assert SharedPrefix.of(ids) is None


def test_equal_rows_keep_a_token_of_their_own():
    assert SharedPrefix.of(rows([1], [1])).prefix_tokens == 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_gives_the_same_hidden_states_and_gradients(dtype):
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).to(dtype).eval()
    ids = np.concatenate([rows([1, 2, 3], [4], [2, 2]), rows([10, 11, 3], [12, 13], [14], prefix=[20, 21, 22, 23, 24])])
    shared = SharedPrefix.of(ids)
    places = torch.from_numpy(shared.places(*np.divmod(np.arange(ids.size), ids.shape[-1])))
    weight = model.model.layers[0].self_attn.k_proj.weight

    def run(found):
        (gradient,) = torch.autograd.grad(found.double().sin().sum(), weight)
        return found.detach(), gradient

    with use_maskless_attention(model):
        own = model.model(torch.from_numpy(ids.reshape(6, -1)), use_cache=False).last_hidden_state
        inputs = torch.from_numpy(shared.long_rows(ids))
        positions = torch.from_numpy(shared.positions())
        long = model.model(inputs, position_ids=positions, shared_prefix=shared, use_cache=False).last_hidden_state
        expected, found = run(own.flatten(0, 1)), run(long.flatten(0, 1)[places])
    # rotary angles are float32 in any precision, and vectorised by the number of positions
    tolerance = 1e-6 if dtype is torch.float64 else 0.05
    for one, other in zip(expected, found, strict=True):
        assert float((other - one).norm() / one.norm()) < tolerance
