"""Models that also see images: their text model is trained, under the names of the whole."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPVisionConfig, Gemma3Config, Llama4Config, LlamaConfig, LlavaConfig

from diablo_ds.adapter.attach import attach
from diablo_ds.adapter.targets import select_targets
from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import MicroBatch
from diablo_ds.errors import UserError
from diablo_ds.files.tensor_files import find_tensors
from diablo_ds.model.architecture import (
    build_meta_model,
    build_model,
    check_runs,
    decoder_layers,
    text_decoder_name,
)
from diablo_ds.model.base import read_base
from diablo_ds.model.checkpoint_contents import fits_checkpoint
from diablo_ds.model.loss import causal_lm_loss
from diablo_ds.model.loss_head import install_loss_head, loss_of
from diablo_ds.model.separation import prove_separation

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 264,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
CONFIGS = {
    "llava": LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT),
        image_token_index=260,
    ),
    "gemma3": Gemma3Config(
        text_config={**TEXT, "head_dim": 8, "sliding_window": 16},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=260,
        boi_token_index=261,
        eoi_token_index=262,
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_text_model_is_trained_under_the_names_of_the_whole(kind, tmp_path):
    config = CONFIGS[kind]
    torch.manual_seed(0)
    model = build_model(config, torch.float32)
    model.save_pretrained(tmp_path)
    base = read_base(tmp_path)
    assert base.vocab_size == 264
    within = text_decoder_name(model)
    assert within == "model.language_model"
    model_type = config.get_text_config().model_type
    targets = select_targets(base.shapes, (), model_type=model_type, within=within)
    assert len(targets) == 2 * 5  # none in the vision tower, which has layers of the same names
    assert all(name.startswith(f"{within}.layers.") for name in targets)
    with pytest.raises(UserError, match="each target must match"):
        select_targets(base.shapes, ("fc1",), within=within)
    assert len(decoder_layers(base.shapes)) == 2

    tokens = torch.randint(260, (2, 9))
    expected = causal_lm_loss(model.train()(input_ids=tokens).logits, tokens)
    deltas = attach(model, dict.fromkeys(targets, 4))
    install_loss_head(model, build_meta_model(config))
    loss = loss_of(model, MicroBatch(tokens, tokens, None, tokens.numel()))
    assert_close(loss, expected)
    loss.backward()
    assert all(delta.grad is not None and delta.grad.norm() > 0 for delta in deltas.values())


@pytest.mark.parametrize("kind", CONFIGS)
def test_packing_is_proven_for_the_whole_model(kind):
    run = RunConfig(packing=True, micro_batch=4, global_batch=4, max_length=64)
    found = prove_separation(CONFIGS[kind], run, "sdpa", torch.float32)
    assert (found.mask.kind == "examples") == (kind == "llava")


def test_every_parameter_lies_in_the_files_or_needs_a_conversion(tmp_path):
    model = build_model(CONFIGS["llava"], torch.float32)
    model.save_pretrained(tmp_path)
    # transformers renames them on the way: then it loads them itself.
    assert not fits_checkpoint(build_meta_model(CONFIGS["llava"]), find_tensors(tmp_path))


def test_one_that_does_not_run_on_text_alone_is_refused():
    text = {**TEXT, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 64}
    widths = {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    config = Llama4Config(text_config=text, vision_config={**VISION, **widths})
    shapes = build_meta_model(config)
    try:
        with torch.no_grad():
            build_model(config, torch.float32)(input_ids=torch.ones(1, 4, dtype=torch.int64))
    except AttributeError:  # a defect of some versions of transformers
        with pytest.raises(UserError, match="model must run on text alone"):
            check_runs(shapes)
