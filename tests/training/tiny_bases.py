"""Tiny random models of other families than the embedded one, written as a hub would hold them."""

from __future__ import annotations

import json
from pathlib import Path

from citrate_node.training.base_model import BaseModel
from citrate_node.training.byte_tokenizer import tokenizer_description

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


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
