"""The README's tables of figures, made of the raw results in `bench/results`.

    python bench/tables.py           # puts them between the two marks in README.md
    python bench/tables.py --check   # says whether they are what is there; exit code 1 if not

A row whose raw result isn't there is left out, and so is a cell whose contestant didn't run. A
figure is the median of the rounds, its range in parentheses; a ratio is Bedstone's rate over the
peer's, taken within each round. Of several bf16 peers in one cell, the fastest is shown.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.files import write_text
from result import INSTRUCTIONS, RESULTS, ROOT

README = ROOT / "README.md"
BEGIN = "<!-- figures: made by `python bench/tables.py` from bench/results -->"
END = "<!-- end of the figures -->"
Results = Mapping[str, Mapping[str, Any]]  # name -> what bench/results/NAME.json holds


@dataclass(frozen=True)
class Row:
    """A measurement beside its peers.

    Attributes:
        name: of the file of its raw result.
        text: what is measured, with its unit.
        ours: the contestant that is Bedstone's.
        library: the peer.
        peers: contestants of it by default, in bf16, and in bf16 compiled; of several the fastest.
        digits: of the figures.
        seconds: the figure is the time itself, not the work a second.
        quality: what stands beside both figures to show that the work is the same, and its format.
    """

    name: str
    text: str
    ours: str
    library: str
    peers: tuple[tuple[str, ...], ...]
    digits: int = 1
    seconds: bool = False
    quality: tuple[str, str] | None = None


def in_precisions(name: str, more: str = " bf16") -> tuple[tuple[str, ...], ...]:
    return ((name,), (name + more,), (f"{name}{more} compiled",))


SOLVER = "dpm_solver_2m-10"
TEN = "digits sampled from one DiT, images per second: 10 network evaluations"
DECODING = "decoding with SmolLM2-135M"
LOSS = ("perplexity ratio", ".4f")
MINILM = "embedding sentences with MiniLM, sentences per second"
ROWS = (
    Row(
        "time_to_loss",
        "tinyshakespeare to 1.88 nats per character, seconds (nanoGPT: to the end of its training)",
        "bedstone",
        "nanoGPT",
        (("nanogpt fp32",), *in_precisions("nanogpt")[1:]),
        seconds=True,
        quality=("loss", ".2f"),
    ),
    Row(
        "speed-decode",
        f"{DECODING} in bf16, tokens per second",
        "bedstone bf16",
        "transformers",
        (("transformers fp32",), *in_precisions("transformers")[1:]),
        quality=LOSS,
    ),
    *(
        Row(
            "speed-decode",
            f"{DECODING} in {precision}, tokens per second",
            f"bedstone {precision}",
            f"llama.cpp {kind}",
            ((f"llama.cpp {kind}",),),
            quality=LOSS,
        )
        for precision, kind in (("bf16", "BF16"), ("int8", "Q8_0"), ("int4", "Q4_0"))
    ),
    Row(
        "caption",
        "captioning with BLIP base in bf16, captions per second",
        "bedstone bf16",
        "transformers",
        in_precisions("transformers"),
        digits=2,
        quality=("equal", ".0%"),
    ),
    Row(
        "denoise",
        f"{TEN} in bf16, guided in an interval, against DDIM-50",
        "bedstone tuned-10 bf16",
        "diffusers",
        in_precisions("diffusers ddim-50"),
        quality=("fid", ".1f"),
    ),
    Row(
        "denoise",
        f"{TEN} in fp32, both by the same DPM-Solver++",
        f"bedstone {SOLVER}",
        "diffusers",
        ((f"diffusers {SOLVER}",),),
        quality=("fid", ".1f"),
    ),
    Row(
        "denoise",
        f"{TEN} in bf16, both by the same DPM-Solver++",
        f"bedstone {SOLVER} bf16",
        "diffusers",
        in_precisions(f"diffusers {SOLVER}"),
        quality=("fid", ".1f"),
    ),
    *(
        Row(
            "embed",
            f'{MINILM}, `precision="{precision}"`',
            f"bedstone {precision}",
            "sentence-transformers",
            in_precisions("sentence-transformers"),
            digits=0,
            quality=("cosine", ".6f"),
        )
        for precision in ("fp32", "mixed", "bf16")
    ),
    Row(
        "mlm",
        "masked-LM training, non-padding tokens per second",
        "bedstone",
        "transformers",
        (("trainer",), ("trainer bf16 grouped",)),
        digits=0,
        quality=("loss", ".3f"),
    ),
    Row(
        "lora",
        "LoRA on 124M parameters, non-padding tokens per second",
        "bedstone",
        "peft",
        (("peft",), tuple(f"peft bf16 {how}" for how in ("grouped", "packed", "base packed"))),
        digits=0,
        quality=("loss", ".3f"),
    ),
)
COLUMNS = ("measurement", "Bedstone", "peer by default", "peer in bf16", "in bf16, compiled")


@dataclass(frozen=True)
class Tuned:
    """A fine-tuning task: its data, what scores it, and where.

    Attributes:
        task: of `bench/finetune.py`.
        data: its name.
        metric: its name.
        keys: the figures of it, the second one in parentheses.
        part: the held-out rows.
    """

    task: str
    data: str
    metric: str
    keys: tuple[str, ...]
    part: str = "validation"


TUNED = (
    Tuned("sst2", "SST-2", "accuracy", ("accuracy",)),
    Tuned("conll", "CoNLL-2003", "entity F1, test", ("f1",), "test"),
    Tuned("stsb", "STS-B", "Spearman", ("spearman",)),
    Tuned("cola", "CoLA", "Matthews", ("matthews",)),
    Tuned("policyqa", "PolicyQA, test rows", "F1 (exact match)", ("f1", "exact_match"), "test"),
)
TUNED_COLUMNS = ("data", "metric", "Bedstone", "Trainer", "Bedstone LoRA")
TUNED_COLUMNS += ("steps per second against its fp32", "against its bf16")


def read(folder: Path) -> Results:
    """Every raw result of a folder, by its name."""
    files = sorted(folder.glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def tables(results: Results) -> str:
    """Both tables, each with its heading sentence; nothing where there is no result."""
    parts = []
    if rows := [line for row in ROWS for line in measured(row, results)]:
        machine = processors(results[row.name] for row in ROWS if row.name in results)
        parts.append(
            f"Raw results are in `bench/results`. Interleaved on {machine}; medians (ranges) over "
            "the rounds."
        )
        parts.append("\n".join([*heading((*COLUMNS, "script")), *rows]))
    if rows := [line for task in TUNED for line in tuned(task, results)]:
        names = [name for name in results if name.startswith(("finetune-", "scores-"))]
        machine = processors(results[name] for name in names)
        parts.append(
            "The same MiniLM fine-tuned by recipes of 15 lines and by transformers' Trainer, with "
            "equal epochs, rates and batches: scores by `bench/finetune_peer.py`, pace by "
            f"`bench/finetune.py`, on {machine}."
        )
        parts.append("\n".join([*heading(TUNED_COLUMNS), *rows]))
    return "\n\n".join(parts)


def processors(results: Iterator[Mapping[str, Any]]) -> str:
    """Every processor that was measured on, with what makes bf16 fast there."""
    found = []
    for result in results:
        its = result["processor"]
        has = [name for name in INSTRUCTIONS if its[name]] or ["no fast bf16"]
        found.append(f"{its['name']} ({', '.join(has)}; threads: {its['threads']})")
    return " and ".join(dict.fromkeys(found))


def heading(columns: tuple[str, ...]) -> list[str]:
    return [line(columns), "|" + "---|" * len(columns)]


def line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def measured(row: Row, results: Results) -> Iterator[str]:
    """The row of a measurement, if it was made."""
    result = results.get(row.name)
    if result is None or row.ours not in result["sides"]:
        return
    sides = result["sides"]
    ours = sides[row.ours]
    cells = [row.text, ranged(figure(row, ours), row.digits) + quality(row, ours)]
    for number in range(3):
        names = row.peers[number] if number < len(row.peers) else ()
        ran = [name for name in names if name in sides]
        if not ran:
            cells.append("")
            continue
        best = max(ran, key=lambda name: sides[name]["rate"]["median"])
        its, ratio = sides[best], result["ratios"][row.ours][best]
        text = f"{figure(row, its)['median']:,.{row.digits}f}"
        text = f"{row.library} {text}" if number == 0 else text
        if len(names) > 1:
            text += f", {best.removeprefix(f'{row.library} bf16 ')}"
        cells.append(f"{text}{quality(row, its)}: **{ranged(ratio, 2, 'x')}")
    yield line([*cells, f"`{result['command']}`"])


def figure(row: Row, side: Mapping[str, Any]) -> Mapping[str, float]:
    return side["seconds" if row.seconds else "rate"]


def quality(row: Row, side: Mapping[str, Any]) -> str:
    if row.quality is None or row.quality[0] not in side["quality"]:
        return ""
    key, form = row.quality
    return f", {key.upper() if key == 'fid' else key} {side['quality'][key]:{form}}"


def ranged(values: Mapping[str, float], digits: int, sign: str = "") -> str:
    """The median (least-most); a ratio, which has a sign, bold from where its ** begins."""
    middle, low, high = (f"{values[key]:,.{digits}f}" for key in ("median", "least", "most"))
    return f"{middle}{sign}{'**' if sign else ''} ({low}-{high})"


def tuned(task: Tuned, results: Results) -> Iterator[str]:
    """The row of a fine-tuning task, if its pace was measured."""
    pace = results.get(f"finetune-{task.task}")
    if pace is None:
        return
    cells = [task.data, task.metric]
    for sides in (("bedstone",), ("trainer", "trainer bf16"), ("bedstone lora",)):
        cells.append(next(filter(None, (score(task, side, results) for side in sides)), ""))
    for peer in ("trainer", "trainer bf16"):
        ratio = pace["ratios"]["bedstone"].get(peer)
        cells.append(f"**{ranged(ratio, 1, 'x')}" if ratio else "")
    yield line(cells)


def score(task: Tuned, side: str, results: Results) -> str:
    """The median of a side's seeds, and their range where there are several."""
    runs = [
        result["sides"][side]["quality"][task.part]
        for name, result in results.items()
        if name.startswith(f"scores-{task.task}-") and side in result["sides"]
    ]
    texts = []
    for key in task.keys if runs else ():
        values = [run[key] for run in runs]
        text = f"{statistics.median(values):.3f}"
        if len(runs) > 1:
            text += f", {min(values):.3f}-{max(values):.3f} of {len(runs)} seeds"
        texts.append(text if not texts else f"({text})")
    return " ".join(texts) + (" in bf16" if runs and side.endswith("bf16") else "")


def placed(readme: str, text: str) -> str:
    """The README with the text between its two marks."""
    before, begin, rest = readme.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not (begin and end):
        sys.exit(f"README.md: expected the lines {BEGIN!r} and {END!r}; put them where figures go.")
    return before + begin + (f"{text}\n" if text else "") + end + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    chosen = parser.parse_args()
    present = README.read_text(encoding="utf-8")
    wanted = placed(present, tables(read(RESULTS)))
    if chosen.check and wanted != present:
        sys.exit("README.md: its figures aren't those of bench/results. Run python bench/tables.py")
    if wanted != present:
        write_text(README, wanted)


if __name__ == "__main__":
    main()
