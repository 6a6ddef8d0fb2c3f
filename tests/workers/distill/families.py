"""Chat templates in the style of six common families, written here, with tokenizers to match.

Each keeps what makes its family hard: who may speak, where the system message goes, how tools and
thoughts are written, and what is written differently once a conversation goes on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from workers.distill.tokenizers import load_tokenizer

QWEN = """\
{%- if messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content }}
{%- if tools %}{{- '\\n\\n# Tools\\n' + tools | tojson }}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- elif tools %}
{{- '<|im_start|>system\\n# Tools\\n' + tools | tojson + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(question=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.question = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
GENERATION
{%- if m.reasoning_content and loop.index0 > ns.question %}
{{- '<think>\\n' + m.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
{%- endif %}
{{- m.content }}
{%- for call in m.tool_calls or [] %}
{{- ('\\n' if m.content or not loop.first else '') + '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' }}
END
{{- '\\n' }}
{%- elif m.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
LLAMA = """\
{{- bos_token }}
{%- set day = strftime_now('%d %b %Y') %}
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set rest = messages[1:] %}
{%- else %}{%- set system = '' %}{%- set rest = messages %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + day + '\\n' + system | trim }}
{%- if tools %}{{- '\\nFunctions: ' + tools | tojson }}{%- endif %}
{{- '<|eot_id|>' }}
{%- for m in rest %}
{%- set role = 'ipython' if m.role == 'tool' else m.role %}
{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
{%- if m.role == 'assistant' %}
GENERATION
{%- if m.tool_calls %}
{%- if m.tool_calls | length > 1 %}{{- raise_exception('one tool call at a time') }}{%- endif %}
{%- set call = m.tool_calls[0].function %}
{{- m.content + '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}
{%- else %}{{- m.content | trim }}{%- endif %}
{{- '<|eot_id|>' }}
END
{%- else %}
{{- m.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
MISTRAL = """\
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set rest = messages[1:] %}
{%- else %}{%- set system = '' %}{%- set rest = messages %}{%- endif %}
{%- set ns = namespace(user=-1) %}
{%- for m in rest %}
{%- if m.role == 'system' %}{{- raise_exception('a system message may only come first') }}{%- endif %}
{%- if m.role == 'user' %}{%- set ns.user = loop.index0 %}{%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in rest %}
{%- if m.role == 'user' %}
{%- if tools and loop.index0 == ns.user %}{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{{- '[INST] ' + (system + '\\n\\n' if system and loop.index0 == ns.user else '') + m.content + '[/INST]' }}
{%- elif m.role == 'tool' %}
{{- '[TOOL_RESULTS] {"content": ' + m.content | tojson + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- elif m.role == 'assistant' %}
GENERATION
{%- if m.tool_calls %}
{{- '[TOOL_CALLS] [' }}
{%- for call in m.tool_calls %}
{{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + ', "id": "' + call.id + '"}' + (', ' if not loop.last else '') }}
{%- endfor %}
{{- ']' + eos_token }}
{%- else %}{{- ' ' + m.content | trim + eos_token }}{%- endif %}
END
{%- endif %}
{%- endfor %}
"""
GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{%- set first = messages[0].content + '\\n\\n' %}{%- set rest = messages[1:] %}
{%- else %}{%- set first = '' %}{%- set rest = messages %}{%- endif %}
{%- for m in rest %}
{%- if m.role not in ('user', 'assistant') %}{{- raise_exception('only user and assistant may speak, not ' + m.role) }}{%- endif %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('user and assistant must take turns') }}{%- endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n' + (first if loop.first else '') }}
{%- if m.role == 'assistant' %}
GENERATION
{{- m.content | trim + '<end_of_turn>' }}
END
{{- '\\n' }}
{%- else %}{{- m.content | trim + '<end_of_turn>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""
PHI = """\
{%- for m in messages %}
{%- if m.role == 'system' and tools %}
{{- '<|system|>' + m.content + '<|tool|>' + tools | tojson + '<|/tool|><|end|>' }}
{%- elif m.role == 'assistant' %}
{{- '<|assistant|>' }}
GENERATION
{{- m.content }}
{%- if m.tool_calls %}
{{- '<|tool_call|>[' }}
{%- for call in m.tool_calls %}{{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}' + (', ' if not loop.last else '') }}{%- endfor %}
{{- ']<|/tool_call|>' }}
{%- endif %}
{{- '<|end|>' }}
END
{%- else %}
{{- '<|' + ('tool_response' if m.role == 'tool' else m.role) + '|>' + m.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- else %}{{- eos_token }}{%- endif %}
"""
CHATML = """\
{%- for m in messages %}
{%- if loop.first and m.role != 'system' %}
{{- '<|im_start|>system\\nBe brief and kind.<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}
GENERATION
{{- m.content + '<|im_end|>' }}
END
{{- '\\n' }}
{%- else %}
{{- m.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@dataclass(frozen=True, slots=True)
class Family:
    """A template, its special tokens (BOS, EOS first), and what ends an assistant's turn."""

    template: str
    special: tuple[str, ...]
    end: str
    lead: str = ""
    """What the template writes between the prompt and an answer; generation writes it too."""
    tools: bool = True
    plain: tuple[str, ...] = ()
    """Tokens of the vocabulary that are no special ones: decoding shows them."""

    def source(self, *, marked: bool) -> str:
        marks = ("{%- generation %}", "{%- endgeneration %}") if marked else ("", "")
        text = self.template
        for word, mark in zip(("GENERATION\n", "END\n"), marks, strict=True):
            text = text.replace(word, mark + "\n" if mark else "")
        return text


IM = ("<|endoftext|>", "<|im_end|>", "<|im_start|>")
FAMILIES = {
    "qwen": Family(QWEN, IM, "<|im_end|>", plain=("<think>", "</think>")),
    "llama": Family(
        LLAMA,
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        "<|eot_id|>",
    ),
    "mistral": Family(
        MISTRAL,
        (
            "<s>",
            "</s>",
            "[INST]",
            "[/INST]",
            "[TOOL_CALLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
        ),
        "</s>",
        lead=" ",
    ),
    "gemma": Family(
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        tools=False,
    ),
    "phi": Family(
        PHI,
        (
            "<s>",
            "<|endoftext|>",
            "<|end|>",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|tool|>",
            "<|/tool|>",
            "<|tool_call|>",
            "<|/tool_call|>",
            "<|tool_response|>",
        ),
        "<|end|>",
    ),
    "chatml": Family(CHATML, IM, "<|im_end|>", tools=False),
}
_WORDS = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Line breaks are one word, whatever follows, as newer tokenizers cut them."""
_CORPUS = [
    "system user assistant model tool ipython\n\n",
    "Hello there, how may I help you today? One pizza, please. Yes, a big one.",
    '{"name": "find_hotel", "arguments": {"city": "Bern"}, "parameters": "call_id"}',
]


def write_tokenizer(family: Family, folder: Path, *, marked: bool) -> Any:
    """Train a byte-level BPE, save it with the template as its own file, and load it as we do."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(family.special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    bpe.add_tokens(list(family.plain))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=family.special[0],
        eos_token=family.special[1],
        additional_special_tokens=list(family.special[2:]),
    )
    fast.save_pretrained(folder)
    template = family.source(marked=marked)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return load_tokenizer(folder)
