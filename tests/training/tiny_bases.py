"""Tiny random models of other families than the embedded one, written as a hub would hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from citrate_node.training.base_model import BaseModel
from citrate_node.training.byte_tokenizer import tokenizer_description

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


_LLAMA_SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}


def gpt2(folder: Path) -> BaseModel:
    """Linear layers are Conv1D with queries, keys and values fused."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=260, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    return _save(GPT2LMHeadModel(config), folder)


def llama(folder: Path) -> BaseModel:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    return _save(LlamaForCausalLM(config), folder)


def mistral(folder: Path) -> BaseModel:
    """Two query heads share one head of keys; no token attends further back than the window."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(num_key_value_heads=1, sliding_window=8, **_LLAMA_SHAPE)
    return _save(MistralForCausalLM(config), folder)


def qwen2(folder: Path) -> BaseModel:
    """Projections of queries, keys and values have biases."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(num_key_value_heads=1, tie_word_embeddings=True, **_LLAMA_SHAPE)
    return _save(Qwen2ForCausalLM(config), folder)


def opt(folder: Path) -> BaseModel:
    """Learnt positions, and layers around the decoder where its width is not the embedding's."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=260,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=256,
    )
    return _save(OPTForCausalLM(config), folder)


def gpt_neox(folder: Path) -> BaseModel:
    """Fused projections in an ordinary linear layer, rotary positions on a part of each head."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
    )
    return _save(GPTNeoXForCausalLM(config), folder)


def bert(folder: Path, with_head: bool = True) -> BaseModel:
    from transformers import BertConfig, BertForMaskedLM, BertModel

    config = BertConfig(
        vocab_size=260,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=256,
    )
    return _save(BertForMaskedLM(config) if with_head else BertModel(config), folder)


def _save(model: object, folder: Path) -> BaseModel:
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    description = tokenizer_description()
    description["added_tokens"] = [
        {
            "id": 256 + place,
            "content": content,
            "special": True,
            "normalized": False,
            "lstrip": False,
            "rstrip": False,
            "single_word": False,
        }
        for place, content in enumerate(SPECIAL)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(description))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return BaseModel.load(str(folder))
