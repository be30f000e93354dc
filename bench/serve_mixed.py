"""Requests of many lengths at once: this server beside static batches, or beside another server.

    python bench/serve_mixed.py --side bedstone [--out /tmp/mixed.json] [--count 64] [--prompt 96]
        [--new 64] [--rounds 3] [--threads 2] [--precision int8] [--model MODEL]
    python bench/serve_mixed.py --side transformers [--dtype bf16]
    python bench/serve_mixed.py --side llama.cpp --peer http://127.0.0.1:8080 [--peer-model NAME]

Each side is a call of its own; it adds its times to the file and prints all that stand there beside
`bedstone`. Requests are --count, the same for all sides: --prompt / 6 to --prompt tokens, then
--new / 4 to --new more, which no end token cuts short. `transformers` is its `generate` in batches
of 8 in the order in which requests come, padded on the left; each batch goes on until its longest
text has ended. Any other name is that of a server with `/v1/completions` that runs already, on this
machine, and takes prompts as ids; it is asked to ignore end tokens and to keep no prompts.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

import bedstone
from result import OURS, processor
from rounds import spread
from served_process import Running, license_ids, piece, post, read

HF = "transformers"
BATCH = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SAME = ("model", "count", "prompt", "new", "threads")  # of all sides of a file


def sizes_of(chosen: argparse.Namespace) -> list[tuple[int, int]]:
    """Tokens of each prompt, and of what follows."""
    chance = random.Random(1)
    return [
        (chance.randint(chosen.prompt // 6, chosen.prompt),
         chance.randint(chosen.new // 4, chosen.new))
        for _ in range(chosen.count)
    ]  # fmt: skip


def rounds_of(chosen: argparse.Namespace, does: Callable[[], None]) -> list[float]:
    """Seconds of each round, after one request's worth of warming up by the caller."""
    seconds = []
    for _ in range(chosen.rounds):
        began = time.perf_counter()
        does()
        seconds.append(time.perf_counter() - began)
        print(f"  {seconds[-1]:.1f} s", flush=True)
    return seconds


def ours(chosen: argparse.Namespace, sizes: list[tuple[int, int]]) -> list[float]:
    chosen.requests = chosen.rows
    with Running(chosen, max_queue=chosen.count) as running:
        prompts = [running.prompt(n, size) for n, (size, _) in enumerate(sizes)]

        async def all_at_once() -> None:
            asks = [running.ask(p, new) for p, (_, new) in zip(prompts, sizes, strict=True)]
            check([read(each) for each in await asyncio.gather(*asks)], sizes)

        return rounds_of(chosen, lambda: asyncio.run(all_at_once()))


def hugging_face(chosen: argparse.Namespace, sizes: list[tuple[int, int]]) -> list[float]:
    from transformers import AutoModelForCausalLM

    model = bedstone.load(chosen.model)
    ids = license_ids(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model")
        peer = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=DTYPES[chosen.dtype])
    peer.generation_config.eos_token_id = None
    peer.generation_config.pad_token_id = 0
    prompts = [piece(ids, n, size) for n, (size, _) in enumerate(sizes)]

    @torch.inference_mode()
    def batch(group: list[list[int]], most: int) -> None:
        wide = max(map(len, group))
        rows = torch.tensor([[0] * (wide - len(each)) + each for each in group])
        mask = torch.tensor([[0] * (wide - len(each)) + [1] * len(each) for each in group])
        found = peer.generate(
            rows, attention_mask=mask, do_sample=False, max_new_tokens=most, min_new_tokens=most
        )
        assert found.shape[1] == wide + most, "texts have other lengths"

    def all_batches() -> None:
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            batch(prompts[part], max(new for _, new in sizes[part]))

    batch(prompts[:1], 2)
    return rounds_of(chosen, all_batches)


def other_server(chosen: argparse.Namespace, sizes: list[tuple[int, int]]) -> list[float]:
    address = urlsplit(chosen.peer)
    if address.hostname not in ("127.0.0.1", "localhost") or not address.port:
        sys.exit(f"--peer: {chosen.peer!r} was given; expected http://127.0.0.1:PORT of a server.")
    port = address.port
    ids = license_ids(bedstone.load(chosen.model))
    bodies = [
        {"model": chosen.peer_model, "prompt": piece(ids, n, size), "max_tokens": new,
         "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        for n, (size, new) in enumerate(sizes)
    ]  # fmt: skip

    async def ask(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        asks = [post(port, "/v1/completions", body) for body in given]
        return [read(each) for each in await asyncio.gather(*asks)]

    asyncio.run(ask(bodies[:1]))
    return rounds_of(chosen, lambda: check(asyncio.run(ask(bodies)), sizes))


def check(found: list[dict[str, Any]], sizes: list[tuple[int, int]]) -> None:
    """Raises AssertionError where a text has another length than was asked for."""
    made = [each["usage"]["completion_tokens"] for each in found]
    assert made == [new for _, new in sizes], f"texts have other lengths: {made}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--side", default=OURS)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "mixed.json")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16", help="of transformers")
    parser.add_argument("--peer", default="", help="the address of another server")
    parser.add_argument("--peer-model", default="model", help="the name that it knows its model by")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=96)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16, help="that bedstone writes side by side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    if chosen.side not in (OURS, HF) and not chosen.peer:
        sys.exit(f"--side {chosen.side}: give the address of its server with --peer.")
    torch.set_num_threads(chosen.threads)
    settings = {name: getattr(chosen, name) for name in SAME}
    known = json.loads(chosen.out.read_text()) if chosen.out.is_file() else {}
    if known.get("settings", settings) != settings:
        sys.exit(f"--out: {chosen.out} holds times of other requests: {known['settings']}.")
    sizes = sizes_of(chosen)
    does = {OURS: ours, HF: hugging_face}.get(chosen.side, other_server)
    side = {"seconds": does(chosen, sizes), "tokens": sum(new for _, new in sizes)}
    if chosen.side in (OURS, HF):
        side["precision"] = chosen.precision if chosen.side == OURS else chosen.dtype
    sides = {**known.get("sides", {}), chosen.side: side}
    record = {"settings": settings, "processor": processor(), "sides": sides}
    chosen.out.write_text(json.dumps(record, indent=1) + "\n")
    for name, each in sides.items():
        rates = [each["tokens"] / taken for taken in each["seconds"]]
        print(f"{name} {each.get('precision', '')}: {spread(rates, 1)} tokens a second")
    middles = {name: statistics.median(each["seconds"]) for name, each in sides.items()}
    for name, middle in middles.items():
        if OURS in middles and name != OURS:
            print(f"{OURS} writes {middle / middles[OURS]:.2f} times as many as {name}")


if __name__ == "__main__":
    main()
