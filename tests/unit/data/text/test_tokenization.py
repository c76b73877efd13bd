from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest

from diablo_ds.data.corpora.encoding import RowEncoder
from diablo_ds.data.corpora.raw_rows import RawRow
from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.text.templates import Segment
from diablo_ds.data.text.tokenization import EncodableText, fingerprint, load_tokenizer
from diablo_ds.errors import UserError
from diablo_ds.model.finding import find_tokenizer
from tests import tokenizers_for_tests as kinds
from tests.tokenizers_for_tests import KINDS

# The last character of a prompt and the first of its completion would often be one token.
PAIRS = [
    ("the c", "at sat"),
    ("the answer is", " 42"),
    ("the answer is ", "42"),
    ("what is 12 + 30?\n", "the answer is 42"),
    ("def add(a, b):\n  ", "  return a + b\n"),
    ("$3", ".50"),
    ("na\u00efve \u4f60", "\u597d \U0001f98a!"),
    ("the cat ", " sat"),
    ("", "the cat sat"),
]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory):
    return load_tokenizer(KINDS[request.param](tmp_path_factory.mktemp("tokenizer") / "t"))


@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_the_boundary_is_exact_and_the_loss_is_on_completion_and_end_token(
    tokenizer, prompt, completion
):
    segments = (Segment(prompt, False), Segment(completion, True))
    (example,) = tokenizer.encode([EncodableText(segments)])
    decode = tokenizer.encoder.decode
    num_start = len(tokenizer.start_ids)
    boundary = next(i for i, label in enumerate(example.labels) if label != IGNORE_LABEL)
    assert example.labels[boundary:] == example.input_ids[boundary:]
    assert example.input_ids[:num_start] == list(tokenizer.start_ids)
    assert example.input_ids[-1] == tokenizer.end_id
    assert example.input_ids.count(tokenizer.end_id) == 1
    text_ids = example.input_ids[num_start:-1]
    # Decoded from the beginning, since some tokenizers drop the first space of what they decode.
    decoded, before = decode(text_ids), decode(text_ids[: boundary - num_start])
    lead = decoded.removesuffix(prompt + completion)
    assert lead in ("", " ")  # a space that a tokenizer puts before every document
    assert decoded == lead + prompt + completion
    assert before == (lead + prompt if prompt else "")


def test_the_prompt_is_tokenised_as_at_evaluation(tokenizer):
    """Generation starts from the prompt alone: training must show exactly these tokens."""
    for prompt, completion in PAIRS:
        alone = tokenizer.encode([EncodableText((Segment(prompt, False),), add_end=False)])[0]
        segments = (Segment(prompt, False), Segment(completion, True))
        (example,) = tokenizer.encode([EncodableText(segments)])
        assert example.input_ids[: len(alone.input_ids)] == alone.input_ids


def test_several_texts_are_encoded_as_one_by_one(tokenizer):
    texts = [EncodableText((Segment(p, False), Segment(c, True))) for p, c in PAIRS]
    assert tokenizer.encode(texts) == [tokenizer.encode([text])[0] for text in texts]


