"""Packed gradients against PEFT's, a trial alone against the same among sixteen, and a pack that runs out of memory; on
a GPU also the kernels that decoding goes through adapters with (row_errors.py).

Sixteen trials of mixed ranks, alphas and record lengths, adapters with A and B random, one step. Distances are
‖found − expected‖ / ‖expected‖ over all of a trial's gradients, the largest over the trials:

    fp32 against PEFT in fp32                                ≤ 1e-5
    bf16 against PEFT in fp64, over PEFT's own bf16 error    ≤ 1.5
    alone against among sixteen, fp32                        ≤ 1e-5
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from peft import get_peft_model
from token_trials import terms, trial
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from raytune_llm.data.examples import Example
from raytune_llm.data.order import first_indices
from raytune_llm.models.base import linear_targets
from raytune_llm.models.lora_weights import Weights
from raytune_llm.training.packed.batches import PassBudget, TokenTable
from raytune_llm.training.packed.export import peft_config
from raytune_llm.training.packed.hyperparameters import Hyperparameters
from raytune_llm.training.packed.pack import Pack

from .llama import make_base, make_config, random_examples
from .row_errors import row_kernel_figures
from .step import Step, main
from .timing import fresh_memory

RANKS, ALPHAS, SLOTS, BATCH_SIZE, NUM_EXAMPLES = (1, 4, 8, 16), (8.0, 16.0, 32.0), 16, 3, 40
NO_CLIPPING = 1e9
UPDATE = 0.1
"""Of each output, by an adapter, for inputs of size 1."""
SMALL = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4}
SMALL |= {"intermediate_size": 1408, "vocab_size": 4096}
TINY = {"initializer_range": 0.2}
ALL_AT_ONCE = PassBudget(SLOTS, 1 << 20, 1 << 20)


def run(step: Step) -> None:
    config = make_config("tiny", dtype=torch.float32, **(TINY if step.smoke else SMALL))
    base = make_base(config, step.device)
    longest = 24 if step.smoke else 200
    world = World(base, random_examples(NUM_EXAMPLES, shortest=8, longest=longest, vocabulary=config.vocab_size))
    specs = [make_trial(index) for index in range(4 if step.smoke else SLOTS)]
    step.add(fp32_distance=largest(world, specs, torch.float32))
    step.add(bf16_error_over_peft=bf16_ratio(world, specs))
    among, alone = world.packed(specs, torch.float32), world.packed(specs[-1:], torch.float32)
    step.add(alone_distance=distance(alone[specs[-1].trial_id], among[specs[-1].trial_id]))
    if step.on_gpu:
        step.add(**row_kernel_figures(step.device))
    step.add(**out_of_memory(world, specs, step))


def make_trial(index: int) -> Hyperparameters:
    rank, alpha = RANKS[index % len(RANKS)], ALPHAS[index % len(ALPHAS)]
    return trial(index, lora_rank=rank, batch_size=BATCH_SIZE, alpha=alpha, max_grad_norm=NO_CLIPPING)


class World:
    """A base in fp32, with its records."""

    def __init__(self, base: Any, examples: Sequence[Example]) -> None:
        self.base, self.examples = base, examples
        self.names = linear_targets(base)
        self.device = base.device

    def weights(self, spec: Hyperparameters) -> Weights:
        """A random adapter: with B = 0, as trials begin, no gradient would reach A. Its update of an output is of one
        size whatever the rank and alpha, small enough that rounding isn't amplified from layer to layer."""
        generator = torch.Generator().manual_seed(spec.seed)
        found = {}
        for name in self.names:
            layer, rank = self.base.get_submodule(name), spec.lora_rank
            a = torch.randn(rank, layer.in_features, generator=generator) * layer.in_features**-0.5
            b = torch.randn(layer.out_features, rank, generator=generator) * UPDATE / (spec.scale * rank**0.5)
            found[name] = a, b
        return found

    def pack(self, specs: Sequence[Hyperparameters], dtype: torch.dtype, budget: PassBudget = ALL_AT_ONCE) -> Pack:
        """Of these trials."""
        base = copy.deepcopy(self.base).to(dtype)
        pack = Pack(base, self.names, capacity=SLOTS, max_lora_rank=max(RANKS), budget=budget)
        table = TokenTable(self.examples, is_encoder_decoder=False)
        for spec in specs:
            pack.join(spec, table, terms, weights=self.weights(spec))
        return pack

    def packed(self, specs: Sequence[Hyperparameters], dtype: torch.dtype) -> dict[str, list[Tensor]]:
        """Each trial's gradients of one step."""
        pack = self.pack(specs, dtype)
        pack.step()
        return gradients(pack)

    def solo(self, spec: Hyperparameters, dtype: torch.dtype) -> list[Tensor]:
        """The same by PEFT; in bf16 as trainers run it, adapters in fp32 under autocast."""
        config = peft_config(spec, self.names, is_encoder_decoder=False)
        adapted = get_peft_model(copy.deepcopy(self.base).to(dtype), config, autocast_adapter_dtype=False)
        master = torch.float64 if dtype == torch.float64 else torch.float32
        parameters = []
        for name, pair in self.weights(spec).items():
            layer: Any = adapted.get_base_model().get_submodule(name)
            for part, values in zip((layer.lora_A, layer.lora_B), pair, strict=True):
                part.default.weight.data = values.to(self.device, master)
                parameters.append(part.default.weight)
        rows = first_indices(range(len(self.examples)), spec.seed, spec.batch_size)
        mixed = torch.autocast(self.device.type, torch.bfloat16) if dtype == torch.bfloat16 else nullcontext()
        with mixed:
            loss = next_token_loss(adapted, [self.examples[row]["completion"].input_ids for row in rows], self.device)
        loss.backward()
        return [parameter.grad.cpu().double() for parameter in parameters if parameter.grad is not None]


