"""Tiny language models with random weights, a tokenizer for them, and a small data set with prompts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from rarec.data.ctr import CtrSettings, build_ctr_samples
from rarec.data.templates import TEMPLATES, item_texts
from rarec.rella.language_model import Answers, ModelReference, find_answers
from rarec.rella.prompt_source import RECENT, RETRIEVED, PromptJob, PromptSource
from rarec.rella.small_llama import train_tokenizer
from rarec.rella.tuning import TUNING, TuningSettings, add_adapter
from rarec.retrieval.subr import recent_behaviours, retrieve_behaviours
from rarec.text.prompts import build_parts
from rarec.text.tokens import PromptTokens

CPU = torch.device("cpu")
KINDS = ("llama", "mistral", "qwen", "gpt2")
LIMIT = 512
BEHAVIOURS = 4  # fewer than most histories hold, more than some
BASE = "toy-base"
TEMPLATE = TEMPLATES["movies"]
LENGTHS = (9, 14, 3, 0, 11, 8, 13, 5, 12, 10)


def _gpu_is_full(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory")


def _cpu_is_full(*_, **__):
    """More than any machine has: what PyTorch really raises, which is no OutOfMemoryError."""
    torch.empty(1 << 50, dtype=torch.uint8)


OUT_OF_MEMORY = (_gpu_is_full, _cpu_is_full)


def configuration(kind: str, vocabulary: int, spread: float = 0.02):
    small = {
        "vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": LIMIT,
        "initializer_range": spread,
    }  # fmt: skip
    return {
        "llama": lambda: LlamaConfig(**small),
        "mistral": lambda: MistralConfig(**small, head_dim=8),
        "qwen": lambda: Qwen2Config(**small),
        "gpt2": lambda: GPT2Config(
            vocab_size=vocabulary,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=LIMIT,
            initializer_range=spread,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        ),
    }[kind]()


def tiny_model(kind: str, vocabulary: int, seed: int = 0, spread: float = 0.02):
    """``spread`` is the scale of the random weights; with the usual one all prompts get nearly the same answer."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(configuration(kind, vocabulary, spread)).eval()


def byte_tokenizer(first: bool = True, texts: tuple[str, ...] = ("Yes No",)):
    """Bytes and little more; with a token before every text or without."""
    tokenizer = train_tokenizer(list(texts), 300)
    if not first:
        from tokenizers.processors import ByteLevel

        tokenizer.backend_tokenizer.post_processor = ByteLevel()
    return tokenizer


@dataclass(frozen=True)
class ToyData:
    """A small data set of films: clean tables, item vectors, and all that prompts are made of."""

    items: pd.DataFrame
    users: pd.DataFrame
    rating: np.ndarray
    vectors: np.ndarray
    source: PromptSource
    tokenizer: Any

    @property
    def prompts(self) -> PromptTokens:
        return PromptTokens.of(self.source.parts, self.tokenizer, LIMIT)

    @property
    def answers(self) -> Answers:
        return find_answers(self.tokenizer, TEMPLATE.yes, TEMPLATE.no)

    def model(self, kind: str = "llama", seed: int = 0):
        return tiny_model(kind, len(self.tokenizer), seed, spread=0.2)

    def save(self, folder: Path, model: Any) -> dict[str, Path]:
        """The artifact folders that workers and the online model read."""
        names = ("interactions", "ctr_samples", "textual_samples", "retrieval_enhanced_samples", "item_catalog",
                 "user_profiles", "semantic_item_vectors", "base_language_model")  # fmt: skip
        folders = {name: folder / name for name in names}
        for made in folders.values():
            made.mkdir(parents=True)
        table = pd.DataFrame({"item_index": self.source.items, "rating": self.rating})
        table.to_parquet(folders["interactions"] / "interactions.parquet")
        self.source.samples.save(folders["ctr_samples"])
        self.source.parts.save(folders["textual_samples"])
        np.save(folders["textual_samples"] / RECENT, self.source.recent)
        np.save(folders["retrieval_enhanced_samples"] / RETRIEVED, self.source.retrieved)
        self.items.to_parquet(folders["item_catalog"] / "items.parquet")
        self.users.to_parquet(folders["user_profiles"] / "users.parquet")
        np.save(folders["semantic_item_vectors"] / "vectors.npy", self.vectors)
        language = folders["base_language_model"]
        model.save_pretrained(language)
        self.tokenizer.save_pretrained(language)
        ModelReference("scratch", "", language, "none", LIMIT).save(language)
        return folders

    def prompt_inputs(self, folder: Path, model: Any) -> dict[str, Any]:
        """The fields of a `PromptJob` on artifacts saved in ``folder``."""
        folders = self.save(folder, model)
        kept = {name: folders[name] for name in PromptJob.model_fields if name in folders}
        return {**kept, "base": BASE, "cache": folder / "hub", "yes": TEMPLATE.yes, "no": TEMPLATE.no}


