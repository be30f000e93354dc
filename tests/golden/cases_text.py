"""GPTs: pretrained in every way, published ones, generation, evaluation, completions."""

from pathlib import Path
from typing import Any

from kit import call, line, make, train

LANE = "text"
SHAPE = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 64}
PUBLISHED = ("gpt2", "llama", "mistral", "qwen2", "qwen3")


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "budget": "12 steps",
        "model": SHAPE,
        "data": {"source": "in/text", "validation_share": 0.1},
        "tokenizer": {"vocab_size": 300},
        "context": 32,
        "batch_size": 4,
        "accumulate": 2,
        "log_every": 1,
        "save_every": 6,
        "keep": 9,
        "evaluate_every": 6,
        "evaluate_tokens": 1000,
        "device": "cpu",
        "precision": "fp32",
        **changes,
    }


def tuned(**changes: Any) -> dict[str, Any]:
    return {
        "task": "text-generation",
        "model": "runs/gpt/model",
        "data": {"train": "in/spoken.jsonl", "validation": "in/spoken-held.jsonl"},
        "epochs": 1,
        "batch_size": 8,
        "optim": {"adamw_lr": 3e-3},
        "device": "cpu",
        "precision": "fp32",
        "log_every": 1,
        "save_every": 6,
        "keep": 9,
        **changes,
    }


def add_cases() -> None:
    data = {"source": "in/text", "validation_share": 0.1}
    runs: dict[str, dict[str, Any]] = {
        "gpt": {},
        "gpt-streamed": {"data": {**data, "streaming": True}},
        "gpt-adamw": {"optim": {"kind": "adamw", "adamw_lr": 1e-3, "clip": 0.5}},
        "gpt-bf16": {"precision": "bf16"},
        "gpt-gpt2": {"model": {"layout": "gpt2", "width": 32, "layers": 2, "heads": 4}},
        "gpt-init": {"init": "runs/gpt/model", "model": {}, "seed": 3},
        "gpt-characters": {"tokenizer": {"kind": "characters"}, "schedule": {"shape": "cosine"}},
        "gpt-words": {"tokenizer": {"path": "runs/gpt/model"}, "accumulate": 1},
        "gpt-rows": {"data": {"source": "in/documents.jsonl", "column": "body"}},
        "gpt-untied": {"model": {**SHAPE, "tied": False, "layout": "llama"}, "seed": 5},
        "gpt-tokens": {"budget": "3000 tokens", "schedule": {"shape": "sqrt", "floor": 0.1}},
    }
    for name, changes in runs.items():
        train(LANE, name, recipe(**changes))
    short = {"budget": "4 steps", "save_every": 2}
    train("scenes", "gpt-scenes", recipe(data={"source": "scenes"}, **short))
    train(LANE, "tuned-completion", tuned(), "finetune")
    lora = {"lora": {"rank": 4, "alpha": 8}}
    train(LANE, "tuned-completion-lora", tuned(**lora), "finetune")
    train(LANE, "tuned-completion-lora4", tuned(**lora, quantize=4), "finetune")
    labels = {"task": "text-classification", "model": "runs/gpt-gpt2/model"}
    labels["data"] = {"train": "in/sentences.jsonl", "validation": "in/sentences-held.jsonl"}
    train(LANE, "tuned-decoder-labels", tuned(**labels), "finetune")
    make(LANE, "published-gpts", publish)
    models = {name: f"runs/{name}" for name in ("gpt", "gpt-gpt2", "gpt-bf16", "gpt-characters")}
    models |= {name: f"made/{name}" for name in PUBLISHED}
    models |= {name: f"runs/{name}/model" for name in ("tuned-completion", "tuned-completion-lora")}
    for name, model in models.items():
        words = ("generate", model, "the cat sees", "--max-tokens", "12", "--device", "cpu")
        words += ("--precision", "fp32")
        line(LANE, f"generate-{name}", *words, "--temperature", "0", "--json")
        sampled = ("--temperature", "0.9", "--top-k", "20", "--top-p", "0.9", "--seed", "7")
        line(LANE, f"generate-{name}-sampled", *words, *sampled, "--log-probabilities", "--json")
        line(LANE, f"info-{name}", "info", model, "--json")
        how = ("--context", "24", "--json", "--precision", "fp32")
        line(LANE, f"evaluate-{name}", "evaluate", model, "in/context.txt", *how)
        line(LANE, f"run-{name}", "run", "text-generation", model, "the cat", "a dog", "--json",
             "--option", "max_new_tokens=6", "--precision", "fp32")  # fmt: skip
    line(LANE, "generate-beams", "generate", "runs/gpt", "the cat", "a dog", "--num-beams", "3",
         "--num-return-sequences", "2", "--length-penalty", "0.5", "--max-tokens", "8",
         "--no-repeat-ngram-size", "2", "--json", "--precision", "fp32")  # fmt: skip
    line(LANE, "generate-stop", "generate", "runs/gpt", "-", "--stop", "dog", "--max-tokens", "30",
         "--temperature", "0.7", "--repetition-penalty", "1.2", "--min-p", "0.05",
         stdin="the cat sees a")  # fmt: skip
    line(LANE, "generate-text", "generate", "runs/gpt", "the", "--max-tokens", "9")
    line(LANE, "generate-bf16", "generate", "runs/gpt", "the", "--max-tokens", "9", "--precision",
         "bf16", "--temperature", "0")  # fmt: skip
    line(LANE, "info-text", "info", "runs/gpt")
    line(LANE, "info-run", "info", "runs/gpt", "--json")
    line(LANE, "evaluate-text", "evaluate", "runs/gpt", "in/text", "--precision", "fp32")
    line(LANE, "evaluate-rows", "evaluate", "runs/gpt", "in/documents.jsonl", "--column", "body",
         "--json", "--precision", "fp32")  # fmt: skip
    line(LANE, "run-generation-text", "run", "text-generation", "runs/gpt", "the [cat]",
         "--option", "max_new_tokens=5", "--option", "return_full_text=False")  # fmt: skip
    line(LANE, "run-decoder-labels", "run", "text-classification", "runs/tuned-decoder-labels",
         "a good film", "--json", "--option", "top_k=null", "--precision", "fp32")  # fmt: skip
    call(LANE, "pipeline-generation", generation)
    call(LANE, "api-load", load_and_save)
    call(LANE, "api-adapter", adapted)


