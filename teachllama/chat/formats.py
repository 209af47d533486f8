"""The five usual chat formats, for model files without a template.

For the same messages, each produces the same text as the family's published template (see tests/golden/chat).
"""

from __future__ import annotations

# These families are trained only on alternating turns after at most one system message. Refuses anything else.
_TURNS = """{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}
{% set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}
{% for turn in turns %}
{% if turn['role'] != ['user', 'assistant'][loop.index0 % 2] %}
{{ raise_exception('after an optional system message, roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% endfor %}
{{- bos_token }}
"""

FORMATS: dict[str, str] = {
    # SmolLM2, Qwen, and many more
    "chatml": """{% for turn in messages %}
{{- '<|im_start|>' + turn['role'] + '\\n' + turn['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
""",
    # https://github.com/meta-llama/llama/blob/main/llama/generation.py
    "llama2": _TURNS
    + """{%- for turn in turns %}
{% if turn['role'] == 'user' %}
{% set start = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if loop.first and system else '' %}
{{- (bos_token if not loop.first else '') + '[INST] ' + (start + turn['content']).strip() + ' [/INST]' }}
{%- else %}
{{- ' ' + turn['content'].strip() + ' ' + eos_token }}
{%- endif %}
{% endfor %}
""",
    # https://github.com/meta-llama/llama3/blob/main/llama/tokenizer.py
    "llama3": """{{ bos_token }}
{%- for turn in messages %}
{{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' + turn['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
""",
    # https://ai.google.dev/gemma/docs/core/prompt-structure
    "gemma": _TURNS
    + """{%- for turn in turns %}
{{- '<start_of_turn>' + ('user' if turn['role'] == 'user' else 'model') + '\\n' }}
{{- system + '\\n\\n' if loop.first and system else '' }}
{{- turn['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
""",
    # https://docs.mistral.ai/guides/tokenization
    "mistral": _TURNS
    + """{%- for turn in turns %}
{% if turn['role'] == 'user' %}
{{- '[INST] ' + (system + '\\n\\n' if loop.first and system else '') + turn['content'] + ' [/INST]' }}
{%- else %}
{{- turn['content'] + eos_token }}
{%- endif %}
{% endfor %}
""",
}
