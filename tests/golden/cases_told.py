"""Pictures put into words: BLIPs of each task, a GPT that sees, and the tasks over them."""

from pathlib import Path
from typing import Any

from kit import call, line, make, train

LANE = "told"
TEXT = {"width": 16, "layers": 1, "heads": 2, "context": 40}
CNN = {
    "layout": "blip_resnet",
    "image": {"image_size": 16, "width": 8, "blocks": [1, 1], "block": "basic", "shrink": 1},
    "text": TEXT,
    "embed": 8,
}
VIT = {**CNN, "layout": "blip"}
VIT["image"] = {"image_size": 16, "patch": 8, "width": 16, "layers": 1, "heads": 2}
ANSWERS, CAPTIONS = "visual-question-answering", "image-to-text"
MATCHING, JOINT = "image-text-matching", "joint"
COLUMNS = {"image": "picture", "text": "title", "question": "questions", "answer": "answers"}
ROWS = {"source": "in/told.parquet", "validation": "in/told.parquet", "columns": COLUMNS}
FP32 = ("--precision", "fp32")


def recipe(task: str, **changes: Any) -> dict[str, Any]:
    return {
        "task": task,
        "model": CNN,
        "budget": "4 steps",
        "data": ROWS,
        "tokenizer": {"vocab_size": 160},
        "texts": 2,
        "batch_size": 8,
        "evaluate_every": 4,
        "save_every": 2,
        "keep": 9,
        "evaluate_rows": 8,
        "log_every": 1,
        "precision": "fp32",
        "device": "cpu",
        **changes,
    }


