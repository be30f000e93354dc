"""Decoding with beams by an encoder-decoder, beside `transformers` and CTranslate2.

    python bench/beam.py [--model FOLDER --texts FILE] [--rows 200] [--beams 5] [--tokens 60]
        [--rounds 5] [--threads N] [--int8] [--small] [--write]

A network of Marian's layout, 4 + 4 layers of width 256, 8,000 words, with random weights whose head
is sharpened, so that beams decide clearly, and of which an end is likely enough that outputs have
lengths of their own; or a saved model and a text file, a source a line. All start from ids, and all
stop at as many ended outputs as beams (early_stopping). `transformers` runs as it comes, in batches
of 32 in the given order, and as is best for it: sorted by length, in the best of several batch
sizes, in bf16 where the processor has it. CTranslate2 runs on weights converted in memory, if the
package is installed; it is no dependency (`pip install ctranslate2`, here or in a folder of
PYTHONPATH).

The contestants take turns; medians are over rounds, ratios are taken within each, of the tokens a
second that each gives. Gates: in fp32 the ids of Bedstone are those of `transformers`, and greedy
ids those of CTranslate2, but for at most 2 % of rows, where two outputs are equally good.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, models
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.data.text.encode import source_ids
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.models.encoder_decoder.config import EncoderDecoderConfig
from bedstone.models.encoder_decoder.network import build
from bedstone.models.encoder_decoder.published import fresh_generation
from bedstone.tasks.text.text2text_generation import Part, Source, Text2TextGeneration
from result import INSTRUCTIONS, Side, add_write, write
from rounds import orders, spread

Ids = list[int]
BATCH = 32  # of transformers as it comes
SIZES = (16, 32, 64, 200)  # of its batches at its best
SHARP, END_BIAS = 4.0, 13.5  # deviation of logits, and how much likelier an end is than another
EQUAL = 0.98
TRIED = 8  # of the rows, so many'th part says whether bf16 is faster


def network(vocabulary: int, width: int, layers: int) -> Model:
    """A random network whose words are t0, t1, ...; the last one pads, the first one ends."""
    config = EncoderDecoderConfig(
        layout="marian",
        vocab_size=vocabulary,
        width=width,
        layers=layers,
        heads=4,
        context=512,
        tied=False,
        dropout=0.0,
        eos_id=0,
        pad_id=vocabulary - 1,
    )
    made = build(config, seed=0).eval()
    with torch.no_grad():
        made.head.out.weight.normal_(std=SHARP * width**-0.5)
        made.head.out.bias[config.eos_id] = END_BIAS
    names = {f"t{number}": number for number in range(vocabulary)}
    backend = tokenizers.Tokenizer(models.WordLevel(names, "t1"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    roles = {"eos_token": "t0", "pad_token": f"t{vocabulary - 1}"}
    backend.add_special_tokens([AddedToken(name, special=True) for name in roles.values()])
    return Model(made, Tokenizer(backend, roles), fresh_generation(made.config))


def random_sources(rows: int, vocabulary: int) -> list[Ids]:
    """Of 5 to 30 tokens, the end token behind them."""
    random = np.random.default_rng(0)
    return [
        [*random.integers(1, vocabulary - 1, size).tolist(), 0]
        for size in random.integers(5, 31, rows)
    ]


def trimmed(ids: Sequence[int], end: int, pad: int) -> Ids:
    """An output without its end token and what follows it."""
    found = [int(each) for each in ids]
    found = found[: found.index(end)] if end in found else found
    return [each for each in found if each != pad]


def ours(
    model: Model, sources: Sequence[Ids], how: argparse.Namespace, precision: str, beams: int
) -> Callable[[], list[Ids]]:
    early = {"early_stopping": True} if beams > 1 else {}
    task = Text2TextGeneration(
        model,
        precision=precision,
        num_beams=beams,
        max_new_tokens=how.tokens,
        return_tensors=True,
        **early,
    )
    rows = [Source("", (Part(ids),)) for ids in sources]
    config = model.config

    def run() -> list[Ids]:
        found = task.results(rows, task.options)
        return [
            trimmed(own[0]["generated_token_ids"], config.eos_id, config.pad_id) for own in found
        ]

    return run


def theirs(
    peer: Any, sources: Sequence[Ids], how: argparse.Namespace, size: int, ordered: bool
) -> Callable[[], list[Ids]]:
    """`transformers` in batches of a size, sorted by length or in the given order."""
    order = list(range(len(sources)))
    if ordered:
        order.sort(key=lambda row: -len(sources[row]))
    start, end, pad = (
        getattr(peer.config, f"{name}_token_id") for name in ("decoder_start", "eos", "pad")
    )

    def run() -> list[Ids]:
        done: list[Ids] = [[] for _ in sources]
        for at in range(0, len(order), size):
            part = order[at : at + size]
            wide = max(len(sources[row]) for row in part)
            ids = torch.full((len(part), wide), pad)
            for row, number in zip(ids, part, strict=True):
                row[: len(sources[number])] = torch.tensor(sources[number])
            keep = torch.arange(wide) < torch.tensor([[len(sources[row])] for row in part])
            with torch.inference_mode():
                found = peer.generate(
                    ids,
                    attention_mask=keep.long(),
                    num_beams=how.beams,
                    max_new_tokens=how.tokens,
                    early_stopping=True,
                    do_sample=False,
                )
            assert (found[:, 0] == start).all()
            for number, row in zip(part, found.tolist(), strict=True):
                done[number] = trimmed(row[1:], end, pad)
        return done

    return run


class _Words:
    """A tokenizer as CTranslate2's converter reads it: words that are only their ids."""

    def __init__(self, count: int, end: int) -> None:
        self.count, self.eos_token, self.unk_token, self.bos_token = count, f"t{end}", "t1", ""

    def get_vocab(self) -> dict[str, int]:
        return {f"t{number}": number for number in range(self.count)}