def next_token_loss(model: Any, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Of padded rows with an attention mask, over all logits."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True).to(device)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(exact[mask[:, 1:] == 1], ids[:, 1:][mask[:, 1:] == 1])


def gradients(pack: Pack) -> dict[str, list[Tensor]]:
    """What the last step left, by trial."""
    found = {}
    for row, trial_id in enumerate(pack.trial_ids):
        assert pack.stack.grad is not None
        pairs = pack.stack.layout.unpack(pack.stack.grad[row].cpu(), pack.stack.lora_ranks[row])
        found[trial_id] = [part.double() for pair in pairs.values() for part in pair]
    return found


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """‖found − expected‖ / ‖expected‖."""
    difference = sum((one - other).square().sum().item() for one, other in zip(found, expected, strict=True))
    return (difference / sum(other.square().sum().item() for other in expected)) ** 0.5


def largest(world: World, specs: Sequence[Hyperparameters], dtype: torch.dtype) -> float:
    packed = world.packed(specs, dtype)
    return max(distance(packed[spec.trial_id], world.solo(spec, dtype)) for spec in specs)


def bf16_ratio(world: World, specs: Sequence[Hyperparameters]) -> float:
    """The largest error of a packed trial as a multiple of its own under PEFT, on a base that bf16 holds exactly."""
    rounded = World(copy.deepcopy(world.base).bfloat16().float(), world.examples)
    packed = rounded.packed(specs, torch.bfloat16)
    ratios = []
    for spec in specs:
        exact, solo = rounded.solo(spec, torch.float64), rounded.solo(spec, torch.bfloat16)
        ratios.append(distance(packed[spec.trial_id], exact) / distance(solo, exact))
    return max(ratios)


def out_of_memory(world: World, specs: Sequence[Hyperparameters], step: Step) -> dict[str, object]:
    """A step of a pack with too large a budget: it must come out smaller, with the same gradients."""
    expected = world.packed(specs, torch.float32)
    pack = world.pack(specs, torch.float32)
    with tight_memory(pack, step):
        pack.step()
    found = gradients(pack)
    distances = [distance(found[trial_id], of_trial) for trial_id, of_trial in expected.items()]
    return {"out_of_memory_passes": pack.num_passes, "out_of_memory_distance": max(distances)}


class tight_memory:
    """Less memory inside than a pass of all slots takes: on a GPU by PyTorch's own limit, elsewhere by a layer that
    refuses large inputs."""

    def __init__(self, pack: Pack, step: Step) -> None:
        self._layer = pack.model.get_submodule("model.norm")
        self._device, self._on_gpu = step.device, step.on_gpu
        self._most_rows = max(1, len(pack.trial_ids) * BATCH_SIZE // 3)

    def __enter__(self) -> None:
        if self._on_gpu:
            fresh_memory(self._device)
            total = torch.cuda.get_device_properties(self._device).total_memory
            room = torch.cuda.memory_reserved(self._device) + (1 << 28)
            torch.cuda.set_per_process_memory_fraction(room / total)
        else:
            self._hook = self._layer.register_forward_pre_hook(self._refuse)

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
        else:
            self._hook.remove()

    def _refuse(self, layer: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) > self._most_rows:
            raise torch.OutOfMemoryError("provoked")


if __name__ == "__main__":
    main(run)