def test_a_copy_sent_to_another_process_encodes_alike(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    text = EncodableText((Segment("the cat ", False), Segment("sat", True)))
    assert copy.encode([text]) == tokenizer.encode([text])
    assert copy.probe() == tokenizer.probe()


def test_start_end_and_pad_tokens(tmp_path):
    with_bos = load_tokenizer(kinds.save_bytelevel(tmp_path / "bos", bos=True))
    assert [with_bos.encoder.decode(with_bos.start_ids)] == ["<s>"]
    assert with_bos.encoder.decode([with_bos.end_id]) == "<|end|>"
    assert with_bos.pad_id == with_bos.end_id != 0  # no pad token: the end token, never id 0
    piece = load_tokenizer(kinds.save_sentencepiece(tmp_path / "p.model", pad_id=3))
    assert (piece.start_ids, piece.end_id, piece.pad_id) == ((1,), 2, 3)


def test_control_tokens_in_text_are_characters_unless_asked_for(tmp_path):
    tokenizer = load_tokenizer(kinds.save_bytelevel(tmp_path))
    segments = (Segment("say <|end|>", False), Segment("no", True))
    (plain,) = tokenizer.encode([EncodableText(segments)])
    (parsed,) = tokenizer.encode([EncodableText(segments, parse_special=True)])
    assert plain.input_ids.count(tokenizer.end_id) == 1  # the one at the end
    assert parsed.input_ids.count(tokenizer.end_id) == 2


def test_truncation_and_padding_of_a_tokenizer_file_are_not_applied(tmp_path):
    folder = kinds.save_bytelevel(tmp_path)
    description = json.loads((folder / "tokenizer.json").read_text())
    description["truncation"] = {
        **{"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    }
    (folder / "tokenizer.json").write_text(json.dumps(description))
    tokenizer = load_tokenizer(folder)
    (example,) = tokenizer.encode([EncodableText((Segment("the cat sat on the mat", True),))])
    assert tokenizer.encoder.decode(example.input_ids) == "the cat sat on the mat<|end|>"


def _encode_messages(tokenizer, *messages, template="auto"):
    row = RawRow(1, {"messages": [{"role": r, "content": c} for r, c in messages]})
    (result,) = RowEncoder("auto", template, tokenizer).encode([row])
    return result


def test_in_a_conversation_each_answer_and_its_end_token_carry_loss(tmp_path):
    tokenizer = load_tokenizer(kinds.save_bytelevel(tmp_path))
    turns = ("system", "be brief"), ("user", "1+1?"), ("assistant", "2"), ("user", "+1?")
    result = _encode_messages(tokenizer, *turns, ("assistant", "3"))
    decode = tokenizer.encoder.decode
    assert decode(result.examples[0].input_ids) == (
        "<|start|>system\nbe brief<|end|>\n<|start|>user\n1+1?<|end|>\n<|start|>assistant\n2<|end|>"
        "\n<|start|>user\n+1?<|end|>\n<|start|>assistant\n3<|end|>"
    )
    targets = [label for label in result.examples[0].labels if label != IGNORE_LABEL]
    assert decode(targets) == "2<|end|>3<|end|>"
    assert targets.count(tokenizer.end_id) == 2


def test_a_chat_template_that_rewrites_earlier_turns_is_refused(tmp_path):
    folder = kinds.save_bytelevel(tmp_path)
    (folder / "chat_template.jinja").write_text(
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    )
    result = _encode_messages(load_tokenizer(folder), ("user", "a"), ("assistant", "b"))
    assert "must render an answer after the opening that a model gets" in result.reason


def test_a_chat_template_without_an_end_token_gets_one(tmp_path):
    folder = kinds.save_bytelevel(tmp_path)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = load_tokenizer(folder)
    result = _encode_messages(tokenizer, ("user", "a"), ("assistant", "b"))
    targets = [label for label in result.examples[0].labels if label != IGNORE_LABEL]
    assert tokenizer.encoder.decode(targets) == "b\n<|end|>"


def test_an_error_of_the_chat_template_is_a_reason(tmp_path):
    folder = kinds.save_bytelevel(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    result = _encode_messages(load_tokenizer(folder), ("user", "a"), ("assistant", "b"))
    assert "roles must alternate" in result.reason


def test_messages_without_a_chat_template_are_refused(tmp_path):
    tokenizer = load_tokenizer(kinds.save_sentencepiece(tmp_path / "p.model"))
    result = _encode_messages(tokenizer, ("user", "a"), ("assistant", "b"))
    assert "tokenizer with a chat template" in result.reason
    with pytest.raises(UserError, match="template chat needs a tokenizer with a chat template"):
        RowEncoder("math", "chat", tokenizer)


def test_tokenizers_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(UserError, match=r"must be an existing folder or .*nowhere"):
        find_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"must hold tokenizer\.json"):
        find_tokenizer(str(tmp_path))
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="must be a SentencePiece model"):
        load_tokenizer(tmp_path / "bad.model")
    endless = kinds.save_sentencepiece(tmp_path / "endless.model", eos_id=-1)
    with pytest.raises(UserError, match=r"must have an end token.*--eos_id"):
        load_tokenizer(endless)
    folder = kinds.save_bytelevel(tmp_path / "t")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"must have an end token.*eos_token"):
        load_tokenizer(folder)
    broken = kinds.save_bytelevel(tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="folder must hold a tokenizer"):
        load_tokenizer(broken)


def test_a_token_id_far_beyond_the_others(tmp_path):
    """The library takes gigabytes for the ids between them, or ends the process."""
    folder = kinds.save_metaspace(tmp_path)
    values = json.loads((folder / "tokenizer.json").read_text())
    vocab = values["model"]["vocab"]
    vocab[list(vocab)[-1]] = 1 << 31
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"ids must be at most 16,777,215; got 2,147,483,648"):
        load_tokenizer(folder)


def test_a_file_on_which_the_library_panics(tmp_path):
    folder = kinds.save_bytelevel(tmp_path)
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["continuing_subword_prefix"] = "x" * 100  # longer than the merged tokens
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"folder must hold a tokenizer; got .*out of range"):
        load_tokenizer(folder)


def test_the_fingerprint_covers_what_changes_tokens(tmp_path):
    folder = kinds.save_bytelevel(tmp_path / "t")
    before = fingerprint(folder)
    (folder / "README.md").write_text("a note")
    assert fingerprint(folder) == before
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert fingerprint(folder) != before


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_bare_sentencepiece_model_keeps_white_space_as_a_model_folder_does(tmp_path, kind):
    path = kinds.save_sentencepiece(tmp_path / "p.model", kind, remove_extra_whitespaces=True)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(path.read_bytes())
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", '
        '"unk_token": "<unk>"}'
    )
    bare, folder_model = load_tokenizer(path), load_tokenizer(folder)
    for prompt, completion in [("the answer is ", "42"), ("the cat ", " sat"), ("a  b", "\n  c ")]:
        text = EncodableText((Segment(prompt, False), Segment(completion, True)), add_start=False)
        (one,), (other,) = bare.encode([text]), folder_model.encode([text])
        assert bare.encoder.decode(one.input_ids) == f"{prompt}{completion}</s>"
        if kind == "bpe":  # of equal scores the two take different pieces
            assert one == other


def test_a_probe_tells_white_space_apart_and_older_ones_still_fit(tmp_path):
    tokenizer = load_tokenizer(kinds.save_sentencepiece(tmp_path / "p.model"))
    probe = tokenizer.probe()
    older = probe[: probe.index(tokenizer.end_id) + 1]
    assert tokenizer.reads_as(probe)
    assert tokenizer.reads_as(older)
    assert not tokenizer.reads_as([])
    stripping = replace(tokenizer, encoder=_Stripping(tokenizer.encoder))
    assert stripping.reads_as(older)
    assert not stripping.reads_as(probe)


class _Stripping:
    """Removes the space at a text's end."""

    def __init__(self, encoder):
        self.encoder = encoder

    def encode(self, texts, **options):
        return self.encoder.encode([text.rstrip(" ") for text in texts], **options)