def ctranslate(
    peer: Any, sources: Sequence[Ids], how: argparse.Namespace, folder: Path, kind: str, beams: int
) -> Callable[[], list[Ids]]:
    """CTranslate2 on the same weights.

    Its loader of Marian takes padding away as the last word; here it stays, and is suppressed.
    """
    import ctranslate2
    from ctranslate2.converters.transformers import MarianMTLoader

    config = peer.config
    if not folder.exists():
        loader = MarianMTLoader()
        loader._remove_pad_weights = lambda spec: None
        spec = loader.get_model_spec(peer)
        words = _Words(config.vocab_size, config.eos_token_id)
        loader.set_config(spec.config, peer, words)
        spec.config.decoder_start_token = f"t{config.decoder_start_token_id}"
        tokens = list(words.get_vocab())
        spec.register_source_vocabulary(tokens)
        spec.register_target_vocabulary(tokens)
        spec.validate()
        spec.optimize()
        folder.mkdir()
        spec.save(str(folder))
    translator = ctranslate2.Translator(
        str(folder), compute_type=kind, inter_threads=1, intra_threads=how.threads
    )
    texts = [[f"t{number}" for number in ids] for ids in sources]

    def run() -> list[Ids]:
        found = translator.translate_batch(
            texts,
            beam_size=beams,
            max_batch_size=how.batch,
            min_decoding_length=0,
            max_decoding_length=how.tokens,
            max_input_length=0,
            suppress_sequences=[[f"t{config.pad_token_id}"]],
        )
        return [
            trimmed(
                [int(word[1:]) for word in each.hypotheses[0]],
                config.eos_token_id,
                config.pad_token_id,
            )
            for each in found
        ]

    return run


