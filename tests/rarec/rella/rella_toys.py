"""Tiny language models with random weights, and a tokenizer for them."""

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from rarec.rella.scratch import train_tokenizer

CPU = torch.device("cpu")


def configuration(kind: str, vocabulary: int):
    small = {
        "vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
    }  # fmt: skip
    return {
        "llama": lambda: LlamaConfig(**small),
        "mistral": lambda: MistralConfig(**small, head_dim=8),
        "qwen": lambda: Qwen2Config(**small),
        "gpt2": lambda: GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=512),
    }[kind]()


def tiny_model(kind: str, vocabulary: int, seed: int = 0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(configuration(kind, vocabulary)).eval()


def byte_tokenizer(first: bool = True, texts: tuple[str, ...] = ("Yes No",)):
    """Bytes and little more; with a token before every text or without."""
    tokenizer = train_tokenizer(list(texts), 300)
    if not first:
        from tokenizers.processors import ByteLevel

        tokenizer.backend_tokenizer.post_processor = ByteLevel()
    return tokenizer
