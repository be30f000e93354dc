"""A campaign of hostile files: every value of every JSON file of small models, and bytes of others.

    python tests/hostile/campaign.py [--inputs 2000] [--seed 0] [--kinds PART]

Each input is a copy of a sound folder with one thing changed, opened (and, where it opens, used)
in a process of its own under limits of memory and time. What it did is counted by kind:

    right      refused in one paragraph that names the file, exit code 2
    accepted   opened, and what it gave is finite
    unnamed    refused without the file's name, or in more than 1,200 letters
    traceback  an exception that is no BedstoneError, or a killed process
    slow       over 2 s of processor time (1 s for a sound folder), or hung
    memory     over 1 GB more than a sound folder takes
    wrong      opened without a word although the change must be noticed
"""

import argparse
import collections
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", COLUMNS="200")

import torch
from safetensors.torch import load_file, save_file

import bedstone
import bedstone.cli
import drawings
from bedstone.checkpoints.adapters import adapt, save_adapter
from bedstone.checkpoints.model import Model
from bedstone.data.images.processor import clip_processor, vit_processor
from bedstone.data.text.train_tokenizer import train_bpe, train_clip, train_wordpiece
from bedstone.errors import BedstoneError
from bedstone.models.bert.network import BertConfig
from bedstone.models.bert.network import build as build_bert
from bedstone.models.clip.network import CLIPConfig, TextConfig
from bedstone.models.clip.network import build as build_clip
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.models.vit.network import ViTConfig
from bedstone.models.vit.network import build as build_vit
from bedstone.nn.layers import Pooling
from bedstone.nn.lora import LoraConfig
from encoder_decoders import small_model

TEXT = ["the cat sees a dog and the dog runs"] * 20
SHAPE = {"width": 16, "layers": 2, "heads": 2, "hidden": 32, "context": 24}
VIT = {"image_size": (16, 16), "patch": (8, 8), "width": 16, "layers": 1, "heads": 2, "hidden": 32}

# Values that take the place of one in a JSON file.
VALUES: dict[str, Any] = {
    "huge": 10**9,
    "beyond": 10**30,
    "digits": 10**5000,
    "zero": 0,
    "negative": -1,
    "fraction": 0.5,
    "nan": float("nan"),
    "infinity": float("inf"),
    "null": None,
    "true": True,
    "text": "x",
    "empty text": "",
    "long text": "y" * 5000,
    "nul": "a\0b",
    "surrogate": "\ud800",
    "list": [],
    "list of one": [1],
    "nested list": [[1]],
    "object": {},
    "object of one": {"a": 1},
    "nobody's home": "~nobody42/x",
    "escape": "\x1b[31m",
    "deep": json.loads("[" * 200 + "]" * 200),
}


def sound_folders(home: Path) -> dict[str, Callable[[Path], Any]]:
    """Folders of every kind, and what uses each."""
    bpe, wordpiece = train_bpe(TEXT, 300), train_wordpiece(TEXT, 120)
    size = wordpiece.vocab_size
    for layout in ("qwen3", "gpt2"):
        config = GPTConfig(layout=layout, vocab_size=300, **SHAPE)
        Model(build(config, seed=0).eval(), bpe).save(home / layout)
    labels = HeadConfig("sequence", ("bad", "good"))
    bert = build_bert(BertConfig(vocab_size=size, **SHAPE, head=labels), seed=0)
    Model(bert.eval(), wordpiece).save(home / "bert")
    pooled = BertConfig(layout="bert", vocab_size=size, **SHAPE, head=HeadConfig("pooled"))
    sentence = Model(build_bert(pooled, seed=0).eval(), wordpiece)
    sentence.pooling = Pooling()
    sentence.save(home / "sentence")
    vit = build_vit(ViTConfig(**VIT, head=labels), seed=0)
    Model(vit.eval(), processor=vit_processor(16)).save(home / "vit")
    words = train_clip(TEXT, 300)
    text = TextConfig(vocab_size=320, width=16, layers=1, heads=2, hidden=32, context=8)
    clip = build_clip(CLIPConfig("clip", ViTConfig("clip_vision_model", **VIT), text, 8), seed=0)
    Model(clip.eval(), words, processor=clip_processor(16)).save(home / "clip")
    for layout in ("t5", "marian"):
        small_model(layout, prefixes={"translation": "to de: "}).save(home / layout)
    drawings.drawing("class").save(home / "draw")
    drawings.drawing("class", latent=True).save(home / "latent")
    model = bedstone.load(home / "qwen3")
    adapt(model.network, LoraConfig(rank=2), seed=0)
    save_adapter(model, home / "adapter")
    for record in home.rglob("bedstone.json"):
        record.unlink()  # whose hashes would find every change
    ids = torch.arange(5, 13)[None]

    def generate(folder: Path) -> None:
        run("generate", folder, "the cat", "--max_tokens", "3")

    def classify(folder: Path) -> None:
        run("run", "text-classification", folder, "the cat")

    def translate(folder: Path) -> None:
        run("run", "translation", folder, "the cat", "--precision", "fp32")

    def info(folder: Path) -> None:
        run("info", folder)

    def embed(folder: Path) -> None:
        run("run", "feature-extraction", folder, "the cat")

    def logits(folder: Path) -> None:
        assert bedstone.load(folder).network(ids).isfinite().all()

    return {
        "qwen3": generate,
        "gpt2": logits,
        "bert": classify,
        "sentence": embed,
        "t5": translate,
        "marian": translate,
        "vit": info,
        "clip": info,
        "draw": info,
        "latent": info,
        "adapter": generate,
    }


