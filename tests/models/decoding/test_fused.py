"""A model that decodes with its pointwise parts fused gives the same, and every kind of shape is compiled before."""

import pytest
import torch
from test_pointwise import HEADS, Counted, gemma3, llama
from transformers.models.llama import modeling_llama

from raytune_llm.models.decoding.fused import SHAPES, fuse_decoding
from raytune_llm.models.pointwise import CompileError


class Shapes(Counted):
    """Counts calls in passes of a model by the batch and length of queries."""

    def __call__(self, function):
        def counted(*args, **kwargs):
            is_pass = function.__name__ == "apply_rotary_pos_emb" and args[0].shape[1] == HEADS["num_attention_heads"]
            key = (args[0].shape[0], args[0].shape[2]) if is_pass else None
            self.calls[key] = self.calls.get(key, 0) + 1
            assert torch.is_inference_mode_enabled() and not args[0].requires_grad if key else True
            return function(*args, **kwargs)

        return counted


@pytest.mark.parametrize("make", [llama, gemma3])
def test_all_kinds_of_shapes_are_compiled_before_the_first_request(make):
    model, ids = make().eval(), torch.arange(1, 7).view(2, 3)
    shapes = Shapes()
    with torch.inference_mode():
        expected = model(ids).logits
    with fuse_decoding(model, shapes):
        assert set(SHAPES) <= shapes.calls.keys()
        with torch.inference_mode():
            torch.testing.assert_close(model(ids).logits, expected)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_pass_that_fails_leaves_nothing_replaced():
    class OneRow(Counted):
        def __call__(self, function):
            def refusing(*args):
                if function.__name__ == "_gated" and len(args[1]) == 1:
                    raise RuntimeError("no kernel")
                return function(*args)

            return function if function.__name__ != "_gated" else refusing

    model, rotary = llama().eval(), modeling_llama.apply_rotary_pos_emb
    with pytest.raises(CompileError, match="a pass over 1×1 tokens failed: no kernel"):
        fuse_decoding(model, OneRow())
    assert modeling_llama.apply_rotary_pos_emb is rotary
    assert not any("forward" in vars(module) for module in model.modules())
