"""Small encoder-decoders of every published kind, from config.json as it is published."""

import copy
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bedstone.checkpoints.model import Model
from bedstone.data.text.encode import source_ids, target_ids
from bedstone.data.text.packing import Packed, lay
from bedstone.data.text.seq2seq import pair_batch
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.models.encoder_decoder.config import EncoderDecoderConfig
from bedstone.models.encoder_decoder.network import build
from bedstone.models.encoder_decoder.published import fresh_generation
from bedstone.objectives.tokens import pair_loss
from small_models import tokenizer

# As opus-mt, bart-large-cnn, t5-small, flan-t5-small and mt5-small have them, but for odd sizes.
_SIZES = {
    "d_model": 36,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 50,
    "decoder_ffn_dim": 44,
    "max_position_embeddings": 40,
}
MARIAN: dict[str, Any] = {
    **_SIZES,
    "activation_function": "swish",
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "architectures": ["MarianMTModel"],
    "bad_words_ids": [[96]],
    "bos_token_id": 0,
    "classif_dropout": 0.0,
    "decoder_layerdrop": 0.0,
    "decoder_start_token_id": 96,
    "decoder_vocab_size": 97,
    "encoder_layerdrop": 0.0,
    "eos_token_id": 0,
    "forced_eos_token_id": 0,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
    "is_encoder_decoder": True,
    "max_length": 30,
    "model_type": "marian",
    "normalize_before": False,
    "normalize_embedding": False,
    "num_beams": 3,
    "num_hidden_layers": 2,
    "pad_token_id": 96,
    "scale_embedding": True,
    "share_encoder_decoder_embeddings": True,
    "static_position_embeddings": True,
    "vocab_size": 97,
}
BART: dict[str, Any] = {
    **_SIZES,
    "activation_function": "gelu",
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "architectures": ["BartForConditionalGeneration"],
    "bos_token_id": 0,
    "decoder_start_token_id": 2,
    "early_stopping": True,
    "eos_token_id": 2,
    "force_bos_token_to_be_generated": True,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "is_encoder_decoder": True,
    "max_length": 30,
    "model_type": "bart",
    "no_repeat_ngram_size": 3,
    "normalize_before": False,
    "num_beams": 4,
    "pad_token_id": 1,
    "prefix": " ",
    "scale_embedding": False,
    "task_specific_params": {"summarization": {"length_penalty": 2.0, "min_length": 56}},
    "vocab_size": 97,
}
T5: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 50,
    "d_kv": 10,
    "d_model": 36,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-6,
    "model_type": "t5",
    "n_positions": 40,
    "num_heads": 3,
    "num_layers": 2,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 16,
    "relative_attention_num_buckets": 8,
    "task_specific_params": {
        "summarization": {"min_length": 30, "num_beams": 4, "prefix": "summarize: "},
        "translation_en_to_de": {"max_length": 300, "prefix": "translate English to German: "},
    },
    "vocab_size": 97,
}
V11 = {**T5, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 3}
CASES: dict[str, dict[str, Any]] = {
    "marian": MARIAN,
    "marian-separate": {
        **MARIAN, "share_encoder_decoder_embeddings": False, "decoder_vocab_size": 101
    },
    "marian-untied": {**MARIAN, "tie_word_embeddings": False},
    "marian-separate-untied": {
        **MARIAN,
        "share_encoder_decoder_embeddings": False,
        "decoder_vocab_size": 101,
        "tie_word_embeddings": False,
    },
    "bart": BART,
    "bart-untied": {**BART, "tie_word_embeddings": False, "scale_embedding": True},
    "t5": T5,
    "t5-gated-tied": {**V11, "tie_word_embeddings": True},
    "t5-v1.1": {**V11, "tie_word_embeddings": False},
    "mt5": {
        **V11,
        "model_type": "mt5",
        "architectures": ["MT5ForConditionalGeneration"],
        "tie_word_embeddings": False,
    },
}  # fmt: skip


def published(case: str, folder: Path, seed: int = 0, **changes: Any) -> Any:
    """A random network of the published class, made from its config.json."""
    import transformers

    values = {**CASES[case], **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    shape = transformers.AutoConfig.from_pretrained(folder)
    network = getattr(transformers, values["architectures"][0])(shape).eval()
    if case in ("t5-v1.1", "mt5"):  # as trained: two tables, whatever the class ties at first
        network.lm_head.weight = nn.Parameter(torch.empty(97, 36))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "embed_positions" in name and values["model_type"] == "marian":
                weight.copy_(network.get_submodule(name.rpartition(".")[0]).create_weight())
                continue
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15)
            if weight.dim() == 1 and "norm" in name:
                weight.add_(1.0)
        if hasattr(network, "final_logits_bias"):
            bias = network.final_logits_bias
            bias.copy_(torch.randn(bias.shape, generator=generator) * 0.2)
    return network


