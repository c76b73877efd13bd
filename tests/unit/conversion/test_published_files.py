"""Files of the method's published code, written by a layer that follows its paper and its rule."""

from __future__ import annotations

import math
import zipfile

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from diablo_ds.adapter.attach import attach, load_deltas
from diablo_ds.adapter.storage import load_adapter
from diablo_ds.cli.main import main
from diablo_ds.model.finding import fingerprint
from tests.tiny import build_model, save_model


class PublishedLayer(nn.Module):
    """A frozen linear layer and its blocks; widths that do not divide are padded."""

    def __init__(self, linear, num_blocks):
        super().__init__()
        self.linear = linear
        widths = linear.in_features, linear.out_features
        in_block, out_block = (math.ceil(width / num_blocks) for width in widths)
        count = max(math.ceil(widths[0] / in_block), math.ceil(widths[1] / out_block))
        self.block_A = nn.Parameter(torch.randn(count, in_block, out_block) * 0.1)

    def forward(self, x):
        count, in_block, _ = self.block_A.shape
        padded = nn.functional.pad(x, (0, count * in_block - x.shape[-1]))
        parts = padded.unflatten(-1, (count, in_block)).unsqueeze(-2)
        blocks = (parts @ self.block_A).flatten(-3)
        return self.linear(x) + blocks[..., : self.linear.out_features]


def _publish(model, num_blocks, names=("q_proj", "down_proj"), layers=(0, 1)):
    for number in layers:
        layer = model.model.layers[number]
        for parent in (layer.self_attn, layer.mlp):
            for name in set(names) & set(dict(parent.named_children())):
                setattr(parent, name, PublishedLayer(getattr(parent, name), num_blocks))
    return {name: value for name, value in model.state_dict().items() if "block" in name}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("base"))


def _import(file, base, output):
    words = ["import", file, "--base", base, "--output", output]
    return CliRunner().invoke(main, [str(word) for word in words])


# 20 blocks of 2 x 2 were asked for, of widths 32 and 32: the published code makes 16 of them.
@pytest.mark.parametrize(("num_blocks", "count"), [(4, 4), (20, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_imported_adapter_computes_what_the_published_layers_do(
    num_blocks, count, dtype, base, tmp_path
):
    published = build_model()
    tensors = _publish(published, num_blocks, ("q_proj",), layers=(1,))
    tensors = {name: value.to(dtype) for name, value in tensors.items()}
    torch.save(tensors, tmp_path / "adapter.chkpt")
    published.load_state_dict(tensors, strict=False)
    result = _import(tmp_path, base, tmp_path / "imported")
    assert result.exit_code == 0, result.output
    assert "no delta on decoder layers 0\n" in result.stdout
    deltas, config = load_adapter(tmp_path / "imported")
    assert config.base_fingerprint == fingerprint(base)
    assert config.parent is not None
    assert config.parent["imported"] == str(tmp_path / "adapter.chkpt")
    assert config.num_blocks == {"model.layers.1.self_attn.q_proj": count}
    assert str(tmp_path) not in (tmp_path / "imported" / "README.md").read_text()
    ours = build_model()
    attach(ours, config.num_blocks)
    load_deltas(ours, deltas)
    ids = torch.randint(256, (2, 7))
    torch.testing.assert_close(ours(ids).logits, published(ids).logits)
    assert not torch.allclose(ours(ids).logits, build_model()(ids).logits)


def _code(_):
    return {"layer.block_A": print}


def _changed(**changes):
    def change(tensors):
        name = next(iter(tensors))
        return {**tensors, **{name if key == "first" else key: v for key, v in changes.items()}}

    return change


LAYER = "model.layers.0.self_attn.q_proj"
NAN = torch.full((4, 8, 8), torch.nan)
BAD_FILES = {
    "code": (_code, "holds other objects"),
    "list": (lambda _: [1], "must be a state dict with tensors; got list"),
    "empty": (lambda _: {}, "must be a state dict with tensors"),
    "others": (_changed(**{"score.weight": torch.ones(2)}), "'score.weight'"),
    "no tensor": (_changed(first=1.0), "1 others"),
    "NaN": (_changed(first=NAN), "got NaN in model.layers"),
    "integers": (_changed(first=torch.ones(4, 8, 8, dtype=torch.int32)), "must be of floats"),
    "matrix": (_changed(first=torch.ones(8, 8)), "shape [8, 8]"),
    "unknown layer": (_changed(**{"model.layers.9.q.block_A": NAN}), "no linear layer model.layer"),
    "no linear layer": (_changed(**{"model.norm.block_A": NAN}), "no linear layer model.norm"),
    "other widths": (_changed(first=torch.ones(4, 9, 8)), "name the base model"),
    "zero": (lambda _: {f"{LAYER}.block_A": torch.zeros(4, 8, 8)}, "must not all be zero"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_none_is_refused(case, base, tmp_path):
    change, part = BAD_FILES[case]
    torch.save(change(_publish(build_model(), 4)), tmp_path / "adapter.chkpt")
    result = _import(tmp_path / "adapter.chkpt", base, tmp_path / "imported")
    assert result.exit_code == 2, result.output
    assert part in result.stderr
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("num_blocks", [3, 5, 7, 12])
def test_padding_is_refused_with_its_reason(num_blocks, base, tmp_path):
    torch.save(_publish(build_model(), num_blocks, ("down_proj",)), tmp_path / "adapter.chkpt")
    result = _import(tmp_path / "adapter.chkpt", base, tmp_path / "imported")
    assert result.exit_code == 2
    assert "must divide both widths" in result.stderr
    assert "padded the input with zeros" in result.stderr
    assert "mlp.down_proj" in result.stderr


def test_missing_cut_and_foreign_files_are_refused(base, tmp_path):
    file, output = tmp_path / "adapter.chkpt", tmp_path / "imported"
    assert f"must exist; got {file}" in _import(tmp_path, base, output).stderr
    torch.save(_publish(build_model(), 4), file)
    assert "must be an existing folder" in _import(file, "/none", output).stderr
    _replace_pickle(file, b"\x80\x02.")  # ends with nothing on its stack
    assert "one that torch.save wrote" in _import(file, base, output).stderr
    file.write_bytes(file.read_bytes()[:-100])
    assert "file must be" in _import(file, base, output).stderr
    file.write_text("no pickle")
    result = _import(file, base, output)
    assert result.exit_code == 2
    assert f"got {file}" in result.stderr
    output.mkdir()
    assert "which exists" in _import(file, base, output).stderr


def _replace_pickle(file, pickle):
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, pickle if name.endswith("data.pkl") else content)