def toy_data(n_items: int = 14, seed: int = 0) -> ToyData:
    """Ten users with up to 14 ratings; about 70 samples, half of which train."""
    rng = np.random.default_rng(seed)
    items = pd.DataFrame(
        {
            "item_id": np.arange(n_items) * 10 + 3,
            "title": [f"Film {chr(97 + n)}" for n in range(n_items)],
            "genres": [["Action|Crime", "Drama", None][n % 3] for n in range(n_items)],
            "category": None, "author": None, "publisher": None,
            "year": pd.array([1990 + n if n % 4 else None for n in range(n_items)], dtype="Int64"),
        }
    )  # fmt: skip
    n_users = len(LENGTHS)
    users = pd.DataFrame(
        {
            "user_id": [f"u{n}" for n in range(n_users)],
            "gender": [["F", "M", None][n % 3] for n in range(n_users)],
            "age_group": None,
            "age": pd.array([20 + n if n % 2 else None for n in range(n_users)], dtype="Int64"),
            "occupation": [["writer", None, None][n % 3] for n in range(n_users)],
            "location": None, "zip_code": None,
        }
    )  # fmt: skip
    user = np.repeat(np.arange(n_users), LENGTHS)
    item = rng.integers(0, n_items, len(user))
    rating = rng.choice([1.0, 2.0, 3.5, 4.0, 5.0], len(user))
    times = np.concatenate([np.sort(rng.integers(0, 60, n)) for n in LENGTHS])
    settings = CtrSettings(minimum_history=2, train_share=0.5, valid_share=0.25)
    samples = build_ctr_samples(user, times, rating >= 4, n_users, "clock", settings)
    vectors = rng.standard_normal((n_items, 6))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    parts = build_parts(TEMPLATE, items, users, item, rating.tolist())
    source = PromptSource(
        samples,
        item,
        parts,
        recent_behaviours(samples.offsets, samples.position, BEHAVIOURS),
        retrieve_behaviours(vectors, item, samples.offsets, samples.position, BEHAVIOURS),
    )
    names = item_texts(items, TEMPLATE.item)
    return ToyData(items, users, rating, vectors, source, train_tokenizer(parts.texts, 400, names, ["Yes", "No"]))


@torch.no_grad()
def save_random_adapter(
    model: Any, folder: Path, seed: int, settings: TuningSettings | None = None, base: str = BASE
) -> Any:
    """Write an adapter as `tune` leaves it, but with random weights; the model with it."""
    adapted = add_adapter(model, settings or TuningSettings(), seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / TUNING).write_text(f'{{"base": "{base}"}}')
    return adapted


def slow_probability(model: Any, tokenizer: Any, text: str) -> float:
    """Yes against no behind one prompt, by itself, from the logits of every place."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    answers = find_answers(tokenizer, TEMPLATE.yes, TEMPLATE.no)
    logits = model(input_ids=ids).logits[0, -1].double()
    yes, no = logits[answers.yes].exp(), logits[answers.no].exp()
    return float(yes / (yes + no))
