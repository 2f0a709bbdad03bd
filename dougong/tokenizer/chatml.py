"""The chat template that our own tokenizers carry: ChatML with tools, thinking and `{% generation %}` spans."""

_SYSTEM = """\
{%- if tools or (messages and messages[0].role == 'system') %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages and messages[0].role == 'system' %}
        {{- messages[0].content }}
    {%- endif %}
    {%- if tools %}
        {%- if messages and messages[0].role == 'system' %}
"""

_MESSAGES = """\
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- if not loop.first %}
            {{- '<|im_start|>system\\n' + message.content + '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
            {%- if message.reasoning_content %}
                {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
            {%- endif %}
            {{- message.content or '' }}
            {%- for call in message.tool_calls or [] %}
                {%- set function = call.function or call %}
                {%- if message.content or not loop.first %}
                    {{- '\\n' }}
                {%- endif %}
                {{- '<tool_call>{"name": ' + (function.name | tojson) + ', "arguments": ' }}
                {{- function.arguments if function.arguments is string else (function.arguments | tojson) }}
                {{- '}</tool_call>' }}
            {%- endfor %}
            {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- elif message.role in ('user', 'tool') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- else %}
        {{- raise_exception('unknown role ' + message.role + '; use system, user, assistant or tool') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

_TOOLS = """\
        {{- 'You can call these tools:\\n' }}
        {%- for tool in tools %}
            {{- '<tool>' + (tool | tojson) + '</tool>\\n' }}
        {%- endfor %}
        {{- 'To call one, write <tool_call>{"name": ..., "arguments": {...}}</tool_call>' }}
"""


def chatml(tools: str, apart: str) -> str:
    """The template whose system message offers tools by the template `tools`, `apart` from what else it says."""
    return f"{_SYSTEM}            {{{{- '{apart}' }}}}\n        {{%- endif %}}\n{tools}{_MESSAGES}"


CHATML_TEMPLATE = chatml(_TOOLS, apart="\\n\\n")
