"""Chat templates built as those of pretrained models are: each uses Jinja in its own way."""

# ruff: noqa: E501  (a template on one line is read as one)

from __future__ import annotations

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

TOOL_USE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson(indent=2) }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}" + CHATML
)

HEADERS = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2026" %}
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
{{- "<|head|>system<|tail|>\\n\\nToday: " + date_string + "\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}{{- eos_token }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|head|>' + message['role'] + '<|tail|>\\n\\n'+ message['content'] | trim + eos_token }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One call at a time!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
    {%- else %}
        {{- message.content | tojson if message.content is mapping or message.content is iterable else message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|tail|>\\n\\n' }}
{%- endif %}
"""

TURNS = """{%- set loop_messages = messages %}
{%- if messages[0]["role"] == "system" %}{%- set loop_messages = messages[1:] %}{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {{- " [INST] " + message["content"] + " [/INST]" }}
    {%- else %}
        {{- " " + message["content"] + eos_token }}
    {%- endif %}
{%- endfor %}
"""

THINKING = """{%- macro shown(part) -%}
    {%- if part is string -%}{{ part }}
    {%- elif part is iterable -%}{%- for one in part -%}
        {%- if one.type == 'image' -%}<image>{%- else -%}{{ one.text }}{%- endif -%}
    {%- endfor -%}{%- endif -%}
{%- endmacro %}
{%- set ns = namespace(found=false, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if not ns.found and message.role == "user" %}
        {%- set ns.found = true %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = shown(message.content) %}
    {%- set reasoning = '' %}
    {%- if message.reasoning_content is string %}
        {%- set reasoning = message.reasoning_content %}
    {%- elif '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' }}
    {%- if reasoning and loop.index0 > ns.last %}{{- '<think>\\n' ~ reasoning.strip('\\n') ~ '\\n</think>\\n\\n' }}{%- endif %}
    {% generation %}{{- content }}{% endgeneration %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

DOCUMENTS = """{%- macro listed(properties, depth=0) %}
{%- for name, spec in properties.items()|list|sort %}
{{ "  " * depth }}{{ name }}: {{ spec.type|default("any")|upper }}{% if loop.last %}.{% else %},{% endif %}
{%- if spec.properties %}{{ listed(spec.properties, depth + 1) }}{% endif %}
{%- endfor %}
{%- endmacro %}
{%- macro wrapped(role) %}<{{ role|title }}>{{ caller() }}</{{ role|title }}>{% endmacro %}
{%- for tool in tools or [] %}
{{- "## " ~ tool.function.name ~ "%s %05d" % (" arguments", loop.index) }}
{{- listed(tool.function.parameters.properties) }}
{%- endfor %}
{%- for document in documents or [] %}
{{ "Document {:d}: {title}".format(loop.index0, title=document.title) }} {{ document.text | replace("\\n", " ") | indent(2) }}
{%- endfor %}
{%- for role in messages | map(attribute="role") | unique | sort %}{{ role }}{{ ", " if not loop.last }}{% endfor %}
{%- for message in messages | rejectattr("role", "equalto", "system") %}
    {%- set texts = message.content | selectattr("type", "equalto", "text") | map(attribute="text") | join("|") %}
    {%- call wrapped(message.role) %}{{ message.content if message.content is string else texts }}{% endcall %}
{%- endfor %}
"""
