"""Adapters in peft's two files: names and values to ours, and ours to theirs.

`adapter_config.json` says ranks, scales and which modules have an adapter, by published names;
`adapter_model.safetensors` holds `base_model.model.MODULE.lora_A.weight` (R, D) and `lora_B.weight`
(E, R), and modules that were trained whole under their own names. Keys and their order are those
that peft 0.21 writes. Where the published layout keeps several of our layers as one matrix
(q, k and v of gpt2), they read with one A there, and their B are stacked.
"""

from collections.abc import Iterable
from typing import Any

from bedstone.checkpoints.convert import Name
from bedstone.errors import BedstoneError
from bedstone.nn.lora_config import leaf_of, linears, parent_of

PREFIX = "base_model.model."
A, B = ".lora_A.weight", ".lora_B.weight"
TASKS = {
    "sequence": "SEQ_CLS",
    "tokens": "TOKEN_CLS",
    "spans": "QUESTION_ANS",
    "states": "FEATURE_EXTRACTION",
    "pooled": "FEATURE_EXTRACTION",
}
# Every key that peft 0.21 writes, with the only values under which it is plain LoRA.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    **dict.fromkeys(("lora_bias", "use_dora", "use_qalora", "ensure_weight_tying"), (False,)),
    **dict.fromkeys(
        (
            "alora_invocation_tokens",
            "arrow_config",
            "kasa_config",
            "layer_replication",
            "megatron_config",
            "monteclora_config",
            "target_parameters",
            "trainable_token_indices",
            "use_bdlora",
            "velora_config",
        ),
        (None,),
    ),
}
DEFAULTS: dict[str, Any] = {
    **{key: values[0] for key, values in PLAIN.items()},
    "auto_mapping": None,
    "corda_config": None,
    "eva_config": None,
    "exclude_modules": None,
    "inference_mode": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_ga_config": None,
    "megatron_core": "megatron.core",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "revision": None,
}
READ = {"r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern"}
READ |= {"use_rslora", "modules_to_save", "fan_in_fan_out", "task_type"}
READ |= {"base_model_name_or_path", "runtime_config"}


def published_linears(names: Iterable[Name], network: Any) -> dict[str, Name]:
    """Published modules that are linear layers of ours, by their names; several may be one."""
    ours = linears(network)
    return {
        parent_of(name.theirs): name
        for name in names
        if leaf_of(name.theirs) == "weight" and all(parent_of(o) in ours for o in name.ours)
    }


def check_plain(published: dict[str, Any], where: str) -> None:
    """Raises BedstoneError if a configuration asks for more than LoRA as Bedstone builds it."""
    for key, value in published.items():
        if key in PLAIN:
            if not any(value is plain or value == plain for plain in (*PLAIN[key], None)):
                raise BedstoneError(
                    f"{where}/adapter_config.json: {key} = {value!r} is not supported; only "
                    f"{PLAIN[key][0]!r} is. Merge that adapter with peft "
                    "(merge_and_unload), save the model and open that."
                )
        elif key not in READ and key not in DEFAULTS and value:
            raise BedstoneError(
                f"{where}/adapter_config.json: {key} = {value!r} is unknown, so what it changes "
                "can't be built. Merge that adapter with peft (merge_and_unload), save the model "
                "and open that."
            )
