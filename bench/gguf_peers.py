"""A GGUF file in Bedstone, transformers and llama.cpp: opening, equal tokens, perplexity, pace.

    pip install xllamacpp      # carries llama.cpp; without it, that side is left out
    python bench/gguf_peers.py FILE.gguf --part tokens
    python bench/gguf_peers.py FILE.gguf --part load
    python bench/gguf_peers.py FILE.gguf --part perplexity --windows 40

`tokens`: greedy text of 20 prompts in fp32 on the same dequantised weights; llama.cpp runs the file
that `bedstone export --quantize f32` makes of them. `load`: seconds and the peak of memory of
opening, each in a process of its own. `perplexity`: WikiText-2, test, in windows of 1,024 tokens
that don't overlap.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import bedstone
from bedstone.checkpoints.gguf import save_gguf
from bedstone.data.text.chat import render
from bedstone.generation.sampling import Sampling
from bedstone.generation.text import encode_prompt, write
from bedstone.nn.quantize import quantize, weights_of
from result import SHARED

PROMPTS = (
    "What is the capital of France?", "Name three primary colours.", "Write a haiku about rain.",
    "Explain what a prime number is.", "Who wrote Hamlet?", "Translate 'good morning' to Spanish.",
    "What is 12 times 12?", "List two uses of copper.", "Why is the sky blue?",
    "Write a Python function that adds two numbers.", "What does DNA stand for?",
    "Give me a synonym of happy.", "How many legs has a spider?", "What is photosynthesis?",
    "Name a river in Egypt.", "Summarise: the cat sat on the mat and slept.",
    "What is the boiling point of water?", "Write one sentence about the sea.",
    "Which planet is the largest?", "Say hello to a new colleague.",
)  # fmt: skip
NEW = 32
WINDOW = 1024


def ours(path: Path, prompts: list[Any]) -> list[list[int]]:
    model = bedstone.load(path, dtype=torch.float32)
    return [
        write(model.network, model.tokenizer, [each], Sampling(max_tokens=NEW, temperature=0.0),
              eos=model.end_ids)[0].ids
        for each in prompts
    ]  # fmt: skip


def by_transformers(path: Path, prompts: list[list[int]], end: int) -> list[list[int]]:
    network = open_transformers(path)
    found = []
    for each in prompts:
        ids = network.generate(
            torch.tensor([each]), attention_mask=torch.ones(1, len(each)).long(), do_sample=False,
            max_new_tokens=NEW, eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
        found.append(ids[0, len(each) :].tolist())
    return found


def open_transformers(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


def by_llama_cpp(path: Path, prompts: list[list[int]]) -> list[str]:
    """The texts, as its server gives them."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup = str(path), 2048, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    params.cpuparams.poll, params.verbosity = 0, 0
    server = xllamacpp.Server(params)
    found = []
    for each in prompts:
        said = server.handle_completions(
            {
                "prompt": each,
                "n_predict": NEW,
                "temperature": 0.0,
                "top_k": 1,
                "cache_prompt": False,
            }
        )
        found.append(said.get("content") or said["choices"][0]["text"])
    return found


def tokens(path: Path) -> dict[str, Any]:
    model = bedstone.load(path, dtype=torch.float32)
    known = model.tokenizer
    messages = [[{"role": "user", "content": each}] for each in PROMPTS]
    texts = [render(known, each) for each in messages]
    prompts = [encode_prompt(known, each) for each in texts]
    mine = ours(path, texts)
    theirs = by_transformers(path, prompts, min(model.end_ids))
    result: dict[str, Any] = {
        "prompts": len(prompts),
        "equal to transformers": sum(a == b for a, b in zip(mine, theirs, strict=True)),
    }
    if importlib.util.find_spec("xllamacpp"):
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder, "f32.gguf")
            save_gguf(model, whole, "f32")
            said = by_llama_cpp(whole, prompts)
        answers = [known.decode(each) for each in mine]
        same = [a.strip() == b.strip() for a, b in zip(answers, said, strict=True)]
        result["equal to llama.cpp, F32"] = sum(same)
        result["differing"] = [
            (a, b) for a, b, equal in zip(answers, said, same, strict=True) if not equal
        ]
    result["first"] = known.decode(mine[0])
    return result


def load(path: Path) -> dict[str, Any]:
    """Each side in a process of its own."""
    found = {}
    for side in ("held", "fp32", "transformers"):
        words = [sys.executable, __file__, str(path), "--part", "load", "--side", side]
        found[side] = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return found


def load_one(path: Path, side: str) -> dict[str, Any]:
    if side == "transformers":
        import transformers.models.llama.modeling_llama  # noqa: F401
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.perf_counter()
    if side == "transformers":
        network = open_transformers(path)
    else:
        network = bedstone.load(path, dtype=torch.float32 if side == "fp32" else None).network
    taken = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    _, size = weights_of(network)
    return {"seconds": taken, "peak": peak, "bytes": size, "peak over bytes": peak / size}


@torch.inference_mode()
def perplexity(path: Path, windows: int, text: Path) -> dict[str, Any]:
    model = bedstone.load(path, dtype=torch.float32)
    ids = torch.tensor(model.tokenizer.encode(text.read_text(encoding="utf-8")))
    rows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)[:windows]
    theirs = open_transformers(path)
    sides = {
        "transformers, fp32": lambda row: theirs(row).logits,
        "bedstone, fp32": model.network,
    }
    found = {name: _perplexity(read, rows) for name, read in sides.items()}
    held = bedstone.load(path)
    found["bedstone, the file's own codes"] = _perplexity(held.network, rows)
    for bits in (8, 4):
        network = bedstone.load(path, dtype=torch.float32).network
        quantize(network, bits=bits, group=32)
        found[f"bedstone, int{bits}"] = _perplexity(network, rows)
    return {"windows": len(rows), **found}


def _perplexity(read: Any, rows: torch.Tensor) -> float:
    total = 0.0
    for row in rows:
        logits = read(row[None])[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum"))
    return float(torch.tensor(total / (len(rows) * (WINDOW - 1))).exp())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--part", choices=("tokens", "load", "perplexity"), required=True)
    parser.add_argument("--side", default="")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--text", type=Path, default=SHARED / "text" / "wikitext2-test.txt")
    options = parser.parse_args()
    if options.part == "load":
        found = load_one(options.file, options.side) if options.side else load(options.file)
    elif options.part == "tokens":
        found = tokens(options.file)
    else:
        found = perplexity(options.file, options.windows, options.text)
    print(json.dumps(found, indent=None if options.side else 1))


if __name__ == "__main__":
    main()
