"""Chat templates that behave as the published ones of their families, in short.

Each with the control tokens of its tokenizer, its begin token (or none) and its end token.
"""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
    template: str
    control: tuple[str, ...]
    eos: str
    bos: str | None = None
    stripping: tuple[str, ...] = ()
    """Control tokens that take away the white space behind them."""
    plain: tuple[str, ...] = ()
    """Added tokens that are read as a whole, but are not special."""


_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHATML = Family(
    "{%- for m in messages -%}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    _CHATML_TOKENS,
    "<|im_end|>",
)

# The marks as training libraries write them: the answer and its end of turn.
CHATML_MARKED = CHATML._replace(
    template="{%- for m in messages -%}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# As in SmolLM3: opening and line break are inside the marks.
CHATML_MARKED_WIDELY = CHATML._replace(
    template="{%- for m in messages -%}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ '<|im_start|>assistant\n' + m['content'] + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA3 = Family(
    "{{- bos_token }}{% for m in messages %}"
    "{% if tools and loop.first %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nFunctions:' }}"
    "{% for t in tools %}{{ '\n' + (t | tojson) }}{% endfor %}{{ '<|eot_id|>' }}{% endif %}"
    "{% if m.tool_calls is defined %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    '{{ \'{"name": "\' + m.tool_calls[0].function.name + \'", "parameters": \' }}'
    "{{ m.tool_calls[0].function.arguments | tojson }}{{ '}<|eot_id|>' }}"
    "{% elif m.role == 'tool' %}{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}"
    "{{ m.content | tojson }}{{ '<|eot_id|>' }}"
    "{% else %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim }}{{ '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|python_tag|>",
    ),
    "<|eot_id|>",
    bos="<|begin_of_text|>",
)

_QWEN_HEAD = (
    "{%- if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "Tools:{% for t in tools %}{{ '\n' + (t | tojson) }}{% endfor %}<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n"
    "{{ messages[0].content }}<|im_end|>\n{% endif %}"
)
_QWEN_TOOL = (
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}"
    "{% endif %}{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
)
_QWEN_CALLS = (
    '{% for c in m.tool_calls %}{{ \'\n<tool_call>\n{"name": "\' + c.function.name }}'
    "{{ '\", \"arguments\": ' }}{{ c.function.arguments | tojson }}{{ '}\n</tool_call>' }}"
    "{% endfor %}"
)
_QWEN_END = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

QWEN25 = Family(
    _QWEN_HEAD + "{% for m in messages %}"
    "{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant' }}"
    "{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    + _QWEN_CALLS
    + "{{ '<|im_end|>\n' }}{% elif m.role == 'tool' %}"
    + _QWEN_TOOL
    + "{% endif %}{% endfor %}"
    + _QWEN_END,
    _CHATML_TOKENS,
    "<|im_end|>",
    plain=("<tool_call>", "</tool_call>"),
)

# Drops the thoughts of answers before the last question.
QWEN3 = Family(
    _QWEN_HEAD + "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}"
    "{% set text = m.content if m.content is string else '' %}{% set thought = '' %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}"
    "{{ text.lstrip('\n') }}"
    "{% else %}{{ '<|im_start|>assistant\n' + text }}{% endif %}"
    + _QWEN_CALLS
    + "{{ '<|im_end|>\n' }}{% elif m.role == 'tool' %}"
    + _QWEN_TOOL
    + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
    _CHATML_TOKENS,
    "<|im_end|>",
    plain=("<tool_call>", "</tool_call>", "<think>", "</think>"),
)

MISTRAL = Family(
    "{{- bos_token }}{% set ns = namespace(last=0) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and loop.index0 == ns.last %}"
    "{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.tool_calls is defined %}{{ '[TOOL_CALLS] [' }}{% for c in m.tool_calls %}"
    "{{ c.function | tojson }}{% endfor %}{{ ']' + eos_token }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}"
    "{% else %}{{ raise_exception('only user, assistant and tool roles') }}{% endif %}"
    "{% endfor %}",
    (
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ),
    "</s>",
    bos="<s>",
)

GEMMA = Family(
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    "<eos>",
    bos="<bos>",
)

# Knows no other roles, closes with its end token, and strips white space behind control tokens.
PHI3 = Family(
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}"
    "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "<|endoftext|>",
    stripping=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
)

PHI4 = Family(
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
    ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    "<|im_end|>",
)

# Wants null content beside calls, arguments as text, and has control tokens within calls.
DEEPSEEK = Family(
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% elif m.role == 'assistant' and m.content is none %}"
    "{{ '<|Assistant|><|call_begin|>' + m.tool_calls[0].function.name + '\n' }}"
    "{{ m.tool_calls[0].function.arguments + '<|call_end|><|end_of_sentence|>' }}"
    "{% elif m.role == 'assistant' %}{{ '<|Assistant|>' + m.content + '<|end_of_sentence|>' }}"
    "{% elif m.role == 'tool' %}{{ '<|output_begin|>' + m.content + '<|output_end|>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}",
    (
        "<|begin_of_sentence|>",
        "<|end_of_sentence|>",
        "<|User|>",
        "<|Assistant|>",
        "<|call_begin|>",
        "<|call_end|>",
        "<|output_begin|>",
        "<|output_end|>",
    ),
    "<|end_of_sentence|>",
    bos="<|begin_of_sentence|>",
)

# No control tokens around turns at all, as in Llama 2; begin and end tokens around an exchange.
LLAMA2 = Family(
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    ("<s>", "</s>"),
    "</s>",
    bos="<s>",
)

FAMILIES = {
    "ChatML": CHATML,
    "ChatML, marked": CHATML_MARKED,
    "ChatML, marked widely": CHATML_MARKED_WIDELY,
    "Llama 3": LLAMA3,
    "Qwen 2.5": QWEN25,
    "Qwen 3": QWEN3,
    "Mistral": MISTRAL,
    "Gemma": GEMMA,
    "Phi 3": PHI3,
    "Phi 4": PHI4,
    "DeepSeek": DEEPSEEK,
    "Llama 2": LLAMA2,
}