def publish() -> dict[str, Any]:
    """Tiny random GPTs as transformers writes them, with the tokenizer of a run."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained("runs/gpt/model")
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, **size}
    configs = {
        "gpt2": transformers.GPT2Config(
            vocab_size=size["vocab_size"], n_positions=64, n_embd=32, n_layer=2, n_head=4
        ),
        "llama": transformers.LlamaConfig(**small),
        "mistral": transformers.MistralConfig(**small, sliding_window=None),
        "qwen2": transformers.Qwen2Config(**small),
        "qwen3": transformers.Qwen3Config(**small, head_dim=8),
    }
    for name, config in configs.items():
        torch.manual_seed(3)
        network = transformers.AutoModelForCausalLM.from_config(config)
        network.save_pretrained(f"made/{name}")
        tokenizer.save_pretrained(f"made/{name}")
    adapt()
    return {"made": sorted(configs)}


def adapt() -> None:
    """An adapter as peft writes it."""
    import peft
    import torch
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained("made/llama")
    torch.manual_seed(8)
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    config.base_model_name_or_path = "made/llama"
    peft.get_peft_model(base, config).save_pretrained("made/adapter")


def generation() -> Any:
    import bedstone

    write = bedstone.pipeline("text-generation", "runs/gpt/model", device="cpu")
    return {
        "sampled": write("the", max_new_tokens=6, num_return_sequences=2, do_sample=True, seed=3),
        "beams": write(["the cat", "a"], max_new_tokens=5, num_beams=3),
        "greedy": list(write(iter(["a dog", "red"]), max_new_tokens=4, batch_size=2)),
    }


def load_and_save() -> Any:
    """Token ids, logits and what a saved copy holds, of each layout."""
    import torch
    from kit import folder_of

    import bedstone

    found = {}
    for path in ("runs/gpt/model", "runs/gpt-gpt2/model", *(f"made/{n}" for n in PUBLISHED)):
        model = bedstone.load(path)
        ids = model.tokenizer.encode("the cat sees a red house")
        with torch.no_grad():
            logits = model.network(torch.tensor([ids]))
        copy = Path("copies") / Path(path.removesuffix("/model")).name
        model.save(copy)
        found[path] = {"ids": ids, "logits": logits, "copy": folder_of(copy)}
        found[path]["fingerprint"] = model.tokenizer.fingerprint()
    return found


def adapted() -> Any:
    """An adapter's folder, opened with the base that it names."""
    import torch

    import bedstone

    found = {}
    runs = ("tuned-completion-lora", "tuned-completion-lora4")
    for name in (*(f"runs/{name}/adapter" for name in runs), "made/adapter"):
        model = bedstone.load(name)
        ids = model.tokenizer.encode("say red :")
        with torch.no_grad():
            found[name] = model.network(torch.tensor([ids]))
    return found
