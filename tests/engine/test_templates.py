"""Chat templates render as transformers renders them: templates in the style of published models, and each feature."""

from __future__ import annotations

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from loradesk_engine.commands import Message
from loradesk_engine.errors import TemplateError
from loradesk_engine.formats.template import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
CHATS = {
    "one question": (Message("user", "Hi <there> & 'you'"),),
    "with a system message": (Message("system", " Be brief.\n"), Message("user", "Naïve “quotes” 🦊?")),
    "several turns": (
        Message("system", "Be brief."),
        Message("user", "  2 + 2? "),
        Message("assistant", "<think>\nadd\n</think>\n\n4"),
        Message("user", "Sure?\n"),
        Message("assistant", "<think>\nyes\n</think>\n\nYes. "),
        Message("user", "Thanks"),
    ),
}
PUBLISHED = {
    "ChatML": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
        "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "Zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
        "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
        "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "Llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
        "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}"
        "{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
        "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + "
        "content | trim + ' [/INST]' }}{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "Llama 3.1": """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim +
            '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("no tools here") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "Mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate user/assistant") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {{- '"' + key + '": ' + val|tojson }}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
""",
    "Gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
        "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    ),
    "Gemma 3": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
""",
    "Qwen 2.5": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or
           (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- for tool_call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- (tool_call.arguments | tojson) + '}' }}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "Qwen 3": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and
           not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' +
                content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    "Phi-3": (
        "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\n' + "
        "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + "
        "'<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}"
        "{% endif %}"
    ),
    "Phi-4-mini": (
        "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and "
        "message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + "
        "message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] "
        "+ '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}"
        "{{ eos_token }}{% endif %}"
    ),
    "SmolLM 2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + "
        "'\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "SmolLM 3": """{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{%- set reasoning_mode = "/think" if enable_thinking else "/no_think" -%}
{{- "<|im_start|>system\\n" -}}
{%- if messages[0].role == "system" -%}
    {%- set system_message = messages[0].content -%}
    {%- if "/system_override" in system_message -%}{{- system_message.replace("/system_override", "").rstrip() -}}
    {%- else -%}
        {{- "## Metadata\\n\\nReasoning Mode: " + reasoning_mode + "\\n\\n" + system_message.rstrip() + "\\n" -}}
    {%- endif -%}
{%- endif -%}
{%- if xml_tools or python_tools or tools -%}{{- "### Tools\\n\\n" -}}{%- endif -%}
{{- "<|im_end|>\\n" -}}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "user" -%}
        {{ "<|im_start|>" + message.role + "\\n"  + content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" -%}
        {% generation %}
        {{ "<|im_start|>assistant\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}
        {% endgeneration %}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|im_start|>assistant\\n" }}{%- endif -%}
""",
    "retrieval with documents": (
        "{% if documents %}{% for document in documents %}{{ document.title }}{% endfor %}{% endif %}"
        "{{ documents is none }}{{ tools is none }}{{ messages | tojson }}"
    ),
}  # fmt: skip
FEATURES = [
    "{{ tools is none }}{{ tools is defined }}{{ documents is none }}{{ enable_thinking is defined }}",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}a{{ x }}{% endgeneration %}{{ x }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{{ messages | tojson }}",
    "{{ messages | tojson(indent=4) }}",
    "{{ messages | tojson(indent=12) }}",
    "{{ messages | tojson(indent='\t') }}",
    "{{ messages | tojson(separators=(',', ':')) }}",
    "{{ messages | tojson(ensure_ascii=true) }}",
    "{{ {'b': 1, 'a': [none, true, 1.5, 'é']} | tojson(sort_keys=true) }}",
    "{{ {'b': 1, 'a': {}} | tojson(sort_keys=true, indent=2, separators=(', ', ' = ')) }}",
    "{{ messages | tojson(html=true) }}",
    "{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb\n\nc' | indent(2, true) }}|{{ 'a\nb\n\nc' | indent('> ', blank=true) }}",
    "{{ 7 | indent }}",
    "{{ [1, 2, 3] | sum }}{{ [1.5] | sum(start=2) }}{{ messages | map(attribute='content') | map('length') | sum }}",
    "{{ [{'n': 1}, {'n': 5}] | sum(attribute='n') }}{{ [[1], [2]] | sum(start=[]) }}{{ ['a'] | sum }}",
    "{{ '%s is %d, %05.2f%%' | format('x', 7, 1.5) }}{{ '%(a)s' | format(a=1) }}",
    "{{ '%s' % 'x' }}{{ '%s-%r' % ('x', ['y']) }}{{ '%(a)-5s|' % {'a': 'b'} }}{{ '%*d' % (5, 3) }}{{ '%c' % 65 }}",
    "{{ 7 % 4 }}",
    "{{ '%s' % () }}",
    "{{ '%d' % 'x' }}",
    "{{ '%y' % 1 }}",
    "{{ '{0} {b} {0!r:>8} {1[0]}'.format('x', ['y'], b=2) }}{{ '{a}'.format_map({'a': 1}) }}",
    "{{ '{}-{}'.format(1, 2) }}{{ '{:>{}}'.format('x', 4) }}",
    "{{ '{0.__class__}'.format('x') }}",
    "{% set j = joiner(', ') %}{% for m in messages %}{{ j() }}{{ m.role }}{% endfor %}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}",
    "{% macro f(x='a') %}{{ x }}{{ caller() }}{% endmacro %}{% call f() %}z{% endcall %}",
    "{% set x %}a{{ 1 }}{% endset %}{{ x | upper }}",
    "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ cls_token }}",
    "{{ 1 < 2 < 3 }}{{ 3 > 2 > 2 }}{{ 2 > 3 > nothing.x }}{{ messages[0] == messages[0] != messages[1] }}",
    "{{ 'a' in 'abc' }}{{ 4 not in [1, 2] }}{{ [1] in [[1]] }}{{ 'role' in messages[0] }}{{ 1 is in (1, 2) }}",
    "{% set a, b = 1, 2 %}{% set a, b = b, a %}{{ a }}{{ b }}",
    "{% for x, (y, z) in [(1, (2, 3))] %}{{ x + y + z }}{% endfor %}",
    "{{ [1, 2, 3][::-1] }}{{ 'abcdef'[1:-1:2] }}{{ messages[1:] | length }}{{ (1, 2)[:1] }}{{ [[1], [2]][1:][0] }}",
    "{{ nothing[1:] }}",
    "{% set d = {} %}{{ d[1:] }}",
    "{{ {(1, 2): 3}[1, 2] }}{{ {'a': 1, 'b': 2, 'a': 3} }}{{ {1: {2: [3, (4,)]}} }}{{ () }}{{ [] }}{{ {} }}",
    "{{ {[]: 1} }}",
    "{{ dict() }}{{ dict({'a': 1}, b=2) }}{{ dict([('a', 1)], a=2) }}{{ dict(['ab']) }}",
    "{{ dict(nothing) }}",
    "{{ dict(1) }}",
    "{% set n = namespace({'a': 1}, b=[2]) %}{% set n.c = n.a + 1 %}{{ n.a }}{{ n.b }}{{ n.c }}{{ n }}",
    "{% set n = namespace(a=1) %}{{ [n] | string }}",
    "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}"
    "{{ f(*[1, 2, 3], **{'c': 4}) }}{{ f(*'ab') }}{{ f(1, *range(2) | map('string')) }}",
    "{{ [3, 1, 2] | sort }}{{ 'cab' | sort | join }}{{ [1, 2, 1] | unique | list }}",
    "{{ [3, 1] | min }}{{ 'xyz' | list }}",
    "{{ messages | groupby('role') | map(attribute='grouper') | join(',') }}{{ {'b': 1, 'a': 2} | dictsort }}",
    "{{ messages | join('|', attribute='role') }}{{ messages | map('length') | join(d='-') }}{{ [1, none] | join(0) }}",
    "{{ '-'.join(['a', 'b']) }}{{ '-'.join('ab') }}{{ 'a b'.split() }}{{ 'a,b,c'.rsplit(',', 1) }}",
    "{{ 'xax'.strip('x') }}",
    "{{ 'xax' | trim('x') }}{{ ' a ' | trim }}{{ 5 | trim }}{{ 'a-b c' | title }}{{ 'a b' | wordcount }}",
    "{{ [1] | upper }}",
    "{{ 'a b/ü' | urlencode }}{{ {'a': 'b c'} | urlencode }}{{ [('a', 1)] | urlencode }}{{ 5 | urlencode }}",
    "{{ 7 // 2 }}{{ 7 / 2 }}{{ 7 - 9 }}{{ -7 }}{{ +7 }}{{ - - 7 }}{{ 1.5 | round }}{{ 42.55 | round(1, 'floor') }}",
    "{{ 'x' | round }}",
    "{{ '<' | e }}{{ ('<' | safe) ~ '<' }}{{ ('<' | safe) + '<' }}",
    "{{ ['<' | safe, '<'] | join }}{{ '\"' | forceescape }}",
    "{% autoescape true %}{{ '<' }}{{ '<' | safe }}{{ [1, '<'] }}{% endautoescape %}{{ '<' }}",
    "{% print 1, 2 %}{{ 1, 'a' }}{{ none }}{{ true }}{{ 1.0 }}{{ nothing }}{{ {'a': nothing}.values() | list }}",
    "{{ 'ab' is lower }}{{ [1] is upper }}{{ 6 is divisibleby 3 }}{{ 'tojson' is filter }}{{ [] is iterable }}",
    "{{ [1][3].x }}",
    "{{ {}.keys() | list }}{{ {'a': 1}.items() | list }}{% for k, v in {'a': 1} | items %}{{ k }}{{ v }}{% endfor %}",
]


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerFast:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def assert_same(reference: PreTrainedTokenizerFast, source: str, chat: tuple[Message, ...], *, prompt: bool) -> None:
    """Compare the text, or that both refuse."""
    messages = [{"role": message.role, "content": message.content} for message in chat]
    try:
        expected: str | None = reference.apply_chat_template(
            messages, chat_template=source, tokenize=False, add_generation_prompt=prompt
        )
    except Exception:  # noqa: BLE001 - whatever transformers or Jinja raise
        expected = None
    try:
        found: str | None = ChatTemplate(source, file="t", special_tokens=SPECIAL).render(
            chat, add_generation_prompt=prompt
        )
    except TemplateError:
        found = None
    assert found == expected


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_template_renders_as_in_transformers(
    reference: PreTrainedTokenizerFast, name: str, chat: str
) -> None:
    for prompt in (True, False):
        assert_same(reference, PUBLISHED[name], CHATS[chat], prompt=prompt)


@pytest.mark.parametrize("source", FEATURES)
def test_a_feature_renders_as_in_transformers(reference: PreTrainedTokenizerFast, source: str) -> None:
    assert_same(reference, source, CHATS["several turns"], prompt=True)
