"""Sources for preparations in this process, and what came out of them."""

from __future__ import annotations

import json
from pathlib import Path

from diablo_ds.data.prepare import chunk_files, chunks
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.data.token_table import TokenTable


def pairs(count, word="word"):
    return [{"prompt": f"{word} {i}?", "completion": "x" * (i % 9 + 1)} for i in range(count)]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_texts(folder, part="train"):
    table = TokenTable.load(Path(folder), part)
    decode = load_tokenizer_of(folder).encoder.decode
    return [decode([int(t) for t in table[i].input_ids]) for i in range(len(table))]


def load_tokenizer_of(folder):
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    return load_tokenizer(Path(manifest["tokenizer"]["name"]))


def read_files(folder):
    """Every file of a dataset but the note of file times."""
    found = sorted(Path(folder).rglob("*"))
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in found
        if path.is_file() and path.name != ".file_times.json"
    }


class InterruptedPreparationError(Exception):
    """Stands for the end of a process in the middle of a preparation."""


def interrupt_after(monkeypatch, num_chunks):
    """Make the preparation end in the middle; return the list of chunks it tokenises."""
    done = []
    original = chunks.ChunkEncoder.__call__

    def encode(self, chunk):
        if len(done) == num_chunks:
            raise InterruptedPreparationError
        if not chunk_files.chunk_file(self._folder, chunk.number).exists():
            done.append(chunk.number)
        return original(self, chunk)

    monkeypatch.setattr(chunks.ChunkEncoder, "__call__", encode)
    return done