def fastest(sides: dict[Any, Callable[[], Any]]) -> Any:
    """The name of the side that is fastest, once each."""
    taken = {}
    for name, run in sides.items():
        began = time.perf_counter()
        run()
        taken[name] = time.perf_counter() - began
    return min(taken, key=taken.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--texts", type=Path)
    for name, usual in (("rows", 200), ("beams", 5), ("tokens", 60), ("rounds", 5), ("batch", 32)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--int8", action="store_true", help="int8 of Bedstone and CTranslate2 too")
    parser.add_argument("--small", action="store_true", help="a quick check that it runs")
    add_write(parser)
    how = parser.parse_args()
    shape = (600, 32, 2) if how.small else (8000, 256, 4)
    if how.small:
        how.rows, how.tokens, how.rounds = 6, 8, 1
    torch.set_num_threads(how.threads)
    if how.model is None:
        model, sources = network(*shape), random_sources(how.rows, shape[0])
    else:
        model = bedstone.load(how.model)
        lines = [line for line in how.texts.read_text("utf-8").splitlines() if line.strip()]
        sources = [source_ids(model.tokenizer, line) for line in lines[: how.rows]]
    model.generation.pop("forced_eos_token_id", None)  # CTranslate2 forces none
    with tempfile.TemporaryDirectory() as place:
        model.save(Path(place) / "model")
        peer = AutoModelForSeq2SeqLM.from_pretrained(Path(place) / "model").eval()
        found = dict(peer.generation_config.to_diff_dict())
        kept = ("bad_words_ids", "eos_token_id", "pad_token_id")
        peer.generation_config = GenerationConfig(
            decoder_start_token_id=peer.config.decoder_start_token_id,
            **{name: found[name] for name in kept if name in found},
        )
        fast = any(torch.cpu.get_capabilities().get(each) for each in INSTRUCTIONS)
        low = None
        if fast:
            low = AutoModelForSeq2SeqLM.from_pretrained(
                Path(place) / "model", dtype=torch.bfloat16
            ).eval()
            low.generation_config = peer.generation_config
        peers = {name: each for name, each in (("fp32", peer), ("bf16", low)) if each is not None}
        sizes = [size for size in SIZES if size == min(SIZES) or size < 2 * len(sources)]
        some = sources[: max(len(sources) // TRIED, 1)]
        kind = fastest({name: theirs(each, some, how, BATCH, True) for name, each in peers.items()})
        size = fastest({size: theirs(peers[kind], sources, how, size, True) for size in sizes})
        sides: dict[str, Callable[[], list[Ids]]] = {
            "bedstone": ours(model, sources, how, "fp32", how.beams),
            "transformers": theirs(peer, sources, how, BATCH, ordered=False),
            f"transformers {kind}, batches of {size}": theirs(
                peers[kind], sources, how, size, True
            ),
        }
        if how.int8:
            sides["bedstone int8"] = ours(model, sources, how, "int8", how.beams)
        if importlib.util.find_spec("ctranslate2") is not None:
            given = peer, sources, how, Path(place) / "ctranslate2"
            sides["ctranslate2"] = ctranslate(*given, "float32", how.beams)
            greedy = ctranslate(*given, "float32", 1)(), ours(model, sources, how, "fp32", 1)()
            equal = sum(one == other for one, other in zip(*greedy, strict=True)) / len(sources)
            print(f"greedy outputs of ctranslate2: {equal:.1%} are equal")
            assert equal >= EQUAL, "its weights are others"
            if how.int8:
                sides["ctranslate2 int8"] = ctranslate(*given, "int8", how.beams)
        else:
            print("ctranslate2 isn't installed, and left out")
        report(sides, how)


def report(sides: dict[str, Callable[[], list[Ids]]], how: argparse.Namespace) -> None:
    outputs = {name: run() for name, run in sides.items()}  # a warm-up too
    wanted = outputs["transformers"]
    words = {name: sum(map(len, found)) for name, found in outputs.items()}
    mean = words["transformers"] / len(wanted)
    print(f"{len(wanted)} sources, outputs of {mean:.1f} tokens in the mean")
    equal = {
        name: sum(one == other for one, other in zip(found, wanted, strict=True)) / len(wanted)
        for name, found in outputs.items()
    }
    assert equal["bedstone"] >= EQUAL, f"only {equal['bedstone']:.1%} of the outputs are equal"
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for order in orders(list(sides), how.rounds):
        for name in order:
            began = time.perf_counter()
            sides[name]()
            taken[name].append(time.perf_counter() - began)
    for name, seconds in taken.items():
        rate = [words[name] / each for each in seconds]
        mine = [words["bedstone"] / each for each in taken["bedstone"]]
        ratio = [a / b for a, b in zip(mine, rate, strict=True)]
        print(
            f"{name:34}{statistics.median(seconds):8.2f} s {spread(rate, 0):>24} tokens/s  "
            f"equal {equal[name]:.1%}  bedstone {spread(ratio, 2)} x as fast"
        )
    if how.write:
        record = {
            name: Side(seconds, words[name], {"equal": equal[name]})
            for name, seconds in taken.items()
        }
        write(how.write, "beam", "tokens", record, rows=how.rows, beams=how.beams)


if __name__ == "__main__":
    main()