def add_cases() -> None:
    scenes = {"source": "scenes", "most_rows": 24, "objects": [1, 2], "enlarge": 1.25}
    short = {"budget": "2 steps", "save_every": 1, "evaluate_every": 2, "texts": 1}
    more = {"augment": {"crop": [0.5, 1.0], "flip": 0.5}, "smoothing": 0.1}
    lora = {"init": "runs/blip-captions", "model": {}, "lora": {"rank": 2}}
    runs: dict[str, dict[str, Any]] = {
        "blip-captions": recipe(CAPTIONS, model=VIT, beams=2, length_penalty=0.5),
        "blip-answers": recipe(ANSWERS, data={**ROWS, "test": "in/told.parquet"}),
        "blip-ranked": recipe(ANSWERS, rank=True, optim={"kind": "muon", "lr": 5e-3}),
        "blip-matching": recipe(MATCHING, model=VIT),
        "blip-joint": recipe(JOINT, **more, accumulate=2),
        "blip-scenes": recipe(JOINT, data=scenes, **short, tokenizer={"vocab_size": 256}),
        "blip-blank": recipe(ANSWERS, data={**ROWS, "blank": True}, init="", **short),
        "blip-init": recipe(ANSWERS, init="runs/blip-captions", model={}),
        "blip-frozen": recipe(
            CAPTIONS, model={"layout": "blip_resnet", "text": TEXT}, image_init="runs/blip-answers",
            freeze="image",
        ),
        "blip-lora": recipe(CAPTIONS, **lora),
        "blip-bf16": recipe(CAPTIONS, precision="bf16"),
    }  # fmt: skip
    for name, values in runs.items():
        train(LANE, name, values)
    gpt = {
        "budget": "4 steps",
        "model": {"width": 32, "layers": 2, "heads": 2, "hidden": 48},
        "data": {"source": "in/text"},
        "tokenizer": {"vocab_size": 300},
        "context": 64,
        "batch_size": 4,
        "log_every": 1,
        "evaluate_tokens": 500,
        "precision": "fp32",
        "device": "cpu",
    }
    train(LANE, "told-gpt", gpt)
    train(LANE, "told-clip", clip())
    sighted = {"init": "runs/told-gpt", "image_init": "runs/blip-answers"}
    sighted |= {"model": {"layout": "sighted_gpt", "every": 2}, "evaluate_rows": 3}
    for name, task in (("sighted", ANSWERS), ("sighted-joint", JOINT)):
        fast = {"kind": "muon", "lr": 0.05, "adamw_lr": 0.05}  # gates begin shut
        values = {**recipe(task), **sighted, "optim": fast}
        del values["tokenizer"]
        train(LANE, name, values)
    vit = {**recipe(CAPTIONS), **sighted, "image_init": "runs/blip-captions", "beams": 2}
    vit["model"] = {"layout": "sighted_gpt", "every": 1}
    del vit["tokenizer"]
    train(LANE, "sighted-vit", vit)
    make(LANE, "published-blip", publish)
    writers = ["runs/blip-captions", "runs/blip-joint", "runs/blip-lora", "runs/sighted-joint",
               "runs/sighted-vit", "made/blip-captions"]  # fmt: skip
    for model in writers:
        words = ("run", CAPTIONS, model, "in/few", "--json", *FP32, "--option", "max_new_tokens=6")
        line(LANE, f"captions-{model}", *words)
        line(LANE, f"beams-{model}", *words, "--option", "num_beams=3")
    line(LANE, "captions-sampled", "run", CAPTIONS, "runs/blip-captions", "in/few", "--json", *FP32,
         "--option", "do_sample=true", "--option", "temperature=0.8", "--option", "seed=3",
         "--option", "max_new_tokens=6")  # fmt: skip
    line(LANE, "captions-page", "run", CAPTIONS, "runs/blip-captions", "in/few", *FP32, "--option",
         "max_new_tokens=6", "--page", "captions.html", files=["captions.html"])  # fmt: skip
    askers = ["runs/blip-answers", "runs/blip-ranked", "runs/blip-joint", "runs/blip-init",
              "runs/sighted", "runs/sighted-joint", "made/blip-answers"]  # fmt: skip
    for model in askers:
        line(LANE, f"answers-{model}", "run", ANSWERS, model, "in/few", "--question",
             "how is the light?", "--question", "is it dark?", "--json", "--option", "top_k=2",
             "--option", "max_new_tokens=5", *FP32)  # fmt: skip
    line(LANE, "answers-free", "run", ANSWERS, "runs/blip-answers", "in/photo.png", "--question",
         "is it dark?", "--option", "free=true", "--option", "max_new_tokens=5", *FP32)  # fmt: skip
    line(LANE, "answers-page", "run", "vqa", "runs/blip-ranked", "in/few", "--question",
         "is it dark?", "--page", "answers.html", *FP32, files=["answers.html"])  # fmt: skip
    for model in ("runs/blip-matching", "runs/blip-joint"):
        line(LANE, f"matching-{model}", "run", MATCHING, model, "in/few", "--json", "--option",
             "text=a dark field", *FP32)  # fmt: skip
    line(LANE, "chat", "run", "image-text-to-text", "runs/sighted", "--file", "in/chats.jsonl",
         "--json", "--option", "max_new_tokens=4", *FP32)  # fmt: skip
    line(LANE, "chat-blip", "run", "image-text-to-text", "runs/blip-answers", "--file",
         "in/chats.jsonl", "--json", "--option", "max_new_tokens=4", *FP32)  # fmt: skip
    for name in ("blip-captions", "blip-answers", "blip-matching", "blip-joint", "sighted-joint"):
        words = ("evaluate", f"runs/{name}", "in/told.parquet", "--json", *FP32)
        line(LANE, f"evaluate-{name}", *words)
        line(LANE, f"info-{name}", "info", f"runs/{name}", "--json")
    line(LANE, "evaluate-scenes", "evaluate", "runs/blip-scenes", "scenes", "--json", *FP32)
    line(LANE, "sighted-text", "generate", "runs/sighted", "a red", "--max-tokens", "6",
         "--temperature", "0", "--json", *FP32)  # fmt: skip
    line(LANE, "index", "index", "in/few", "--model", "runs/told-clip", "--out", "few.index",
         *FP32, kind="make")  # fmt: skip
    line(LANE, "search-reranked", "search", "few.index", "a dark field", "--rerank",
         "runs/blip-matching", "--json", *FP32)  # fmt: skip
    line(LANE, "told-sample", "pretrain", "recipes/blip-joint.yaml", "out=runs/none", "--sample",
         "told.png", files=["told.png"])  # fmt: skip
    call(LANE, "pipelines", pipelines)
    call(LANE, "api-copies", copies)


