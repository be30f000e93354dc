"""Speed on a small CPU beside llama.cpp and transformers, and what each precision costs in quality.

    python bench/speed.py [MODEL] [--llama FOLDER] [--part decode prefill batch start quality]
        [--rounds 5] [--threads 2] [--write]
    python bench/speed.py random-gpt2 --llama FOLDER --part decode prefill

MODEL is a folder, a name, or `random-llama`, `random-gpt2`: those shapes with random weights.
`--llama` is the `bin` folder of a llama.cpp that was built with native flags:

    cmake -G Ninja -S llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON
    ninja -C build llama-bench llama-batched-bench llama-completion llama-perplexity llama-quantize

Its files are made once, of Bedstone's F32 file by `llama-quantize`, in `--work`. Contestants take
turns in interleaved rounds; medians (ranges) are over rounds, ratios are taken within each.

- decode: tokens a second of one sequence after a prompt of 128, greedy
- prefill: tokens a second of a prompt of 512, to the first token
- batch: the same as decode, with 8 sequences beside 1
- start: seconds from the start of a process to its first token, files in memory
- quality: WikiText-2, test, in windows of 512 (`bench/speed_quality.py`)
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import bedstone
import speed_machine
import speed_quality
import speed_sides
from bedstone.checkpoints.model import Model
from bedstone.models.gpt.network import GPTConfig, build
from result import ROOT, SHARED, Side, add_write, write
from rounds import orders, spread
from speed_sides import BYTES, KINDS, Contestant

MODEL = "smollm2-135m-instruct"
RANDOM = {
    "random-llama": GPTConfig(
        layout="llama", vocab_size=49152, width=576, layers=30, heads=9, kv_heads=3, hidden=1536,
        context=2048, norm_eps=1e-5,
    ),
    "random-gpt2": GPTConfig(
        layout="gpt2", vocab_size=50257, width=768, layers=12, heads=12, hidden=3072, context=1024
    ),
    "random-small": GPTConfig(
        layout="llama", vocab_size=4096, width=64, layers=2, heads=4, kv_heads=2, context=1024
    ),
}  # fmt: skip
FILES = {  # the raw result of each part
    "decode": "speed-decode",
    "prefill": "speed-prefill",
    "batch": "speed-batch",
    "start": "speed-start",
    "quality": "speed-quality",
}
SIDES = ("bedstone", "llama.cpp", "transformers", "compiled")
Rates = dict[str, list[float]]  # of each contestant, in each round


def opened(name: str, work: Path) -> tuple[Model, Path]:
    """The model in fp32, and its folder, in which transformers opens it too."""
    folder = Path(name)
    if not (folder / "config.json").is_file():
        folder = work / name
        if not (folder / "config.json").is_file():
            made = random_model(RANDOM[name]) if name in RANDOM else bedstone.load(name)
            made.to(torch.float32).save(folder)
    return bedstone.load(folder, dtype=torch.float32), folder


@torch.no_grad()
def random_model(config: GPTConfig) -> Model:
    """Weights drawn so that tokens vary and yet rounding to bf16 seldom changes the likeliest."""
    network = build(config, seed=0).eval()
    for name, weight in network.named_parameters():
        if weight.dim() > 1:
            scale = 0.3 if "out." in name or "down." in name else 1.0
            weight.normal_(std=scale * weight.shape[1] ** -0.5)
    network.embed.weight.normal_(std=0.05)
    return Model(network, bedstone.load("python-gpt").tokenizer)


def prompts(model: Model, rows: int, length: int) -> list[list[int]]:
    """Pieces of a text that doesn't change, each beginning elsewhere."""
    ids = model.tokenizer.encode((ROOT / "LICENSE").read_text(encoding="utf-8"))
    ids *= 1 + (rows * 16 + length) // len(ids)
    return [ids[row * 16 : row * 16 + length] for row in range(rows)]


def contestants(chosen: argparse.Namespace, model: Model, folder: Path) -> list[Contestant]:
    """Those of the chosen sides, the most exact first."""
    found: list[Contestant] = []
    if "transformers" in chosen.sides:
        weights = speed_sides.matrices(model.network)
        best = "compiled" in chosen.sides
        found += speed_sides.transformers(folder, weights, best=best)
    if "bedstone" in chosen.sides:
        ours = speed_sides.bedstone(model.network, folder, chosen.precisions)
        for each in ours:
            each.folder = chosen.start_from.get(each.precision, each.folder)
        found += ours
    return found + speed_sides.llama_cpp(chosen.llama, chosen.files)