def saved(case: str, folder: Path, seed: int = 0, **changes: Any) -> Any:
    """The same, saved to the folder by the library; the config.json is the published one."""
    network = published(case, folder, seed, **changes)
    text = (folder / "config.json").read_text()
    network.save_pretrained(folder)
    (folder / "config.json").write_text(text)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return network


def sources(rows: int = 4, longest: int = 11, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded source ids and which of them are real."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 90, (rows, longest), generator=generator)
    lengths = torch.randint(2, longest + 1, (rows, 1), generator=generator)
    lengths[0] = longest
    keep = torch.arange(longest) < lengths
    return ids.masked_fill(~keep, 3), keep


def targets(rows: int = 4, longest: int = 9, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 90, (rows, longest), generator=generator)


def packed(ids: torch.Tensor, lengths: Any) -> Packed:
    """Padded rows of these lengths, laid end to end."""
    rows = [row[: int(size)] for row, size in zip(ids, lengths, strict=True)]
    flat = torch.cat(rows).numpy()
    return lay(flat, flat * 0, torch.tensor([len(row) for row in rows]).numpy())


def small_model(layout: str = "marian", seed: int = 2, **changes: Any) -> Model:
    """A random model with a tokenizer, as the tests of tasks use them; few tokens end a text."""
    known = tokenizer("roberta")
    sizes: dict[str, Any] = {
        "layout": layout,
        "vocab_size": known.vocab_size,
        "width": 32,
        "layers": 2,
        "heads": 4,
        "context": 40,
        "eos_id": known.eos_id,
        "pad_id": known.pad_id,
        "dropout": 0.0,
    }
    network = build(EncoderDecoderConfig(**{**sizes, **changes}), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.15)
    config = network.config
    if changes.get("prefixes"):
        config = network.config = EncoderDecoderConfig(**{**vars(config), **changes})
    generation = {**fresh_generation(config), "max_new_tokens": 8}
    return Model(network, known, generation)


# A model that has learnt something: numbers in words.

_SMALL = [
    *[
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
    ],
    *["fifteen", "sixteen", "seventeen", "eighteen", "nineteen"],
]
_TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int) -> str:
    """A number below a thousand in words."""
    if number < 20:
        return _SMALL[number]
    if number < 100:
        rest = f" {_SMALL[number % 10]}" if number % 10 else ""
        return _TENS[number // 10] + rest
    rest = f" and {in_words(number % 100)}" if number % 100 else ""
    return f"{_SMALL[number // 100]} hundred{rest}"


HELD_OUT = [number for number in range(100, 1000) if number % 11 == 5]


@functools.cache
def _trained(steps: int) -> Model:
    torch.manual_seed(0)
    known = train_bpe([in_words(number) for number in range(1000)], 300)
    assert known.eos_id is not None
    sizes = {"vocab_size": known.vocab_size, "width": 64, "layers": 2, "heads": 4, "context": 48}
    special = {"eos_id": known.eos_id, "pad_id": known.eos_id}
    config = EncoderDecoderConfig(layout="marian", hidden=128, dropout=0.0, **sizes, **special)
    network = build(config, seed=0)
    numbers = [number for number in range(1000) if number not in HELD_OUT]
    pairs = [
        (np.array(source_ids(known, str(n))), np.array(target_ids(known, in_words(n))))
        for n in numbers
    ]
    random = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, betas=(0.9, 0.98))
    for step in range(steps):
        rate = min(step / 40, 1.0) * (1 - step / steps)
        optimizer.param_groups[0]["lr"] = 3e-3 * rate
        chosen = [pairs[row] for row in random.integers(len(pairs), size=64)]
        batch = pair_batch(*map(list, zip(*chosen, strict=True)), network.config.start_id, step, [])
        loss, count = pair_loss(network, batch)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    return Model(network.eval(), known, {**fresh_generation(network.config), "max_new_tokens": 30})


def trained_model(steps: int = 250) -> Model:
    """A small model that says numbers below a thousand in words; those of `HELD_OUT` too."""
    return copy.deepcopy(_trained(steps))