class Wrong(Exception):
    """What was read isn't what was written."""


def run(*words: Any) -> None:
    """A command; its refusal is raised again."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = bedstone.cli.main([str(word) for word in words])
    if code == 2:
        raise BedstoneError(err.getvalue().rpartition("bedstone: ")[2].strip())  # after warnings
    assert code == 0, err.getvalue()
    assert "nan" not in out.getvalue().lower().split(), out.getvalue()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values stand in a JSON value; of long lists and tables, a few of their entries."""
    if path:
        yield path
    entries = list(value.items() if isinstance(value, dict) else enumerate(value)
                   if isinstance(value, list) else ())  # fmt: skip
    for key, inner in entries if len(entries) <= 40 else [*entries[:2], entries[-1]]:
        yield from places(inner, (*path, key))


def with_value(whole: Any, path: tuple[Any, ...], value: Any) -> Any:
    key, *rest = path
    copy = dict(whole) if isinstance(whole, dict) else list(whole)
    copy[key] = with_value(copy[key], tuple(rest), value) if rest else value
    return copy


def tensor_changes() -> dict[str, Callable[[Path], None]]:
    """Changes of a file of tensors."""

    def rewritten(change: Callable[[dict[str, Any], random.Random], None]) -> Callable[..., None]:
        def apply(path: Path) -> None:
            tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
            change(tensors, random.Random(str(path)))
            save_file(tensors, path)

        return apply

    def each(value: Callable[[Any], Any]) -> Callable[..., None]:
        def change(tensors: dict[str, Any], draw: random.Random) -> None:
            key = draw.choice(sorted(tensors))
            tensors[key] = value(tensors[key])

        return rewritten(change)

    def drop(tensors: dict[str, Any], draw: random.Random) -> None:
        del tensors[draw.choice(sorted(tensors))]

    changes = {
        f"tensor {name}": each(lambda tensor, dtype=dtype: tensor.to(dtype))
        for name, dtype in {
            "int8": torch.int8,
            "int64": torch.int64,
            "bool": torch.bool,
            "float8": torch.float8_e4m3fn,
            "complex": torch.complex64,
        }.items()
    }
    changes |= {
        "tensor nan": each(lambda tensor: torch.full_like(tensor, torch.nan)),
        "tensor infinite": each(lambda tensor: torch.full_like(tensor, torch.inf)),
        "tensor scalar": each(lambda tensor: torch.tensor(0.0)),
        "tensor empty": each(lambda tensor: tensor[:0].clone()),
        "tensor row less": each(lambda tensor: tensor[:-1].clone() if tensor.dim() else tensor + 1),
        "tensor dimension more": each(lambda tensor: tensor[None].clone()),
        "tensor missing": rewritten(drop),
    }
    return changes


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 << 30)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def bytes_of_no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00" + path.read_bytes())


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def twice(path: Path) -> None:
    path.write_bytes(path.read_bytes() * 2)


FILES = {
    "file cut": cut,
    "file empty": emptied,
    "file of 3 GB": sparse,
    "file a pipe": pipe,
    "file a folder": folder,
    "file a link to itself": loop,
    "file no text": bytes_of_no_text,
    "file nested": nested,
    "file twice": twice,
}
# What opens without a word must not.
NOTICED = ("tensor nan", "tensor infinite", "tensor float8", "tensor complex", "tensor bool")
NOTICED += ("tensor int8", "tensor int64", "tensor missing", "file cut", "file of 3 GB")


def inputs(home: Path) -> Iterator[tuple[str, str, Path, Callable[[Path], None]]]:
    """(kind, folder, file in it, change) of every input."""
    for model in sorted(home.iterdir()):
        for path in sorted(path for path in model.rglob("*") if path.is_file()):
            if path.name == "README.md":
                continue
            file = path.relative_to(model)
            for kind, change in FILES.items():
                yield kind, model.name, file, change
            if path.suffix == ".safetensors":
                for kind, change in tensor_changes().items():
                    yield kind, model.name, file, change
            if path.suffix == ".json":
                whole = json.loads(path.read_text())
                for place in places(whole):
                    for name, value in VALUES.items():

                        def change(
                            at: Path, whole: Any = whole, place: Any = place, value: Any = value
                        ) -> None:
                            sys.set_int_max_str_digits(0)
                            at.write_text(json.dumps(with_value(whole, place, value)))
                            sys.set_int_max_str_digits(4300)

                        at = ".".join(str(key) for key in place)[:60]
                        yield f"{path.name}: {name}", model.name, Path(f"{file}#{at}"), change


