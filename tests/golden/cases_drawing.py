"""What draws: autoencoders, diffusion of every kind, `imagine`, published pipelines."""

from pathlib import Path
from typing import Any

from kit import call, line, make, train

LANE = "drawing"
KL = {"layout": "autoencoder_kl", "image_size": 16, "widths": [8, 8], "groups": 4}
KL["attention"] = False
FSQ = {"layout": "fsq_autoencoder", "image_size": 16, "widths": [8, 8], "groups": 4}
FSQ["levels"] = [5, 4]
SHAPE = {"patch": 4, "width": 16, "layers": 1, "heads": 2}
SCENES = {"source": "scenes", "size": [16, 16], "most_rows": 12, "objects": [1, 1]}
SMALL = {"source": "in/small.parquet", "size": [8, 8], "validation_share": 0.3}
WORDS = {"width": 16, "layers": 1, "heads": 2}
FP32 = ("--precision", "fp32", "--device", "cpu")
METHODS = ("ddim", "ddpm", "euler", "heun", "unipc", "dpm_solver_2m", "dpm_solver_sde")


def coding(**changes: Any) -> dict[str, Any]:
    return {
        "task": "autoencoding",
        "model": KL,
        "budget": "4 steps",
        "data": {"source": "in/photos", "validation_share": 0.3},
        "batch_size": 8,
        "evaluate_every": 2,
        "save_every": 2,
        "keep": 9,
        "evaluate_pictures": 6,
        "log_every": 1,
        "precision": "fp32",
        "device": "cpu",
        **changes,
    }


def drawing(task: str = "class-to-image", **changes: Any) -> dict[str, Any]:
    return {
        "task": task,
        "model": dict(SHAPE),
        "data": SMALL,
        "budget": "8 steps",  # far enough from the zeros they begin with that conditions tell
        "optim": {"lr": 0.02, "adamw_lr": 0.02},
        "average": 0.5,
        "batch_size": 4,
        "evaluate_every": 4,
        "save_every": 4,
        "keep": 9,
        "evaluate_rows": 4,
        "samples": 2,
        "log_every": 1,
        "sampling": {"steps": 2},
        "precision": "fp32",
        "device": "cpu",
        **changes,
    }


def add_cases() -> None:
    judged = {"adversarial": {"weight": 0.1, "after": 1, "width": 8, "layers": 1}}
    crop = {"augment": {"crop": [0.6, 1.0], "flip": 0.5}}
    scenes = {"source": "scenes", "most_rows": 16}
    codes: dict[str, dict[str, Any]] = {
        "coder": coding(),
        "coder-scenes": coding(data=scenes, pixel="l2", optim={"kind": "muon"}),
        "coder-codes": coding(model=FSQ, **crop),
        "coder-judged": coding(**judged),
        "coder-init": coding(init="runs/coder", model={}, seed=2),
    }
    for name, values in codes.items():
        train(LANE, name, values)
    text = {"task": "text-to-image", "text": WORDS, "tokenizer": {"vocab_size": 120}}
    sound = {"rate": 2000, "window": 32, "hop": 16}
    sounds = {"source": "in/sounds/rows.csv", "size": [8], "sound": sound, "validation_share": 0.3}
    moving = {"source": "moving-scenes", "size": [2, 16, 16], "most_rows": 8}
    moving["validation_share"] = 0.3
    solids = {"source": "solids", "size": [8, 8, 8], "most_rows": 8, "validation_share": 0.3}
    volumes = {"source": "in/volumes.npz", "validation_share": 0.3}
    latent = {"source": "in/large.parquet", "size": [16, 16], "validation_share": 0.3}
    edm = {
        "process": {"kind": "edm"},
        "times": "log_normal",
        "sampling": {"steps": 2, "method": "heun"},
    }
    none = "unconditional-image-generation"
    short = {"budget": "4 steps", "save_every": 2}
    spoken = {**sounds, "templates": ["a {label} tone", "a tone that is {label}"]}
    draws: dict[str, dict[str, Any]] = {
        "draw-class": drawing(augment={"flip": 0.5}, average=0.9),
        "draw-plain": drawing(average=0, accumulate=2, optim={"kind": "adamw", "adamw_lr": 0.02}),
        "draw-discrete": drawing(process={"kind": "discrete"}, weight="min_snr"),
        "draw-velocity": drawing(process={"kind": "discrete"}, target="v_prediction"),
        "draw-edm": drawing(**edm),
        "draw-sample": drawing(target="sample", times="logit_normal"),
        "draw-text": drawing(**text),
        "draw-scenes": drawing(**text, data={**SCENES, "validation_share": 0.3}),
        "draw-none": drawing(none, data={**SCENES, "validation_share": 0.3}),
        "draw-latent": drawing(data=latent, autoencoder="runs/coder", model={**SHAPE, "patch": 2}),
        "draw-audio": drawing("class-to-audio", data=sounds, model={**SHAPE, "patch": 2}),
        "draw-video": drawing("class-to-video", data=moving, model={**SHAPE, "patch": [2, 4, 4]}),
        "draw-volume": drawing("class-to-volume", data=solids),
        "draw-arrays": drawing("text-to-volume", data=volumes, text=WORDS,
                               tokenizer={"vocab_size": 100}, model={**SHAPE, "patch": 2}),
        "draw-nothing-audio": drawing("unconditional-audio-generation", data=sounds, **short,
                                      model={**SHAPE, "patch": 2}),
        "draw-nothing-volume": drawing("unconditional-volume-generation", data=solids, **short),
        "draw-nothing-video": drawing("unconditional-video-generation", data=moving, **short,
                                      model={**SHAPE, "patch": [2, 4, 4]}),
        "draw-told-video": drawing("text-to-video", data=moving, text=WORDS, **short,
                                   tokenizer={"vocab_size": 120},
                                   model={**SHAPE, "patch": [2, 4, 4]}),
        "draw-told-audio": drawing("text-to-audio", data=spoken, text=WORDS, **short,
                                   tokenizer={"vocab_size": 100}, model={**SHAPE, "patch": 2}),
        "draw-init": drawing(init="runs/draw-class", model={}, seed=4),
        "draw-bf16": drawing(precision="bf16"),
    }  # fmt: skip
    draws["draw-reader"] = drawing(
        **{**text, "text": {"encoder": "runs/draw-words", "frozen": True}}
    )
    reader = {
        "budget": "2 steps",
        "model": {"layout": "distilbert", "width": 16, "layers": 1, "heads": 2},
        "data": {"source": "in/sentences"},
        "tokenizer": {"kind": "wordpiece", "vocab_size": 120},
        "context": 32,
        "batch_size": 4,
        "log_every": 1,
        "precision": "fp32",
    }
    train(LANE, "draw-words", reader)
    for name, values in draws.items():
        train(LANE, name, values)
    judges()
    make(LANE, "published-drawings", publish)
    imagined()
    for name in ("draw-class", "draw-text", "draw-latent", "draw-audio", "coder", "coder-codes"):
        line(LANE, f"info-{name}", "info", f"runs/{name}", "--json")
    line(LANE, "info-published", "info", "made/dit", "--json")

    for name in ("draw-class", "draw-latent"):
        line(LANE, f"evaluate-{name}", "evaluate", f"runs/{name}", "in/small.parquet", "--judge",
             "runs/judge", "--samples", "6", "--json", *FP32)  # fmt: skip
    line(LANE, "evaluate-clip", "evaluate", "runs/draw-text", "in/small.parquet", "--clip",
         "runs/draw-clip", "--samples", "4", "--json", *FP32)  # fmt: skip
    line(LANE, "evaluate-coder", "evaluate", "runs/coder", "in/few", "--json", *FP32)
    call(LANE, "pipelines", pipelines)
    call(LANE, "api-copies", copies)