def clip() -> dict[str, Any]:
    """A small one, that makes an index."""
    shape = {"layout": "clip", "embed": 8, "image": VIT["image"], "text": TEXT}
    how = {"budget": "2 steps", "batch_size": 8, "evaluate_pairs": 8, "log_every": 1}
    how |= {"tokenizer": {"vocab_size": 300}, "precision": "fp32", "device": "cpu"}
    return {"model": shape, "data": {"source": "in/photos", "validation_share": 0.3}, **how}


def publish() -> dict[str, Any]:
    """Tiny random BLIPs as transformers writes them, with the tokenizer of a run."""
    import torch
    import transformers

    words = transformers.AutoTokenizer.from_pretrained("runs/blip-captions/model")
    text = {"vocab_size": len(words), "hidden_size": 16, "encoder_hidden_size": 16}
    text |= {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"max_position_embeddings": 40, "projection_dim": 8, "hidden_dropout_prob": 0.0}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": words.sep_token_id}
    text |= {**ends, "sep_token_id": words.sep_token_id, "pad_token_id": words.pad_token_id}
    image = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    image |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8, "projection_dim": 8}
    shape = {"text_config": text, "vision_config": image, "projection_dim": 8}
    kinds = {
        "blip-captions": transformers.BlipForConditionalGeneration,
        "blip-answers": transformers.BlipForQuestionAnswering,
    }
    for name, kind in kinds.items():
        torch.manual_seed(6)
        kind(transformers.BlipConfig(**shape)).save_pretrained(f"made/{name}")
        words.save_pretrained(f"made/{name}")
        side = {"height": 16, "width": 16}
        transformers.BlipImageProcessor(size=side).save_pretrained(f"made/{name}")
    return {"made": sorted(kinds)}


def pipelines() -> Any:
    import bedstone

    few = [str(path) for path in sorted(Path("in/few").iterdir())]
    on, short = {"device": "cpu"}, {"max_new_tokens": 5}
    found: dict[str, Any] = {}
    task = bedstone.pipeline(CAPTIONS, "runs/blip-captions", **on)
    found["captions"] = [task(few[0], **short), task(few, batch_size=3, num_beams=2, **short)]
    found["candidates"] = task(few[:2], candidates=["a dark field", "a bright field"])
    task = bedstone.pipeline(ANSWERS, "runs/blip-answers", top_k=2, **on)
    found["answer"] = task(few[0], "is it dark?")
    asked = [{"image": each, "question": "how is the light?"} for each in few]
    found["answers"] = task(asked, candidates=["dark", "bright"])
    task = bedstone.pipeline(MATCHING, "runs/blip-matching", **on)
    found["matching"] = task(few[0], ["a dark field", "a bright field"])
    talk = bedstone.pipeline("image-text-to-text", "runs/sighted-joint", **on)
    parts = [{"type": "image", "image": few[0]}, {"type": "text", "text": "how many?"}]
    found["chat"] = talk([{"role": "user", "content": parts}], **short)
    return found


def copies() -> Any:
    """What saved copies of opened models hold."""
    from kit import folder_of

    import bedstone

    names = ["blip-captions", "blip-answers", "blip-matching", "blip-joint", "sighted"]
    paths = [f"runs/{name}/model" for name in names] + ["made/blip-captions", "made/blip-answers"]
    found = {}
    for path in paths:
        model = bedstone.load(path)
        copy = model.save(Path("copies") / path.replace("/", "-"))
        found[path] = {"ids": model.tokenizer.encode("a red field?"), "copy": folder_of(copy)}
    return found
