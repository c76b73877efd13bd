from __future__ import annotations

import pytest

from diablo_ds.data.text.chat_template import ChatTemplate
from diablo_ds.data.text.control_tokens import ControlToken, ControlTokens
from diablo_ds.errors import UserError

LINES = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def _template(source, **more):
    return ChatTemplate((("default", source), *more.items()), (("bos_token", "<s>"),))


def test_messages_are_rendered_with_the_tokenizer_s_variables():
    template = _template(LINES)
    assert template.render(TALK) == "<s>user: a<end>\nassistant: b<end>\n"
    opened = template.render(TALK[:1], add_generation_prompt=True)
    assert opened == "<s>user: a<end>\nassistant: "
    assert template.render(TALK, variables={"bos_token": "!"}).startswith("!user")


def test_tools_take_the_template_for_them():
    template = _template(LINES, tool_use="with tools")
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert template.render(TALK, tools) == "with tools"
    assert template.source(None) == LINES


def test_words_are_found_in_the_source_as_words():
    template = _template(LINES)
    assert template.mentions("bos_token")
    assert not template.mentions("bos")


def test_what_a_model_generates_is_found_by_its_marks():
    marked = LINES.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    assert not _template(LINES).has_marks()
    template = _template(marked)
    assert template.has_marks()
    text, spans = template.render_marked(TALK)
    assert [text[start:end] for start, end in spans] == ["a", "b"]


def test_an_error_of_a_template_is_one_for_the_user():
    template = _template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match="must accept the messages: roles must alternate"):
        template.render(TALK)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% for x in range(10**9) %}{% endfor %}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_does_not_leave_its_sandbox(source):
    with pytest.raises(UserError, match="must accept the messages"):
        _template(source).render(TALK)


def test_the_tokens_of_turns_are_found_by_rendering():
    end, other = ControlToken("<end>", 7), ControlToken("<other>", 8)
    added = ControlTokens((ControlToken("<s>", 1), end, other))
    texts, turn_end = _template(LINES).turn_tokens(added)
    assert texts == {"<s>", "<end>"}
    assert turn_end == end
    assert _template("{{ raise_exception('no') }}").turn_tokens(added) == (frozenset(), None)