def outcome(use: Callable[[Path], Any], folder: Path) -> tuple[str, str]:
    """What using a folder did, in a process of its own: its kind and the message."""
    return outcomes([use], folder)[0]


def outcomes(
    uses: Sequence[Callable[[Path], Any]], folder: Path, wall: float = 20, seconds: float = 2.0
) -> list[tuple[str, str]]:
    """What each use of a folder did, in a process of their own, or in another where one ends it.

    Over `seconds` of processor time are slow.
    """
    found: list[tuple[str, str]] = []
    while len(found) < len(uses):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                for use in uses[len(found) :]:
                    signal.alarm(int(wall))
                    os.write(write, json.dumps(_used(use, folder, seconds)).encode() + b"\n")
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            found += [tuple(json.loads(line)) for line in pipe]
        _, status = os.waitpid(child, 0)
        if len(found) < len(uses):
            hung = os.waitstatus_to_exitcode(status) == -signal.SIGALRM
            found.append(("slow" if hung else "traceback", f"ended: {status}"))
    return found


def _used(use: Callable[[Path], Any], folder: Path, seconds: float) -> tuple[str, str]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    try:
        use(folder)
        found, said = "accepted", ""
    except BedstoneError as error:
        said = str(error)
        good = any(path in said for path in (str(folder), folder.name))
        found = "right" if good and len(said) <= 1200 and "\n" not in said else "unnamed"
    except Wrong as error:
        found, said = "wrong", str(error)
    except BaseException:
        found, said = "traceback", traceback.format_exc()[-1500:]
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if found != "traceback" and used > seconds:
        found, said = "slow", f"{used:.1f} s; {said}"
    if found != "traceback" and after.ru_maxrss - before.ru_maxrss > 1 << 20:
        found, said = "memory", f"{(after.ru_maxrss - before.ru_maxrss) >> 10} MB; {said}"
    return found, said[:3000]


LIMIT = 12 << 30  # bytes of addresses of a process, most of which torch never touches


def campaign(count: int, seed: int, part: str, home: Path) -> dict[str, collections.Counter[str]]:
    """Outcomes by kind of `count` inputs, spread evenly over the kinds; failures are printed."""
    uses = sound_folders(home / "sound")
    for name, use in uses.items():
        use(home / "sound" / name)  # so that all that it imports is there before a fork
        found, said = outcome(use, home / "sound" / name)
        assert found == "accepted", (name, found, said)
    by_kind: dict[str, list[Any]] = {}
    for each in inputs(home / "sound"):
        if part in each[0]:
            by_kind.setdefault(each[0], []).append(each)
    draw = random.Random(seed)
    chosen = []
    for kind in sorted(by_kind):
        draw.shuffle(by_kind[kind])
        chosen += by_kind[kind][: -(-count // len(by_kind))]
    draw.shuffle(chosen)
    counts: dict[str, collections.Counter[str]] = {}
    for kind, model, file, change in chosen[:count]:
        copy = Path(shutil.copytree(home / "sound" / model, home / "hostile"))
        try:
            change(copy / str(file).partition("#")[0])
            found, said = outcome(uses[model], copy)
        finally:
            shutil.rmtree(copy)
        if found == "accepted" and kind in NOTICED and file.suffix == ".safetensors":
            found = "wrong"
        counts.setdefault(kind, collections.Counter())[found] += 1
        if found not in ("right", "accepted"):
            print(f"{found}: {kind}: {model}/{file}: {' '.join(said.split())[-400:]}", flush=True)
    return counts


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--inputs", type=int, default=2000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kinds", default="", help="only kinds whose name has this part")
    given = options.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        counts = campaign(given.inputs, given.seed, given.kinds, Path(home))
    columns = ("right", "accepted", "unnamed", "traceback", "slow", "memory", "wrong")
    print(f"{'kind':<48}" + "".join(f"{name:>10}" for name in columns))
    for kind, found in sorted(counts.items()):
        print(f"{kind:<48}" + "".join(f"{found[name]:>10}" for name in columns))
    total = sum(counts.values(), collections.Counter())
    print(f"{'all':<48}" + "".join(f"{total[name]:>10}" for name in columns))
    print(f"{len(counts)} kinds, {sum(total.values())} inputs, {time.monotonic() - began:.0f} s")
    return int(any(total[name] for name in ("traceback", "slow", "memory", "wrong")))


if __name__ == "__main__":
    sys.exit(main())
