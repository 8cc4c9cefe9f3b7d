"""Tiny tokenizers of the kinds that published language models have, trained on a few lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TITLES = (
    "Heat", "Séance", "The Yes Men", "No Man's Land", " lead", "trail ", "  two", "日本 沈没", "[REC]", "<3",
    "/slash", "\tTab", "a  b", "x" * 30, "🎬 cut", "\u2028line", "—dash",
)  # fmt: skip
CONTROL = ("</s>", "<s> of all", "<|im_end|>", "A <|im_start|>user", "<think>", "[INST]", "<unk>", "<0x0A>", "<|user|>")
CORPUS = [
    f"A user: m, {n}.\nThey rated, from the oldest:\n{title}: {n % 5 + 1}\n{title}: 4\n\nWill they? Yes or No.\n"
    f"{title}: {'Yes' if n % 2 else 'No'}\nYes No [INST] [/INST] user assistant  \n \n"
    " Yes\n No\nNo\nYes\nNo\nYes\n Yes\n No"
    for n, title in enumerate([*TITLES, "Heat 2", "Alien", "Aliens: again"] * 3)
]
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ROLES = "{% for m in messages %}"
LLAMA_CHAT = _ROLES + (
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_CHAT = (
    "{{ bos_token }}"
    + _ROLES
    + (
        "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    + _ROLES
    + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR_CHAT = _ROLES + (
    "{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}"
    + _ROLES
    + (
        "{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    )
)


def sentencepiece_like(prepend: str, special: tuple[str, ...] = (), size: int = 420, joins_lines: bool = False) -> Any:
    """BPE over whole texts with bytes for unknown characters; ``prepend`` is how a text's first blank comes about.

    Args:
        prepend: "normalizer" for that of the first Llamas, else a scheme of `Metaspace`.
        joins_lines: Whether tokens may go over line ends.
    """
    names = ["<unk>", "<s>", "</s>", *special, *(f"<0x{byte:02X}>" for byte in range(256))]
    raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prepend == "normalizer" else spaces
    if prepend == "first":
        raw.normalizer = None
    trainer = trainers.BpeTrainer(
        vocab_size=len(names) + size - 256, special_tokens=names, show_progress=False, limit_alphabet=40
    )
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # tokens are learned within words
    raw.train_from_iterator(CORPUS if joins_lines else [line for text in CORPUS for line in text.split("\n")], trainer)
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False) if prepend == "first" else None
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_level(pattern: str, special: tuple[str, ...], normalizer: Any = None) -> Any:
    """Byte-level BPE that first splits texts by ``pattern``; its first special token ends texts, none begins them."""
    raw = Tokenizer(models.BPE())
    if normalizer is not None:
        raw.normalizer = normalizer
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=430, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(special),
        show_progress=False,
    )  # fmt: skip
    raw.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=special[0])


def _with_chat(tokenizer: Any, template: str) -> Any:
    tokenizer.chat_template = template
    return tokenizer


def qwen_like() -> Any:
    tokenizer = byte_level(_QWEN, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), normalizers.NFC())
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("<tool_call>", normalized=False)])
    return _with_chat(tokenizer, CHATML)


def mistral_like() -> Any:
    return _with_chat(sentencepiece_like("first", ("[INST]", "[/INST]")), MISTRAL_CHAT)


def gemma_like() -> Any:
    tokenizer = sentencepiece_like("never", ("<start_of_turn>", "<end_of_turn>"))
    tokenizer.add_tokens([AddedToken("\n" * n, normalized=False) for n in (1, 2, 3)])
    return _with_chat(tokenizer, GEMMA_CHAT)


def phi_like() -> Any:
    """Control tokens that swallow the white space behind them."""
    tokenizer = sentencepiece_like("first")
    names = ("<|user|>", "<|assistant|>", "<|end|>")
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [AddedToken(name, rstrip=True, normalized=False, special=True) for name in names]}
    )
    return _with_chat(tokenizer, ZEPHYR_CHAT.replace("eos_token", "'<|end|>'"))


def ends_texts() -> Any:
    """A tokenizer that puts a token at the end of every text, too."""
    tokenizer = sentencepiece_like("normalizer")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def flattens_lines() -> Any:
    """A tokenizer that reads line ends as blanks, so that parts cannot be kept apart."""
    tokenizer = sentencepiece_like("normalizer")
    first = [normalizers.Replace("\n", " "), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(first)
    return tokenizer


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: _with_chat(sentencepiece_like("normalizer"), LLAMA_CHAT),
    "llama that joins lines": lambda: _with_chat(sentencepiece_like("normalizer", joins_lines=True), LLAMA_CHAT),
    "llama without chat": lambda: sentencepiece_like("first"),
    "mistral": mistral_like,
    "qwen": qwen_like,
    "gpt2": lambda: byte_level(_GPT2, ("<|endoftext|>",)),
    "zephyr": lambda: _with_chat(sentencepiece_like("normalizer"), ZEPHYR_CHAT),
    "gemma": gemma_like,
    "phi": phi_like,
    "ends texts": ends_texts,
    "flattens lines": flattens_lines,
}


def save_sentencepiece(folder: Path, **settings: Any) -> None:
    """A tokenizer as the first Llamas and Vicuna were published: tokenizer.model, and no tokenizer.json."""
    import json

    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.txt").write_text("\n".join(line for text in CORPUS for line in text.splitlines()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=360,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=False, character_coverage=0.98, minloglevel=2,
    )  # fmt: skip
    for name in ("corpus.txt", "tokenizer.vocab"):
        (folder / name).unlink()
    config = {"add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>",
              "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer", "legacy": False, **settings}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
