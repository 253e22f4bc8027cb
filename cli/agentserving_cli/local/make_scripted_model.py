"""Creates a small Llama that plays an agent's part: real inference in vLLM, scripted answers, no download.

Usage: python make_scripted_model.py OUT_DIR   (needs torch, transformers, tokenizers, safetensors: vLLM's environment)

Its weights are a bigram chain: attention and MLP add nothing, each token of a chain has an embedding dimension of its
own, and the head maps that dimension to the chain's next token. The chat template looks at the conversation and ends
the generation prompt with the first token of a chain:

- The last user message contains USE_<word>: the tool calls of that word in SCRIPTS, or its text in TEXTS.
- Otherwise, and a known tool is offered: one harmless call of the first such tool.
- A tool that ends the agent (`final_answer`) is offered, and the conversation has an answer already: a call of it.
- After a tool's result, and where no known tool is offered: TEXT.

So any coding agent runs a whole loop of tool call, result and answer. Tokens are of ordinary length (a vocabulary
trained on Python's standard library), so prompts of agents fit into a context of 128k.
"""

from __future__ import annotations

import json
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

Call = tuple[str, dict[str, Any]]

HELLO = "echo hello from agentserving"
SLOW_HELLO = f"sleep 1; {HELLO}"
CLAUDE_AGENT = {"description": "say hello", "subagent_type": "general-purpose"}

# The first of these that a request offers is called when its user asks for nothing else: shells of Claude Code,
# OpenCode, Codex, Qwen Code, Cline, and the tool of every framework's tutorial.
DEFAULTS: dict[str, dict[str, Any]] = {
    "Bash": {"command": HELLO, "description": "Say hello"},
    "bash": {"command": HELLO, "description": "Say hello"},
    "exec_command": {"cmd": HELLO},
    "shell_command": {"command": HELLO},
    "shell": {"command": ["bash", "-lc", HELLO]},
    "run_shell_command": {"command": HELLO, "is_background": False},
    "run_commands": {"commands": [HELLO]},
    "execute_command": {"command": HELLO, "requires_approval": False},
    "get_weather": {"city": "Paris"},
}
# Creates a file where the agent works, which shows that a call was carried out: USE_FILE_<tool>.
FILE = "touch called"
FILES: dict[str, dict[str, Any]] = {
    "Bash": {"command": FILE, "description": "Create a file"},
    "bash": {"command": FILE, "description": "Create a file"},
    "exec_command": {"cmd": FILE},
    "run_shell_command": {"command": FILE, "is_background": False},
}
# USE_<word> in the last user message: calls that a test or a demonstration asks for.
SCRIPTS: dict[str, list[Call]] = {
    "BASH": [("Bash", {"command": SLOW_HELLO, "description": "Say hello"})],
    "AGENT": [("Agent", {**CLAUDE_AGENT, "prompt": "USE_BASH please"})],
    "TASK": [("Task", {**CLAUDE_AGENT, "prompt": "USE_BASH please"})],
    "TWO_AGENTS": [
        ("Agent", {**CLAUDE_AGENT, "prompt": "USE_BASH on the left"}),
        ("Agent", {**CLAUDE_AGENT, "prompt": "USE_BASH on the right"}),
    ],
    "QWEN_AGENT": [("agent", {**CLAUDE_AGENT, "prompt": "say hello"})],
    "OPENCODE_TASK": [("task", {"description": "say hello", "prompt": "hello", "subagent_type": "general"})],
    "WEATHER": [("get_weather", {"city": "Paris"})],
    "TWO_CITIES": [("get_weather", {"city": "Rome"}), ("get_weather", {"city": "Oslo"})],
    "RESEARCH": [("transfer_to_research", {})],
    "FINAL_ANSWER": [("final_answer", {"answer": "forty two"})],
    **{f"FILE_{tool}": [(tool, arguments)] for tool, arguments in FILES.items()},
}
# USE_<word> of agents that call no tools: aider writes a file's whole text.
TEXTS = {"EDIT": "hello.txt\n```\nhello from agentserving\n```\n"}
# Each word once: a bigram chain cannot say a word twice.
TEXT = "Done. This is a scripted model, served by vLLM and scheduled as part of your program."

EOS, SAY = "<|im_end|>", "<|say|>"
HIDDEN, INTERMEDIATE, HEADS, HEAD_DIM = 256, 256, 4, 64
MAX_CONTEXT = 131_072
VOCABULARY = 6_000
# The chain's next token beats every other at any temperature: hidden states have a norm of sqrt(HIDDEN) after RMSNorm.
CHAIN_WEIGHT, NOISE = 20.0, 0.05

TEMPLATE = """{%- set ns = namespace(user='', last='', tool='', answered=false) %}
{%- if tools %}<|im_start|>tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m['role'] }}
{% set ns.text = '' %}
{%- if m['content'] is string %}{% set ns.text = m['content'] %}
{%- else %}{% for part in m['content'] or [] %}{% set ns.text = ns.text ~ (part['text'] or '') %}{% endfor %}{% endif %}
{{- ns.text }}
{%- for call in m['tool_calls'] or [] %}<tool_call>
{{ call['function']['name'] }} {{ call['function']['arguments'] | tojson }}</tool_call>{% endfor %}<|im_end|>
{% if m['role'] not in ('system', 'developer') %}{% set ns.last = m['role'] %}{% endif %}
{%- if m['role'] == 'user' %}{% set ns.user = ns.text %}{% endif %}
{%- if m['role'] == 'assistant' %}{% set ns.answered = true %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if ns.last == 'user' and tools %}
{%- for known in KNOWN_TOOLS %}{% for tool in tools %}
{%- if not ns.tool and (tool['function'] or tool)['name'] == known %}
{%- set ns.tool = '<|tool:' ~ known ~ '|>' %}{% endif %}
{%- if ns.answered and (tool['function'] or tool)['name'] == 'final_answer' %}
{%- set ns.tool = '<|use:FINAL_ANSWER|>' %}{% endif %}
{%- endfor %}{% endfor %}
{%- for word in KNOWN_WORDS %}{% if 'USE_' ~ word in ns.user %}{% set ns.tool = '<|use:' ~ word ~ '|>' %}{% endif %}
{%- endfor %}{% endif %}
{%- for word in KNOWN_TEXTS %}{% if 'USE_' ~ word in ns.user %}{% set ns.tool = '<|use:' ~ word ~ '|>' %}{% endif %}
{%- endfor %}
{{- ns.tool or 'SAY_TOKEN' }}{% endif %}"""


