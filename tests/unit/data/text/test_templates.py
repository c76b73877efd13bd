from __future__ import annotations

from diablo_ds.data.text import templates


def test_the_alpaca_prompt_is_the_published_text():
    assert templates.alpaca("Say hi.") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nSay hi.\n\n### Response:\n"
    )
    assert templates.alpaca("Add.", "1, 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n"
    )


def test_the_gsm8k_prompt_is_the_published_text():
    assert templates.gsm8k("1+1?") == (
        "1+1?\nAnswer the above question. First think step by step and then answer the final "
        "number.\n"
    )


def test_a_plain_prompt_is_the_text_itself():
    assert templates.plain("a {b} ") == "a {b} "
    assert templates.plain("a", "b") == "a\nb"
