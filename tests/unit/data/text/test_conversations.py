"""Which texts carry loss when published templates render conversations."""

from __future__ import annotations

import pytest

from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.text.conversations import DATE, EACH_ANSWER, GREETING, LAST_ANSWER
from tests.chat_templates import (
    CHATML,
    CHATML_MARKED,
    CHATML_MARKED_WIDELY,
    LLAMA3,
    PHI3,
    QWEN3,
    QWEN25,
)
from tests.unit.data.chats import KINDS, TALK, chat, encode, examples_of, find_targets, load_kind


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_template_and_loss_is_on_answers_and_their_ends(load, kind):
    tokenizer, reference = load_kind(load, kind)
    row = chat(*TALK)
    messages = row["messages"]
    examples = examples_of(tokenizer, row)
    answers = []
    for example in examples:
        targets = find_targets(tokenizer, example)
        answers += targets
        num_messages = 2 * len(answers)
        rendered = reference.apply_chat_template(messages[:num_messages], return_dict=False)
        length = len(example.input_ids)
        assert example.input_ids == rendered[:length]
        rest = reference.decode(rendered[length:])
        assert rest.strip() in ("", "<|endoftext|>")  # what a template puts behind an end of turn
        # What a model gets is exactly what comes before the last answer.
        prompt = reference.apply_chat_template(
            messages[: num_messages - 1], add_generation_prompt=True, return_dict=False
        )
        start = length - len(reference(targets[-1], add_special_tokens=False).input_ids)
        if not kind.endswith("legacy"):  # there a text that begins anew gets a space
            assert example.input_ids[: len(prompt)] == prompt
            assert len(prompt) == start
        assert example.labels[len(prompt)] != IGNORE_LABEL == example.labels[len(prompt) - 1]
    end = tokenizer.turn_end.text
    thought = "<think>\n\n</think>\n\n" if kind == "Qwen 3" else ""
    stripped = [answer.strip().replace(f" {end}", end) for answer in answers]
    assert stripped == [f"{thought}{text}{end}" for text in TALK[1::2]]


def test_marks_of_the_template_are_the_loss(load):
    tokenizer, reference = load(CHATML_MARKED)
    row = chat(*TALK)
    (example,) = examples_of(tokenizer, row)
    marked = reference.apply_chat_template(
        row["messages"], return_dict=True, return_assistant_tokens_mask=True
    )
    length = len(example.input_ids)
    mask = [int(label != IGNORE_LABEL) for label in example.labels]
    assert mask == list(marked["assistant_masks"])[:length]
    assert example.input_ids == list(marked["input_ids"])[:length]
    # Marks around more than a model writes give the same loss.
    assert examples_of(load(CHATML_MARKED_WIDELY)[0], row) == [example]
    assert examples_of(load(CHATML)[0], row) == [example]


def test_marks_without_the_end_of_turn_get_it(load):
    inside, outside = "<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"
    template = CHATML_MARKED.template.replace(inside, outside)
    assert template != CHATML_MARKED.template
    tokenizer, _ = load(CHATML_MARKED._replace(template=template))
    assert examples_of(tokenizer, chat(*TALK)) == examples_of(load(CHATML)[0], chat(*TALK))


def test_marks_keep_a_conversation_in_one_example_where_thoughts_are_dropped(load):
    answer = "{% generation %}{% if loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    template = CHATML_MARKED.template.replace("{% generation %}", answer)
    tokenizer, _ = load(CHATML_MARKED._replace(template=template))
    first, second = ({"content": c, "reasoning_content": f"as {c}"} for c in ("cat", "dog"))
    (example,) = examples_of(tokenizer, chat("a", first, "b", second))
    assert find_targets(tokenizer, example) == [
        "cat<|im_end|>",
        "<think>as dog</think>dog<|im_end|>",
    ]


def test_where_thoughts_are_dropped_each_answer_has_an_example_with_its_own_history(load):
    tokenizer, reference = load(QWEN3)
    first = {"content": "the cat", "reasoning_content": "hmm one"}
    second = {"content": "the dog", "reasoning_content": "hmm two"}
    row = chat("a?", first, "b?", second)
    result = encode(tokenizer, row)
    assert result.notes == (EACH_ANSWER,)
    examples = list(result.examples)
    assert [find_targets(tokenizer, example) for example in examples] == [
        ["<think>\nhmm one\n</think>\n\nthe cat<|im_end|>"],
        ["<think>\nhmm two\n</think>\n\nthe dog<|im_end|>"],
    ]
    for end, example in zip((2, 4), examples, strict=True):
        rendered = reference.apply_chat_template(row["messages"][:end], return_dict=False)
        assert example.input_ids == rendered[: len(example.input_ids)]
    assert "hmm one" not in tokenizer.encoder.decode(examples[1].input_ids)
    last = encode(tokenizer, row, last_answer_only=True)
    assert list(last.examples) == examples[1:]
    assert last.notes == (LAST_ANSWER,)


def test_thoughts_that_the_template_does_not_know_are_refused(load):
    tokenizer, _ = load(LLAMA3)
    result = encode(tokenizer, chat("a?", {"content": "b", "reasoning_content": "hmm"}))
    assert result.reason == (
        "chat template must render reasoning_content of message 2, but omits it"
    )


def test_the_date_that_a_template_writes_is_reported_and_can_be_given(load):
    today = "{%- set date = date_string if date_string is defined else strftime_now('%Y') -%}"
    template = CHATML.template.replace("{{ m['content'] }}", "{{ date }}: {{ m['content'] }}")
    tokenizer, _ = load(CHATML._replace(template=today + template))
    assert encode(tokenizer, chat("a", "b")).notes == (DATE,)
    fixed = chat("a", "b", chat_template_kwargs={"date_string": "1 Jul 2026"})
    result = encode(tokenizer, fixed)
    assert result.notes == ()
    assert "1 Jul 2026: a" in tokenizer.encoder.decode(result.examples[0].input_ids)


def test_a_message_that_the_template_omits_is_refused(load):
    row = {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "tool", "content": "sunny"},
            {"role": "assistant", "content": "yes"},
        ]
    }
    result = encode(load(PHI3)[0], row)
    assert "must render the content of message 2 (tool), but omits it" in result.reason


def test_weights_hold_where_each_answer_has_its_own_example(load):
    tokenizer, _ = load(QWEN3)
    examples = examples_of(tokenizer, chat("a", {"content": "cat", "weight": 0}, "b", "dog"))
    assert [find_targets(tokenizer, example) for example in examples] == [
        ["<think>\n\n</think>\n\ndog<|im_end|>"]
    ]


def test_an_answer_before_any_question_carries_no_loss_where_it_has_no_opening(load):
    greeted = {"messages": [{"role": "assistant", "content": "welcome"}, *chat(*TALK)["messages"]]}
    (example,) = examples_of(load(CHATML)[0], greeted)
    assert len(find_targets(load(CHATML)[0], example)) == 3
    tokenizer, _ = load(QWEN25)  # looks at the first message
    result = encode(tokenizer, greeted)
    assert result.notes == (GREETING,)
    text = tokenizer.encoder.decode(result.examples[0].input_ids)
    assert text.startswith("<|im_start|>assistant\nwelcome<|im_end|>")
    assert len(find_targets(tokenizer, result.examples[0])) == 2