def take_turns(measures: dict[str, Callable[[], float | None]], rounds: int) -> Rates:
    """What each measures in each round, after one call that isn't counted.

    A contestant whose first call gives nothing has no such figure.
    """
    for name, measure in list(measures.items()):
        began = time.perf_counter()
        if measure() is None:
            del measures[name]
        else:
            print(f"  {name}: warm after {time.perf_counter() - began:.1f} s", flush=True)
    found: Rates = {name: [] for name in measures}
    for number, order in enumerate(orders(list(measures), rounds)):
        for name in order:
            rate = measures[name]()
            assert rate is not None
            found[name].append(rate)
        said = ", ".join(f"{name} {found[name][-1]:.3g}" for name in measures)
        print(f"  round {number + 1}: {said}", flush=True)
    return found


def decode(sides: list[Contestant], model: Model, chosen: argparse.Namespace) -> Rates:
    prompt = prompts(model, 1, chosen.prompt)
    return take_turns(
        {each.name: lambda each=each: each.decode(prompt, chosen.new) for each in sides},
        chosen.rounds,
    )


def prefill(sides: list[Contestant], model: Model, chosen: argparse.Namespace) -> Rates:
    (prompt,) = prompts(model, 1, chosen.long)
    measures = {each.name: lambda each=each: each.prefill(prompt) for each in sides}
    return take_turns(measures, chosen.rounds)


def batch(sides: list[Contestant], model: Model, chosen: argparse.Namespace) -> Rates:
    many = prompts(model, chosen.rows, chosen.prompt)
    measures = {
        f"{each.name} x{rows}": lambda each=each, rows=rows: each.decode(many[:rows], chosen.new)
        for each in sides
        if "compiled" not in each.name  # compiles for minutes, for each number of rows
        for rows in (1, chosen.rows)
    }
    return take_turns(measures, chosen.rounds)


def start(sides: list[Contestant], model: Model, chosen: argparse.Namespace) -> Rates:
    def measure(each: Contestant) -> float | None:
        seconds = each.start()
        return None if seconds is None else 1 / seconds

    return take_turns({each.name: lambda each=each: measure(each) for each in sides}, chosen.rounds)


PARTS = {"decode": decode, "prefill": prefill, "batch": batch, "start": start}


def report(part: str, rates: Rates, sizes: dict[str, float], roof: float) -> None:
    """A line a contestant, then Bedstone's rates over those of its peers."""
    print(f"\n{part}: {'seconds' if part == 'start' else 'tokens a second'}, median (range)")
    for name, found in rates.items():
        shown = spread([1 / rate for rate in found] if part == "start" else found, 2)
        if part == "decode":
            share = sizes[name] * statistics.median(found) / roof
            shown += f", {sizes[name] / 1e6:.0f} MB a token: {share:.0%} of the roof"
        print(f"{name:34}{shown}")
    for ours, theirs in pairs(list(rates)):
        ratios = [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]
        if part == "start":
            print(f"{ours} / {theirs}: {spread([1 / each for each in ratios], 2)}x as long")
        else:
            print(f"{ours} / {theirs}: {spread(ratios, 2)}x")
    print(flush=True)


def pairs(names: list[str]) -> list[tuple[str, str]]:
    """Which names are set beside each other: Bedstone's and each peer's of its kind, rows and one.

    llama.cpp's kind beside a precision is that of as many bits; transformers has fp32 and bf16.
    """
    found = []
    for name in names:
        library, kind, *rows = name.split()
        if rows and rows[-1] != "x1" and "x1" in " ".join(names):
            found.append((name, f"{library} {kind} x1"))
        if library == "bedstone":
            ending = "".join(f" {each}" for each in rows)
            beside = [f"llama.cpp {KINDS[kind].upper()}", "transformers fp32", "transformers bf16"]
            beside += ["transformers bf16 compiled"]
            found += [(name, each + ending) for each in beside if each + ending in names]
    return found


def quality(sides: list[Contestant], model: Model, chosen: argparse.Namespace) -> dict[str, Any]:
    """Of Bedstone's precisions and of llama.cpp's files; `speed_quality.Quality` by name."""
    rows = speed_quality.windows(model, chosen.text, chosen.window, chosen.windows)
    mine = {each.name: each.network for each in sides if isinstance(each, speed_sides.Bedstone)}
    found = {}
    if mine:
        exact = speed_sides.ready_in(model.network, "fp32")
        found = speed_quality.ours(exact, mine, rows, chosen.at_once or chosen.window)
    if chosen.files:
        found |= speed_quality.llama_cpp(chosen.llama, chosen.files, chosen.text, rows)
    print(f"\nquality: {len(rows)} windows of {chosen.window}, their second halves")
    print("\n".join(speed_quality.table(found)), flush=True)
    return found


