"""Each form of rows and each format of files that people bring, trained by the command."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma

import datasets
import pyarrow as pa
import pytest

from tests import forked
from tests.chat_templates import QWEN25
from tests.e2e.commands import losses
from tests.tiny import build_model
from tests.tokenizers_for_tests import save_chat

pytestmark = pytest.mark.e2e
NUM_ROWS = 4
CALL = {"name": "add", "arguments": {"a": 2, "b": 3}}
TALK = [("user", "what is 2 + 3?"), ("assistant", "the answer is 5")]
MESSAGES = [{"role": role, "content": text} for role, text in TALK]
SHAREGPT = [{"from": {"user": "human", "assistant": "gpt"}[r], "value": t} for r, t in TALK]
TOOLS = [
    {"from": "human", "value": "what is 2 + 3?"},
    {"from": "function_call", "value": json.dumps(CALL)},
    {"from": "observation", "value": "5"},
    {"from": "gpt", "value": "the answer is 5"},
]
ROWS = {
    "sharegpt": {"conversations": SHAREGPT},
    "sharegpt-roles": {"conversations": MESSAGES, "system": "be brief"},
    "sharegpt-tools": {"conversations": TOOLS},
    "messages": {"messages": MESSAGES},
    "trl": {"prompt": "2 + 3 = ", "completion": "5"},
    "trl-messages": {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
    "alpaca": {"instruction": "add", "input": "2 and 3", "output": "5"},
    "alpaca-turns": {
        "instruction": "add",
        "input": "2 and 3",
        "output": "5",
        "system": "be brief",
        "history": [["add 1 and 1", "2"]],
    },
    "questions": {"Question": "what is 2 + 3?", "ANSWER": "5"},
    "own-columns": {"Frage": "what is 2 + 3?", "Antwort": "5"},
    "texts": {"text": "the answer is 5, is it not? " * 20},
}


def _json(rows):
    return json.dumps(rows).encode()


def _lines(rows):
    return "\n".join(map(json.dumps, rows)).encode()


def _table(delimiter):
    def write(rows):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()

    return write


def _text(rows):
    return rows[0]["text"].encode()


WRITERS = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _json,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".txt": _text,
}
COMPRESSIONS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}


def _write(folder, kind, form):
    """Write rows of a kind in a format of files, and return the path."""
    rows = [ROWS[kind]] * NUM_ROWS
    path = folder / f"{kind}{form}"
    if form == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif form == ".arrow":
        datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
        next((folder / "saved").glob("*.arrow")).rename(path)
    elif form == "/saved":
        path = folder / f"{kind}-saved"
        datasets.Dataset.from_list(rows).save_to_disk(path)
    elif form == "/splits":
        path = folder / f"{kind}-splits"
        part = datasets.Dataset.from_list(rows)
        datasets.DatasetDict(train=part, validation=part.select([0])).save_to_disk(path)
    elif form == "/hub":
        path = folder / f"{kind}-hub"
        (path / "data").mkdir(parents=True)
        part = datasets.Dataset.from_list(rows)
        part.to_parquet(path / "data" / "train-00000-of-00001.parquet")
        part.select([0]).to_parquet(path / "data" / "test-00000-of-00001.parquet")
    elif form == "/notes":
        path = folder / f"{kind}-notes"
        path.mkdir()
        for number in range(NUM_ROWS):
            (path / f"{number}.md").write_bytes(_text(rows))
    else:
        name, _, compression = form[1:].partition(".")
        data = WRITERS[f".{name}"](rows)
        path.write_bytes(COMPRESSIONS[f".{compression}"](data) if compression else data)
    return path


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    folder = save_chat(tmp_path_factory.mktemp("model") / "chat", QWEN25)
    build_model(vocab_size=1024, max_position_embeddings=1024).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("sources", "options"),
    [
        ([("sharegpt", ".json"), ("messages", ".parquet"), ("trl", ".csv")], []),
        ([("sharegpt-roles", ".jsonl.gz"), ("alpaca", ".tsv"), ("questions", ".csv.xz")], []),
        ([("sharegpt-tools", ".jsonl"), ("trl-messages", ".ndjson.zst")], []),
        ([("alpaca-turns", ".arrow"), ("trl", "/saved"), ("questions", "/splits")], []),
        ([("texts", ".jsonl.bz2"), ("texts", ".txt"), ("texts", "/notes")], []),
        ([("own-columns", ".csv")], ["--column", "prompt=frage", "--column", "completion=antwort"]),
        ([("alpaca", "/hub"), ("sharegpt", ".json.gz")], ["--mix", "sharegpt=2"]),
    ],
    ids=["chats", "compressed", "tools", "saved", "texts", "columns", "hub"],
)
def test_three_steps_are_trained(sources, options, chat_model, tmp_path):
    paths = [_write(tmp_path, kind, form) for kind, form in sources]
    words = [word for path in paths for word in ("--data", path)]
    is_mixed = "--mix" in options
    result = forked.diablo_ds(
        "train", "--model", chat_model, *words, *options, "--heldout-share", 0,
        "--num-blocks", 4, "--global-batch", 4, "--micro-batch", 2, "--max-steps", 3,
        "--precision", "fp32", "--max-length", 1000, "--output", tmp_path / "run",
    )  # fmt: skip
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3]
    read = sum(1 if form == ".txt" else NUM_ROWS for _, form in sources)
    assert f"{read} rows read: " in result.stderr, result.stderr
    assert "Template: " in result.stderr
    assert "The first example, with loss in [[...]]" in result.stderr
    assert ("held-out   1 examples" in result.stderr) == any(
        form in ("/hub", "/splits") for _, form in sources
    ), result.stderr
    assert ("not in the mix" in result.stderr) == is_mixed
