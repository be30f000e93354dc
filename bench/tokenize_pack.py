"""Text to packed training windows: Bedstone beside `datasets.map`, and Bedstone's memory.

    python bench/tokenize_pack.py                          # the ratio: 5 rounds, interleaved
    python bench/tokenize_pack.py --memory --gigabytes 1   # one run that prints its memory

Both read the same JSON lines with the same tokenizer (byte-level BPE of 8,192 ids trained on
python-docs), tokenise all documents, set an end token after each, cut windows of 256 and hand out
every one of them once as arrays. The peer does it as its guides say, `map(batched=True)` and then
`group_texts`: as it comes (transformers' tokenizer, one process), and at its best (the bare
tokenizer through `encode_batch_fast`, NumPy grouping, one and two processes, no padding columns).
The gate: the same number of tokens, and the same ids. Caches are written anew in every round.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CONTEXT = 256
VOCABULARY = 8_192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="python-docs", help="text data; any Bedstone source")
    parser.add_argument("--megabytes", type=float, default=50, help="text a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="one run in a process of its own")
    parser.add_argument("--gigabytes", type=float, default=1, help="text of the memory run")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure_memory(*map(Path, options.child))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tokenizer = work / "tokenizer"
        train_tokenizer(tokenizer)
        size = options.gigabytes * 1e9 if options.memory else options.megabytes * 1e6
        written, repeats = write_rows(options.folder, work / "rows.jsonl", size)
        print(
            f"{written / 1e6:.0f} MB of text from {options.folder}"
            + (f", repeated {repeats:.1f} times" if repeats > 1 else "")
        )
        if options.memory:
            command = [sys.executable, __file__, "--child", str(work), str(tokenizer)]
            subprocess.run(command, check=True)
        else:
            compare(work, tokenizer, written, options.rounds)


def train_tokenizer(folder: Path) -> None:
    from bedstone.data.sources import open_source
    from bedstone.data.text.train_tokenizer import train_bpe

    train_bpe(open_source("python-docs").documents(), VOCABULARY).save(folder)


def write_rows(name: str, path: Path, size: float) -> tuple[int, float]:
    """Documents of `name` as JSON lines, from the start again until there are `size` bytes."""
    from bedstone.data.sources import open_source

    source = open_source(name)
    written = once = 0
    with path.open("w") as file:
        while written < size:
            for text in source.documents():
                file.write(json.dumps({"text": text}) + "\n")
                written += len(text.encode())
                if written >= size:
                    break
            once = once or written
    return written, written / once


def ours(work: Path, tokenizer: Path) -> np.ndarray:
    from bedstone.data.sources import open_source
    from bedstone.data.text.causal_lm import PackedBatches
    from bedstone.data.text.token_cache import token_cache
    from bedstone.data.text.tokenizer import Tokenizer

    source = open_source(work / "rows.jsonl")
    cache = token_cache(source, Tokenizer.load(tokenizer), work / "cache", validation_share=0)
    stream = PackedBatches(cache.train, CONTEXT, 16)
    while stream.epoch < 1:
        next(stream)
    return cache.train.tokens


def peer(work: Path, tokenizer: Path, processes: int, best: bool) -> np.ndarray:
    import datasets
    import transformers

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    datasets.disable_progress_bars()
    whole = transformers.AutoTokenizer.from_pretrained(tokenizer)
    eos = whole.eos_token_id
    fast = whole.backend_tokenizer
    fast.encode_special_tokens = True  # as ours: text is never a special token

    def tokenize(rows: dict) -> dict:
        if best:
            encoded = fast.encode_batch_fast(rows["text"], add_special_tokens=False)
            return {"input_ids": [np.array([*each.ids, eos], np.uint16) for each in encoded]}
        encoded = whole(rows["text"], split_special_tokens=True)
        return {"input_ids": [[*ids, eos] for ids in encoded["input_ids"]]}

    def group(rows: dict) -> dict:
        if best:
            joined = np.concatenate(rows["input_ids"])
            count = len(joined) // CONTEXT
            return {"input_ids": list(joined[: count * CONTEXT].reshape(count, CONTEXT))}
        joined = [number for ids in rows["input_ids"] for number in ids]
        count = len(joined) // CONTEXT * CONTEXT
        parts = [joined[at : at + CONTEXT] for at in range(0, count, CONTEXT)]
        return {"input_ids": parts, "labels": [part.copy() for part in parts]}

    common = {"batched": True, "num_proc": processes if processes > 1 else None}
    rows = datasets.load_dataset(
        "json", data_files=str(work / "rows.jsonl"), split="train", cache_dir=str(work / "peer")
    )
    tokens = rows.map(
        tokenize, remove_columns=rows.column_names, load_from_cache_file=False, **common
    )
    if best:
        tokens = tokens.with_format("numpy")
    packed = tokens.map(group, load_from_cache_file=False, **common).with_format("numpy")
    for start in range(0, len(packed), 16):
        packed[start : start + 16]
    flat = tokens.with_format("arrow").data.column("input_ids")
    return np.concatenate([chunk.flatten().to_numpy() for chunk in flat.chunks])


def compare(work: Path, tokenizer: Path, size: int, rounds: int) -> None:
    runs: dict[str, Callable[[], np.ndarray]] = {
        "bedstone": lambda: ours(work, tokenizer),
        "datasets.map, as it comes": lambda: peer(work, tokenizer, 1, best=False),
        "datasets.map, best, 1 process": lambda: peer(work, tokenizer, 1, best=True),
        "datasets.map, best, 2 processes": lambda: peer(work, tokenizer, 2, best=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        tokens = {}
        for name, run in runs.items():
            for folder in ("cache", "peer"):
                shutil.rmtree(work / folder, ignore_errors=True)
            began = time.perf_counter()
            tokens[name] = np.array(run())
            if number:  # the first round pays for imports and a cold disk
                seconds[name].append(time.perf_counter() - began)
        first = tokens["bedstone"]
        for name, found in tokens.items():
            if not np.array_equal(found, first):
                raise SystemExit(f"{name} gives other ids than bedstone: no figure")
    print(f"{'':34}{'MB/s':>8}{'range':>16}{'ratio':>8}{'range':>14}")
    for name, taken in seconds.items():
        rates = sorted(size / 1e6 / each for each in taken)
        ratios = sorted(b / a for a, b in zip(seconds["bedstone"], taken, strict=True))
        print(
            f"{name:34}{statistics.median(rates):8.2f}{rates[0]:8.2f}-{rates[-1]:<7.2f}"
            f"{statistics.median(ratios):8.2f}{ratios[0]:8.2f}-{ratios[-1]:<6.2f}"
        )


def measure_memory(work: Path, tokenizer: Path) -> None:
    from bedstone.data.sources import open_source
    from bedstone.data.text.causal_lm import PackedBatches
    from bedstone.data.text.token_cache import token_cache
    from bedstone.data.text.tokenizer import Tokenizer

    began = time.perf_counter()
    shown = 0

    def show(done: int, _: int | None) -> None:
        nonlocal shown
        if done - shown >= 1e8:
            shown = done
            rate = done / 1e6 / (time.perf_counter() - began)
            print(f"{done / 1e6:6.0f} MB  {rate:5.1f} MB/s  {memory()}", flush=True)

    source = open_source(work / "rows.jsonl")
    print(f"at the start             {memory()}", flush=True)
    cache = token_cache(
        source, Tokenizer.load(tokenizer), work / "cache", validation_share=0.05, progress=show
    )
    took = time.perf_counter() - began
    print(f"{len(cache.train) + len(cache.validation):,} tokens in {took:.0f} s; {memory()}")
    stream = PackedBatches(cache.train, CONTEXT, 16)
    began, count = time.perf_counter(), 0
    while stream.epoch < 1:
        count += next(stream).ids.numel()
    took = time.perf_counter() - began
    print(f"an epoch of windows: {count / took / 1e6:.1f} million tokens/s; {memory()}")


def memory() -> str:
    """This process's own memory now, without mapped files, and its peak with them (MiB)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    own = "?"
    if Path("/proc/self/status").exists():
        status = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        own = f"{int(status['RssAnon'].split()[0]) / 1024:.0f}"
    return f"own {own} MiB, peak with mapped files {peak:.0f} MiB"


if __name__ == "__main__":
    main()