def judges() -> None:
    """A network that tells classes of pictures apart, and one that knows words."""
    how = {"log_every": 1, "precision": "fp32", "device": "cpu", "batch_size": 8}
    shape = {"image_size": 16, "patch": 8, "width": 16, "layers": 1, "heads": 2}
    classes = {"train": "in/large.parquet", "columns": {"label": "label"}, "validation_share": 0.3}
    judge = {"task": "image-classification", "model": {"layout": "vit", **shape}, "epochs": 1}
    train(LANE, "judge", {**judge, "data": classes, **how}, "finetune")
    text = {"width": 16, "layers": 1, "heads": 2, "context": 24}
    clip = {"model": {"layout": "clip", "embed": 8, "image": shape, "text": text}}
    clip |= {"budget": "2 steps", "tokenizer": {"vocab_size": 300}, "evaluate_pairs": 20}
    train(LANE, "draw-clip", {**clip, "data": {"source": "in/photos"}, **how})


def imagined() -> None:
    """`bedstone imagine` in every way."""

    def draw(name: str, model: str, *words: str) -> None:
        out = f"drawn/{name}"
        line(LANE, f"imagine-{name}", "imagine", f"runs/{model}", *words, "--out", out, *FP32,
             "--json", files=[out])  # fmt: skip

    draw("class", "draw-class", "0", "2", "--count", "2", "--seed", "4", "--steps", "3")
    for method in METHODS:
        draw(method, "draw-class", "1", "--count", "1", "--method", method, "--steps", "3")
        draw(f"{method}-discrete", "draw-discrete", "1", "--count", "1", "--method", method,
             "--steps", "3")  # fmt: skip
    for name in ("draw-edm", "draw-velocity", "draw-sample", "draw-plain", "draw-init", "draw-bf16",
                 "draw-latent"):  # fmt: skip
        draw(name, name, "1", "--count", "2", "--guidance", "3")
    draw("karras", "draw-edm", "1", "--count", "1", "--spacing", "karras", "--steps", "4")
    draw("interval", "draw-class", "1", "--count", "1", "--interval", "0.1,0.8", "--rescale", "0.5")
    draw("text", "draw-text", "a picture all in red", "--count", "2", "--negative", "blue")
    draw("size", "draw-text", "red", "--count", "1", "--size", "16x8")
    draw("scenes", "draw-scenes", "a red circle", "--count", "1", "--strip", "drawn/strip.png")
    draw("reader", "draw-reader", "a picture all in red", "--count", "1", "--show-steps")
    draw("none", "draw-none", "--count", "3")
    draw("audio", "draw-audio", "low", "--count", "2")
    draw("video", "draw-video", "0", "--count", "1")
    draw("volume", "draw-volume", "0", "--count", "1")
    draw("arrays", "draw-arrays", "a thing", "--count", "1")
    photo = ("--image", "in/photo.png")
    draw("from-picture", "draw-text", "red", "--count", "1", *photo, "--strength", "0.5")
    draw("painted", "draw-text", "red", "--count", "1", *photo, "--mask", "in/mask.png")
    draw("variations", "draw-text", "--variations", "in/photo.png", "--count", "2", "--strength",
         "0.2")  # fmt: skip
    draw("latent-picture", "draw-latent", "1", "--count", "1", *photo, "--strength", "0.5")
    draw("between", "draw-text", "red", "--between", "blue", "--count", "3")
    draw("between-seeds", "draw-none", "--between", "9", "--count", "3")
    draw("story-file", "draw-text", "--story", "in/story.txt")
    draw("story", "draw-text", "red", "blue", "--style", "all in green")
    line(LANE, "imagine-one", "imagine", "runs/draw-class", "1", "--count", "1", "--out", "one.png",
         "--enlarge", "3", *FP32, files=["one.png"])  # fmt: skip
    asked = {"text-to-image": ("draw-text", "red"), "class-to-image": ("draw-class", "1")}
    asked |= {"class-to-audio": ("draw-audio", "low"), "class-to-video": ("draw-video", "0")}
    asked |= {"class-to-volume": ("draw-volume", "0"), "text-to-volume": ("draw-arrays", "a thing")}
    asked |= {"text-to-video": ("draw-told-video", "a red circle")}
    asked |= {"text-to-audio": ("draw-told-audio", "a low tone")}
    for task, (model, what) in asked.items():
        out = f"drawn/run-{task}"
        line(LANE, f"run-{task}", "run", task, f"runs/{model}", what, "--option", f"out={out}",
             "--option", "seed=3", "--json", *FP32, files=[out])  # fmt: skip
    for kind in ("audio", "video", "volume"):
        out = f"drawn/{kind}-of-nothing"
        line(LANE, f"run-nothing-{kind}", "run", f"unconditional-{kind}-generation",
             f"runs/draw-nothing-{kind}", "--option", f"out={out}", *FP32, files=[out])  # fmt: skip
    line(LANE, "run-unconditional", "run", "unconditional-image-generation", "runs/draw-none",
         "--option", "out=drawn/alone", *FP32, files=["drawn/alone"])  # fmt: skip
    line(LANE, "run-image-to-image", "run", "image-to-image", "runs/draw-text", "in/photo.png",
         "--option", "prompt=red", "--option", "strength=0.5", "--option", "out=drawn/changed",
         "--json", *FP32, files=["drawn/changed"])  # fmt: skip
    line(LANE, "imagine-published", "imagine", "made/dit", "3", "207", "--count", "1", "--steps",
         "4", "--out", "drawn/published", "--json", *FP32, files=["drawn/published"])  # fmt: skip


