"""Weighted sums of adapters."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from diablo_ds.adapter.storage import AdapterConfig, load_adapter, write_adapter_files
from diablo_ds.cli.main import main
from diablo_ds.conversion.combination import Term, combine, parse_term
from diablo_ds.errors import UserError

LAYERS = {"model.layers.0.q_proj": (4, 8, 6), "model.layers.1.down_proj": (2, 5, 3)}


def _save(folder, seed, *, base="tiny", fingerprint="abc", layers=LAYERS, dropout=0.0, change=None):
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"{n}.delta": torch.randn(s, generator=generator) for n, s in layers.items()}
    if change is not None:
        change(next(iter(tensors.values())))
    config = AdapterConfig(base, fingerprint, {n: s[0] for n, s in layers.items()}, dropout)
    folder.mkdir()
    write_adapter_files(folder, tensors, config)
    return folder


def _run(*words):
    return CliRunner().invoke(main, ["combine", *map(str, words)])


def test_the_sum_is_that_of_the_dense_weights_rounded_once(tmp_path):
    folders = [_save(tmp_path / f"{seed}", seed) for seed in range(3)]
    weights = (0.7, -0.25, 3.1)
    words = [f"{folder}={weight}" for folder, weight in zip(folders, weights, strict=True)]
    result = _run(*words, "--output", tmp_path / "sum")
    assert result.exit_code == 0, result.output
    combined, config = load_adapter(tmp_path / "sum")
    assert (config.base_model, config.base_fingerprint) == ("tiny", "abc")
    parents = [
        {"folder": str(folder), "weight": weight}
        for folder, weight in zip(folders, weights, strict=True)
    ]
    assert config.parent == {"combined": parents}
    loaded = [load_adapter(folder)[0] for folder in folders]
    for name, delta in combined.items():
        dense = sum(
            weight * torch.block_diag(*tensors[name].double())
            for weight, tensors in zip(weights, loaded, strict=True)
        )
        assert torch.equal(torch.block_diag(*delta), dense.float())


def test_the_card_of_a_sum_has_its_parts_without_folders(tmp_path):
    terms = [Term(_save(tmp_path / name, seed), 0.5) for seed, name in enumerate("ab")]
    combine(
        [Term(tmp_path / "a", 1), Term(_combined(terms, tmp_path / "sum"), 2)], tmp_path / "again"
    )
    card = (tmp_path / "again" / "README.md").read_text()
    assert str(tmp_path) not in card
    assert "| combined 2 folder | sum |" in card
    assert "| combined 2 parent combined 1 folder | a |" in card
    assert "| combined 2 weight | 2 |" in card


def _combined(terms, output):
    combine(terms, output)
    return output


def test_one_adapter_can_be_scaled(tmp_path):
    folder = _save(tmp_path / "a=1", 0)
    combine([parse_term(f"{folder}=0.5")], tmp_path / "half")
    for name, delta in load_adapter(tmp_path / "half")[0].items():
        assert torch.equal(delta * 2, load_adapter(folder)[0][name])


def test_the_output_lies_in_no_folder_that_is_read(tmp_path):
    folder = _save(tmp_path / "a", 0)
    result = _run(f"{folder}=0.5", "--output", folder / "half")
    assert result.exit_code == 2
    assert "output must lie outside of the folders that are read" in result.output
    assert not (folder / "half").exists()


@pytest.mark.parametrize(("dropouts", "kept"), [((0.1, 0.1), 0.1), ((0.1, 0.2), 0.0)])
def test_dropout_is_kept_where_all_have_it(dropouts, kept, tmp_path):
    terms = [
        Term(_save(tmp_path / f"{seed}", seed, dropout=dropout), 0.5)
        for seed, dropout in enumerate(dropouts)
    ]
    assert combine(terms, tmp_path / "sum").dropout == kept


def test_an_unknown_fingerprint_leaves_the_name_to_tell_the_base(tmp_path):
    known, unknown = _save(tmp_path / "a", 0), _save(tmp_path / "b", 1, fingerprint="")
    config = combine([Term(unknown, 0.5), Term(known, 0.5)], tmp_path / "sum")
    assert config.base_fingerprint == "abc"
    other = _save(tmp_path / "c", 2, fingerprint="", base="other")
    with pytest.raises(UserError, match=r"'tiny' .* for .*/a and 'other' .*unknown.* for .*/c"):
        combine([Term(known, 0.5), Term(other, 0.5)], tmp_path / "none")


OTHER_COUNT = {**LAYERS, "model.layers.0.q_proj": (8, 4, 3)}
FEWER = {"model.layers.0.q_proj": (4, 8, 6)}
OTHER_WIDTHS = {**LAYERS, "model.layers.0.q_proj": (4, 8, 7)}
REFUSED = {
    "num_blocks": (
        {"layers": OTHER_COUNT},
        ("num_blocks=4 in ", "num_blocks=8 in ", "q_proj", "/a", "/b"),
    ),
    "layers": ({"layers": FEWER}, ("same layers", "1 of ", "model.layers.1.down_proj")),
    "widths": ({"layers": OTHER_WIDTHS}, ("[4, 8, 6]", "[4, 8, 7]", "q_proj")),
    "base": ({"fingerprint": "def"}, ("same base", "'tiny' (fingerprint abc)", "fingerprint def")),
    "NaN": ({"change": lambda t: t[0, 0, 0].fill_(torch.nan)}, ("NaN", "q_proj", "/b")),
    "infinity": ({"change": lambda t: t[0, 0, 0].fill_(torch.inf)}, ("infinity", "q_proj", "/b")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_adapters_that_do_not_belong_together_are_refused(case, tmp_path):
    changes, parts = REFUSED[case]
    a, b = _save(tmp_path / "a", 0), _save(tmp_path / "b", 1, **changes)
    result = _run(f"{a}=0.7", f"{b}=0.3", "--output", tmp_path / "sum")
    assert result.exit_code == 2
    assert all(part in result.stderr for part in parts), result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def _same_folder_twice(folder):
    (folder / "link").symlink_to(folder / "a")
    return [f"{folder}/a=1", f"{folder}/link=2"]


WORDS = {
    "no weight": (lambda folder: [f"{folder}/a"], "PATH=WEIGHT"),
    "NaN": (lambda folder: [f"{folder}/a=nan"], "finite weight"),
    "zero": (lambda folder: [f"{folder}/a=0"], "other than 0"),
    "no number": (lambda folder: [f"{folder}/a=much"], "a=much"),
    "copy": (lambda folder: [f"{folder}/a=1"], "a copy"),
    "twice": (_same_folder_twice, "got duplicates"),
    "missing": (lambda folder: [f"{folder}/a=1", f"{folder}/b=1"], "b, which does not exist"),
    "too large": (lambda folder: [f"{folder}/a=1e300"], "fp32's range"),
}


@pytest.mark.parametrize("case", WORDS)
def test_a_wrong_term_is_named(case, tmp_path):
    words, part = WORDS[case]
    _save(tmp_path / "a", 0)
    result = _run(*words(tmp_path), "--output", tmp_path / "sum")
    assert result.exit_code == 2
    assert part in result.stderr
    assert not (tmp_path / "sum").exists()


def test_adapters_that_cancel_each_other_and_an_output_that_exists_are_refused(tmp_path):
    a, b = _save(tmp_path / "a", 0), _save(tmp_path / "b", 0)
    assert "must not be zero everywhere" in _run(f"{a}=1", f"{b}=-1", "--output", "sum").stderr
    result = _run(f"{a}=1", f"{b}=1", "--output", b)
    assert "which exists" in result.stderr
    assert load_adapter(b)[0].keys() == load_adapter(a)[0].keys()