@dataclass(frozen=True, slots=True)
class Chain:
    """Tokens that follow each other; the first is the trigger that the template writes, EOS follows the last."""

    tokens: tuple[str, ...]


def chat_template() -> str:
    """The template above with the known tools and words; longer words last, so that they win over their prefixes."""
    words = sorted(SCRIPTS, key=len)
    return (
        TEMPLATE.replace("KNOWN_TOOLS", json.dumps(list(DEFAULTS)))
        .replace("KNOWN_WORDS", json.dumps(words))
        .replace("KNOWN_TEXTS", json.dumps(list(TEXTS)))
        .replace("SAY_TOKEN", SAY)
    )


def chains() -> list[Chain]:
    """One for each default, each word, and the text. All tokens differ: a token has one successor."""
    triggers = [(f"<|tool:{name}|>", [(name, arguments)]) for name, arguments in DEFAULTS.items()]
    triggers += [(f"<|use:{word}|>", calls) for word, calls in SCRIPTS.items()]
    found, used = [], set()
    for trigger, calls in triggers:
        tokens = [trigger]
        for name, arguments in calls:
            body, space = json.dumps({"name": name, "arguments": arguments}), ""
            # The same call in another chain needs another spelling.
            while (token := f"<tool_call>\n{body}{space}\n</tool_call>") in used:
                space += " "
            used.add(token)
            tokens.append(token)
        found.append(Chain(tuple(tokens)))
    found += [Chain((f"<|use:{word}|>", text)) for word, text in TEXTS.items()]
    words = TEXT.split(" ")
    assert len(set(words)) == len(words), "TEXT repeats a word"
    found.append(Chain((SAY, words[0], *(f" {word}" for word in words[1:]))))
    return found


def tokenizer_of(found: list[Chain]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of VOCABULARY tokens, trained on the standard library, and the tokens of the chains."""
    library = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-e]*.py"))[:60]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", EOS, "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((path.read_text(errors="ignore") for path in library), trainer)
    # The parser of tool calls looks both tags up in the vocabulary.
    added = ["<tool_call>", "</tool_call>", *(token for chain in found for token in chain.tokens)]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in added])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token=EOS, clean_up_tokenization_spaces=False
    )
    fast.chat_template = chat_template()
    return fast


def weights_of(found: list[Chain], fast: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """Embedding and head with the chains; everything between them is zero, so that the residual passes unchanged."""
    vocabulary, eos = len(fast), fast.convert_tokens_to_ids(EOS)
    tokens = [token for chain in found for token in chain.tokens]
    ids = {token: fast.convert_tokens_to_ids(token) for token in tokens}
    assert len(set(ids.values())) == len(tokens) < HIDDEN - 32, "chains need a dimension for each token"
    generator = torch.Generator().manual_seed(1)
    embedding = torch.zeros(vocabulary, HIDDEN)
    embedding[:, len(tokens) :] = torch.randn(vocabulary, HIDDEN - len(tokens), generator=generator)
    head = torch.randn(vocabulary, HIDDEN, generator=generator) * NOISE
    for dimension, token in enumerate(tokens):
        embedding[ids[token]] = 0
        embedding[ids[token], dimension] = 1
    for chain in found:
        for token, after in zip(chain.tokens, (*chain.tokens[1:], EOS), strict=True):
            head[ids.get(after, eos), tokens.index(token)] = CHAIN_WEIGHT
    layer, width = "model.layers.0.", HEADS * HEAD_DIM
    return {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": head,
        "model.norm.weight": torch.ones(HIDDEN),
        f"{layer}input_layernorm.weight": torch.ones(HIDDEN),
        f"{layer}post_attention_layernorm.weight": torch.ones(HIDDEN),
        f"{layer}self_attn.q_proj.weight": torch.zeros(width, HIDDEN),
        f"{layer}self_attn.k_proj.weight": torch.zeros(HEAD_DIM, HIDDEN),
        f"{layer}self_attn.v_proj.weight": torch.zeros(HEAD_DIM, HIDDEN),
        f"{layer}self_attn.o_proj.weight": torch.zeros(HIDDEN, width),
        f"{layer}mlp.gate_proj.weight": torch.zeros(INTERMEDIATE, HIDDEN),
        f"{layer}mlp.up_proj.weight": torch.zeros(INTERMEDIATE, HIDDEN),
        f"{layer}mlp.down_proj.weight": torch.zeros(HIDDEN, INTERMEDIATE),
    }


def make(out: Path) -> None:
    """Writes tokenizer, weights and, last, config.json into `out`."""
    found = chains()
    fast = tokenizer_of(found)
    out.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(out)
    save_file(weights_of(found, fast), out / "model.safetensors", metadata={"format": "pt"})
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        max_position_embeddings=MAX_CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.torch_dtype = "float32"
    config.save_pretrained(out)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
