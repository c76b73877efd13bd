from __future__ import annotations

from itertools import pairwise

import numpy as np

from diablo_ds.data import fingerprints
from diablo_ds.data.labels import Example
from diablo_ds.data.token_table import TokenTable


def test_chunks_of_a_table_do_not_matter_and_samples_see_lengths(monkeypatch):
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 9, 5000)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids, labels = (generator.integers(0, 99, offsets[-1], np.int32) for _ in range(2))

    def table(*cuts: int) -> TokenTable:
        edges = [0, *cuts, len(lengths)]
        return TokenTable(
            [
                (
                    offsets[a : b + 1] - offsets[a],
                    ids[offsets[a] : offsets[b]],
                    labels[offsets[a] : offsets[b]],
                )
                for a, b in pairwise(edges)
            ]
        )

    def digest(*cuts: int) -> str:
        return fingerprints.digest_table(table(*cuts))

    full = digest()
    assert digest(7, 2500) == full
    monkeypatch.setattr(fingerprints, "FULL_BYTES", 1000)
    monkeypatch.setattr(fingerprints, "SAMPLED_BYTES", 8000)
    monkeypatch.setattr(fingerprints, "BLOCK_BYTES", 400)
    sampled = digest()
    assert digest(7, 2500) == sampled != full
    ids[-1] += 1
    assert digest() != sampled
    ids[-1] -= 1
    labels[0] += 1
    assert digest() != sampled


def test_a_file_is_known_by_size_and_content(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "NAMING_BYTES", 100)
    monkeypatch.setattr(fingerprints, "BLOCK_BYTES", 10)
    path = tmp_path / "a"
    for size in (50, 5000):  # read in full, and in blocks
        path.write_bytes(b"x" * size)
        (before,) = fingerprints.describe_files([path]).values()
        assert before[0] == size
        path.write_bytes(b"x" * (size - 1) + b"y")
        (changed,) = fingerprints.describe_files([path]).values()
        assert changed[0] == size
        assert changed[1] != before[1]


def test_many_files_are_described_together(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "MAX_NAMED_FILES", 2)
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"xy")
    described = fingerprints.describe_files(paths)
    assert [(name, values[0]) for name, values in described.items()] == [("3 files", 6)]
    paths[1].write_bytes(b"x")
    assert fingerprints.describe_files(paths) != described


def test_a_stream_is_known_by_its_files_and_its_first_examples(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    examples = [Example([1, 2], [-100, 2])]
    digest = fingerprints.digest_stream([tmp_path / "a"], examples)
    assert fingerprints.digest_stream([tmp_path / "a"], [Example([1, 2], [1, 2])]) != digest
    (tmp_path / "a").write_bytes(b"y")
    assert fingerprints.digest_stream([tmp_path / "a"], examples) != digest
