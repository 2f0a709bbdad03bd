"""A brief chat template for small models: ChatML in which a tool on offer is its name and the names of its arguments.

A model of a few million parameters reads a few hundred tokens. The whole JSON schema of a single tool takes a hundred
of them and tells it nothing that it could use; `calculator(expression)` takes eight.
"""

from dougong.tokenizer.chatml import chatml

_TOOLS = """\
        {{- 'Tools: ' }}
        {%- for tool in tools %}
            {%- set function = tool.function or tool %}
            {{- function.name + '(' + ((function.parameters.properties or {}) | join(', ')) + ')' }}
            {%- if not loop.last %}
                {{- ', ' }}
            {%- endif %}
        {%- endfor %}
"""

BRIEF_TEMPLATE = chatml(_TOOLS, apart="\\n")
