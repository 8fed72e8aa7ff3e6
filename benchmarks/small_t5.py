"""A T5 of random weights, seeded, as a base to try encoder-decoder students on where no pretrained one is at hand.

    python benchmarks/small_t5.py $RAYTUNE_LLM_PUBLIC_DATA/models/stories260K small_t5

The first folder has the tokenizer, the second is written. 0.5 M parameters: width 64, four layers a side, the
vocabulary of the tokenizer.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    import torch
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.unk_token_id
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=64,
            d_ff=256,
            d_kv=16,
            num_heads=4,
            num_layers=4,
            dropout_rate=0.0,
            pad_token_id=pad_id,
            decoder_start_token_id=pad_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(given.folder)
    tokenizer.save_pretrained(given.folder)
    print(f"{given.folder}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
