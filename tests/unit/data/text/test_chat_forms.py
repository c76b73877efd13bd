from __future__ import annotations

import pytest

from tests.chat_templates import QWEN25
from tests.unit.data.chats import CALL, TOOL, chat, examples_of, find_targets, load_kind, tool_chat


@pytest.mark.parametrize("kind", ["Llama 3", "Qwen 2.5", "Qwen 3", "Mistral", "DeepSeek"])
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_calls_carry_loss_and_results_do_not(load, kind, content):
    tokenizer, _ = load_kind(load, kind)
    row = tool_chat(CALL, [{"type": "function", "function": TOOL}], **content)
    examples = examples_of(tokenizer, row)
    targets = [text for example in examples for text in find_targets(tokenizer, example)]
    assert len(targets) == 2
    call, answer = targets
    assert '{"city": "Zürich", "days": [1, 2]}' in call
    assert "get_weather" in call
    assert "None" not in call
    assert "sunny" not in "".join(targets)
    assert "It is fine." in answer
    assert all(text.endswith(tokenizer.turn_end.text) for text in targets)
    history = tokenizer.encoder.decode(examples[-1].input_ids)
    assert "the weather" in history
    assert "sunny" in history


def test_a_developer_is_the_system_for_templates_that_do_not_know_it(load):
    tokenizer, _ = load(QWEN25)
    rows = [
        {"messages": [{"role": role, "content": "be brief"}, *chat("a", "b")["messages"]]}
        for role in ("system", "developer")
    ]
    assert examples_of(tokenizer, rows[0]) == examples_of(tokenizer, rows[1])