def options() -> argparse.ArgumentParser:
    def of_precision(text: str) -> tuple[str, Path]:
        name, _, folder = text.partition("=")
        return name, Path(folder)

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=MODEL)
    parser.add_argument("--llama", type=Path, help="the folder of llama.cpp's programs")
    parser.add_argument("--part", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--precisions", nargs="+", choices=BYTES, default=list(BYTES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--long", type=int, default=512, help="tokens of the prompt of prefill")
    parser.add_argument("--rows", type=int, default=8, help="of a batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--windows", type=int, default=20, help="of quality")
    parser.add_argument("--window", type=int, default=512, help="tokens of a window")
    parser.add_argument(
        "--at-once", type=int, help="tokens that a pass of quality reads; 1 decodes"
    )
    parser.add_argument("--text", type=Path, default=SHARED / "text" / "wikitext2-test.txt")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "speed")
    parser.add_argument(
        "--start-from", nargs="+", type=of_precision, default=[], metavar="PRECISION=FOLDER",
        help="what a process of this precision opens, if not the model in fp32",
    )  # fmt: skip
    parser.add_argument("--anyway", action="store_true", help="although other processes run")
    add_write(parser)
    return parser


def main() -> None:
    chosen = options().parse_args()
    chosen.start_from = dict(chosen.start_from)
    torch.set_num_threads(chosen.threads)
    speed_machine.require_quiet(chosen.anyway)
    watch, roof = speed_machine.Watch(), speed_machine.roof(chosen.threads)
    print("\n".join(speed_machine.lines(chosen.threads, roof)), flush=True)
    model, folder = opened(chosen.model, chosen.work)
    chosen.files = {}
    if chosen.llama and "llama.cpp" in chosen.sides:
        stem = chosen.work / folder.name
        chosen.work.mkdir(parents=True, exist_ok=True)
        chosen.files = speed_sides.make_files(model, chosen.llama, stem, chosen.precisions)
    sides = contestants(chosen, model, folder)
    found = {}
    if "quality" in chosen.part and chosen.text.exists():
        found = quality(sides, model, chosen)
    elif "quality" in chosen.part:
        print(f"quality is left out: {chosen.text} isn't there; name a text by --text", flush=True)
    rates = {}
    for part, measure in PARTS.items():
        if part in chosen.part:
            print(f"{part}:", flush=True)
            rates[part] = measure(sides, model, chosen)
    roof = max(roof, speed_machine.roof(chosen.threads))
    sizes = {each.name: each.size for each in sides}
    for part, each in rates.items():
        report(part, each, sizes, roof)
    print(f"other processes used {watch.others():.2f} cores meanwhile")
    if chosen.write:
        keep(chosen, rates, found, sides, roof=roof, others=watch.others())


def keep(
    chosen: argparse.Namespace, rates: dict[str, Rates], found: dict[str, Any],
    sides: list[Contestant], **machine: float,
) -> None:  # fmt: skip
    """The raw results: rates of each round, with what stands beside them."""
    ending = "" if chosen.model == MODEL else f"-{Path(chosen.model).name}"
    settings = machine | {
        "model": Path(chosen.model).name,
        "instructions": speed_machine.instructions(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    names = ("prompt", "new", "long", "rows", "windows", "window", "at_once")
    settings |= {name: getattr(chosen, name) for name in names}
    exact = next((each.ids for each in sides if each.ids), [])
    for part, of in rates.items():
        work = {"prefill": chosen.long, "start": 1}.get(part, chosen.new)
        beside: dict[str, dict[str, Any]] = {name: {} for name in of}
        if part == "decode":
            for each in sides:
                same = [a == b for a, b in zip(each.ids, exact, strict=False)]
                beside[each.name] = {"bytes": each.size}
                beside[each.name] |= {"equal tokens": statistics.mean(same)} if same else {}
                beside[each.name] |= found[each.name].figures if each.name in found else {}
        measured = {
            name: Side([work / rate for rate in rounds], work, beside[name])
            for name, rounds in of.items()
        }
        unit = "starts" if part == "start" else "tokens"
        write(chosen.write, FILES[part] + ending, unit, measured, **settings)
    if found:
        read = {name: Side([each.seconds], each.read, each.figures) for name, each in found.items()}
        write(chosen.write, FILES["quality"] + ending, "tokens", read, **settings)


if __name__ == "__main__":
    main()
