"""Small tokenizers of every kind that training meets, as real files."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.chat_templates import Family

TEXT = (
    "the cat sat on the mat and the dog sat on the log; it cost $3.50 in 2024.\n"
    "def add(a, b):\n    return a + b\n  what is 12 + 30? the answer is 42, is it not?\n"
) * 20
CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
CHAT_LINES = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}"
    "{% endfor %}"
)
SPECIAL = ["<s>", "<|end|>", "<|start|>"]


def save_bytelevel(folder: Path, *, prefix_space: bool = False, bos: bool = False) -> Path:
    """A byte-level BPE as in GPT-2 and Llama 3, with a chat template."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return _save(folder, tokenizer, bos)


def save_metaspace(folder: Path, *, legacy: bool = False, bos: bool = True) -> Path:
    """A BPE with a space put before each text, as in Llama 2; in both forms that are about."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<s>", byte_fallback=True))
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    if legacy:
        steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    steps = [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(steps)
    return _save(folder, tokenizer, bos)


def _save(folder: Path, tokenizer: tokenizers.Tokenizer, bos: bool) -> Path:
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    saved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if bos else None,
        eos_token="<|end|>",
        extra_special_tokens=["<|start|>"],
    )
    saved.chat_template = CHAT
    saved.save_pretrained(folder)
    return folder


def save_chat(folder: Path, family: Family, *, legacy: bool = False) -> Path:
    """A tokenizer with the chat template and control tokens of a family.

    Args:
        folder: where it goes.
        family: the family.
        legacy: whether it is one that puts a space before each text, also after control tokens.
    """
    if legacy:
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        alphabet = ["\u2581"]
        first = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    else:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet, first = pre_tokenizers.ByteLevel.alphabet(), []
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens(
        [
            tokenizers.AddedToken(text, rstrip=text in family.stripping, normalized=False)
            for text in family.control
        ]
    )
    tokenizer.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in family.plain])
    if family.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A",
            special_tokens=[(family.bos, tokenizer.token_to_id(family.bos))],
        )
    # Only these two are named: the others are special in tokenizer.json alone.
    saved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=family.bos, eos_token=family.eos
    )
    saved.chat_template = family.template
    saved.save_pretrained(folder)
    return folder


def save_unigram(folder: Path) -> Path:
    """A unigram model that has its end token as a piece of text too, the likeliest of all."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((character, -9.0) for character in "\u2581abc</s>")]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    saved.chat_template = CHAT_LINES
    saved.save_pretrained(folder)
    return folder


def save_sentencepiece(path: Path, kind: str = "bpe", **options: object) -> Path:
    """A bare SentencePiece model, with start and end tokens unless told otherwise."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        model_type=kind,
        vocab_size=330,
        byte_fallback=True,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
        **{"remove_extra_whitespaces": False, **options},
    )
    path.write_bytes(model.getvalue())
    return path


KINDS = {
    "byte-level": lambda folder: save_bytelevel(folder),
    "byte-level with BOS": lambda folder: save_bytelevel(folder, bos=True),
    "byte-level with prefix space": lambda folder: save_bytelevel(folder, prefix_space=True),
    "metaspace with BOS": lambda folder: save_metaspace(folder),
    "metaspace without BOS": lambda folder: save_metaspace(folder, bos=False),
    "metaspace, legacy": lambda folder: save_metaspace(folder, legacy=True),
    "sentencepiece BPE": lambda folder: save_sentencepiece(folder.with_suffix(".model")),
    "sentencepiece unigram": lambda folder: save_sentencepiece(
        folder.with_suffix(".model"), "unigram"
    ),
    "sentencepiece without BOS": lambda folder: save_sentencepiece(
        folder.with_suffix(".model"), bos_id=-1
    ),
    "sentencepiece that removes spaces": lambda folder: save_sentencepiece(
        folder.with_suffix(".model"), remove_extra_whitespaces=True
    ),
}