def publish() -> dict[str, Any]:
    """A tiny random pipeline as diffusers writes it."""
    import diffusers
    import torch

    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 4}
    shape |= {"in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 1000}
    torch.manual_seed(7)
    network = diffusers.DiTTransformer2DModel(norm_type="ada_norm_zero", norm_num_groups=2, **shape)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    coder = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )
    schedule = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True)
    diffusers.DiTPipeline(network.eval(), coder.eval(), schedule).save_pretrained("made/dit")
    coder.save_pretrained("made/coder")
    return {"made": ["coder", "dit"]}


def pipelines() -> Any:
    import bedstone

    found: dict[str, Any] = {}
    draw = bedstone.pipeline(
        "text-to-image", "runs/draw-text", num_inference_steps=3, guidance_scale=3.0, device="cpu"
    )
    found["one"] = draw("a picture all in red", seed=4)
    found["several"] = draw(["red", "blue"], num_images_per_prompt=2, negative_prompt="green")
    paint = bedstone.pipeline("image-to-image", "runs/draw-text", device="cpu")
    found["painted"] = paint("in/photo.png", prompt="red", mask="in/mask.png")
    hear = bedstone.pipeline("class-to-audio", "runs/draw-audio", device="cpu")
    found["heard"] = hear("low", seed=2)
    return found


def copies() -> Any:
    """What saved copies of opened models hold, and what they say of a picture."""
    import torch
    from kit import folder_of

    import bedstone

    found = {}
    names = ["coder", "coder-codes", "draw-class", "draw-text", "draw-latent", "draw-audio"]
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for path in [f"runs/{name}/model" for name in names] + ["made/dit", "made/coder"]:
        model = bedstone.load(path)
        copy = model.save(Path("copies") / path.replace("/", "-"))
        found[path] = {"copy": folder_of(Path(copy))}
        if "coder" in path:
            with torch.no_grad():
                found[path]["said"] = model.network(x)
    return found
