"""Models that serve several adapters, as `benchmarks.serving` compares them; one process each for
their memory.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.ranks import peak_memory, rank_main, reset_peak_memory
from diablo_ds.adapter.blocks import delta_shape
from diablo_ds.adapter.serving import Adapters
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.model.built_in import BUILT_IN
from diablo_ds.model.published import find_model_config
from diablo_ds.model.shape import Shape

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SHAPES = {
    "smollm2-135m": BUILT_IN["smollm2-135m"].shape,
    "1b": Shape(
        hidden_size=2048,
        intermediate_size=8192,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "tiny": Shape(
        hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=4
    ),
}
VOCABULARY = 4096
"""Small, so that the head, which has no adapter, does not hide what is compared."""


@dataclass(frozen=True)
class Settings:
    """One comparison."""

    model: str
    num_layers: int
    num_adapters: int
    dtype: str
    device: str
    batch: int = 32
    prompt: int = 64
    num_blocks: str = "64"

    def choice(self) -> list[int]:
        """Return each row's adapter: all in turn, so that no two neighbours have the same."""
        return [row % self.num_adapters for row in range(self.batch)]


@dataclass(frozen=True)
class Served:
    """A model, and what its forward takes so that each row has its adapter."""

    model: Any
    options: dict[str, Any]
    chosen: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


def random_base(settings: Settings) -> Any:
    """Return a frozen causal LM with random weights, for inference."""
    from transformers import AutoModelForCausalLM

    shape = replace(
        SHAPES[settings.model], num_hidden_layers=settings.num_layers, vocab_size=VOCABULARY
    )
    config, _ = find_model_config("", shape, 4 * settings.prompt)
    torch.manual_seed(0)
    with torch.device(settings.device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=DTYPES[settings.dtype])
    return model.requires_grad_(False).eval()


def _blocks(model: Any, settings: Settings) -> tuple[dict[str, Any], dict[str, int]]:
    targets = select_targets(model, (), model_type=model.config.model_type)
    return dict(targets), resolve_num_blocks(targets, settings.num_blocks)


def frozen(settings: Settings) -> Served:
    """The base alone."""
    return Served(random_base(settings), {})


def ours(settings: Settings) -> Served:
    """`diablo_ds.adapter.serving`."""
    model = random_base(settings)
    layers, counts = _blocks(model, settings)
    shapes = {
        f"{name}.delta": delta_shape(counts[name], layer.in_features, layer.out_features)
        for name, layer in layers.items()
    }
    names = [str(number) for number in range(settings.num_adapters)]
    dtype = DTYPES[settings.dtype]
    adapters = Adapters(
        model,
        {n: {k: 0.01 * torch.randn(s).to(dtype) for k, s in shapes.items()} for n in names},
    )
    choice = [names[number] for number in settings.choice()]
    return Served(model, {}, lambda: adapters.chosen(choice))


def ours_by_peft(settings: Settings) -> Served:
    """`diablo_ds.peft` with ``adapter_names``."""
    from diablo_ds.peft import DiaBloConfig

    model = random_base(settings)
    layers, _ = _blocks(model, settings)
    names = sorted({name.rpartition(".")[2] for name in layers})
    config = DiaBloConfig(
        num_blocks=int(settings.num_blocks),
        target_modules=names,
        init_weights=False,
        task_type="CAUSAL_LM",
    )
    return _by_peft(model, config, settings)


def lora(settings: Settings) -> Served:
    """PEFT's LoRA with ``adapter_names``, at the rank that has about as many parameters."""
    import peft

    model = random_base(settings)
    layers, counts = _blocks(model, settings)
    sizes = [la.in_features * la.out_features // counts[name] for name, la in layers.items()]
    per_rank = sum(layer.in_features + layer.out_features for layer in layers.values())
    config = peft.LoraConfig(
        r=max(1, round(sum(sizes) / per_rank)),
        target_modules=sorted({name.rpartition(".")[2] for name in layers}),
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    return _by_peft(model, config, settings)


def _by_peft(model: Any, config: Any, settings: Settings) -> Served:
    import peft

    # In the base's dtype: PEFT's default of fp32 adapters on a bf16 base is slower.
    options: dict[str, Any] = {"autocast_adapter_dtype": False}
    tuned = peft.get_peft_model(model, config, adapter_name="0", **options)
    for number in range(1, settings.num_adapters):
        tuned.add_adapter(str(number), copy.deepcopy(config), **options)
    tuned.to(DTYPES[settings.dtype]).requires_grad_(False).eval()
    return Served(tuned, {"adapter_names": [str(number) for number in settings.choice()]})


METHODS: dict[str, Callable[[Settings], Served]] = {
    "frozen": frozen,
    "Adapters": ours,
    "diablo_ds.peft": ours_by_peft,
    "PEFT LoRA": lora,
}


def phases(served: Served, settings: Settings) -> dict[str, Callable[[], Any]]:
    """Return what is measured: a prefill of all prompts, and one decoded token of each row."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (settings.batch, settings.prompt), generator=generator)
    ids = ids.to(settings.device)

    def prefill() -> Any:
        with torch.inference_mode(), served.chosen():
            return served.model(ids, use_cache=True, logits_to_keep=1, **served.options)

    cache = prefill().past_key_values

    def decode() -> Any:
        with torch.inference_mode(), served.chosen():
            found = served.model(ids[:, :1], past_key_values=cache, **served.options)
        cache.crop(-1)
        return found

    return {"prefill": prefill, "decode": decode}


def measure(values: dict[str, Any]) -> dict[str, Any]:
    """Return the peak memory of a method's prefill and decoding, in bytes."""
    settings = Settings(**values["settings"])
    served = METHODS[values["method"]](settings)
    both = phases(served, settings)
    reset_peak_memory()
    for _ in range(2):
        for phase in both.values():
            phase()
    return {"memory_bytes": peak_memory()}


if __name__ == "__main__":
    rank_main(measure)
