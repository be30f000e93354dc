"""The contestants of `bench/speed.py`: Bedstone, llama.cpp and transformers, each in one dress.

A contestant says how many tokens it decodes or reads a second, and how long a fresh process takes
to its first token; None where it can't. llama.cpp runs through its own tools, built with native
flags, one process a turn: `llama-bench`, `llama-batched-bench`, `llama-completion`. Their decoding
leaves out the choice of a token; Bedstone's and transformers' have it, with a log-softmax.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import Decoder, ready, stream
from bedstone.generation.sampling import Sampling
from bedstone.runtime import pick_precision

Ids = list[int]
# Bytes of a weight where torch computes; the engine counts its own, with scales.
BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 5 / 8}
KINDS = {"fp32": "f32", "bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}  # what is beside it
COMPLETION = ("--no-warmup", "-no-cnv", "--no-display-prompt", "--temp", "0", "-c", "512")
START = """
import sys, torch
folder, precision, threads, prompt = sys.argv[1:]
torch.set_num_threads(int(threads))
import bedstone
from bedstone.generation.autoregress import ready, stream
from bedstone.generation.sampling import Sampling
from bedstone.runtime import pick_precision
model = bedstone.load(folder)
network = ready(model.network, pick_precision(precision, torch.device("cpu")))
ids = model.tokenizer.encode(prompt)
step = next(iter(stream(network, [ids], Sampling(max_tokens=2))))
print(model.tokenizer.decode([step.token]), flush=True)
"""
START_PEER = """
import sys, torch
folder, threads, prompt = sys.argv[1:]
torch.set_num_threads(int(threads))
from transformers import AutoModelForCausalLM, AutoTokenizer
network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
known = AutoTokenizer.from_pretrained(folder)
ids = known(prompt, return_tensors="pt")
made = network.generate(**ids, do_sample=False, max_new_tokens=1, pad_token_id=0)
print(known.decode(made[0, -1:]), flush=True)
"""
TRIES = 5
PROMPT = "The capital of France is"


@dataclass
class Contestant:
    """One way to decode.

    Attributes:
        name: begins with the library.
        size: bytes of weights that are read for each token.
        ids: what it wrote last, its first row.
        warm: seconds of the calls before the rounds, with what they compile.
    """

    name: str
    size: float
    ids: Ids = field(default_factory=list)
    warm: float = 0.0

    def decode(self, prompts: Sequence[Ids], new: int) -> float | None:
        """Tokens of all rows a second, after the first of each."""
        return None

    def prefill(self, prompt: Ids) -> float | None:
        """Tokens of one prompt a second."""
        return None

    def start(self) -> float | None:
        """Seconds from the start of a process to its first token; files are in memory."""
        return None


@dataclass
class Bedstone(Contestant):
    """A network ready for one precision, through `stream`; a folder that a process starts from."""

    network: Any = None
    precision: str = ""
    folder: Path = Path()

    def decode(self, prompts: Sequence[Ids], new: int) -> float | None:
        times, self.ids = [], []
        for step in stream(
            self.network, prompts, Sampling(max_tokens=new, prompt_lookup_num_tokens=0)
        ):
            if step.row == 0:
                self.ids.append(step.token)
            times.append(time.perf_counter())
        first = times[len(prompts) - 1]
        return len(prompts) * (new - 1) / (times[-1] - first)

    def prefill(self, prompt: Ids) -> float | None:
        began = time.perf_counter()
        next(iter(stream(self.network, [prompt], Sampling(max_tokens=2))))
        return len(prompt) / (time.perf_counter() - began)

    def start(self) -> float | None:
        return _until_said(
            [sys.executable, "-c", START, str(self.folder), self.precision, *_last()]
        )


def bedstone(network: Any, folder: Path, precisions: Sequence[str]) -> list[Bedstone]:
    """Bedstone in each precision that it knows."""
    found = []
    for name in precisions:
        if (made := ready_in(network, name)) is not None:
            size = getattr(made, "nbytes", None) or BYTES[name] * matrices(network)
            found.append(
                Bedstone(f"bedstone {name}", size, network=made, precision=name, folder=folder)
            )
    return found


def ready_in(network: Any, precision: str) -> Decoder | None:
    """The network as generation uses it; None where the precision isn't known."""
    try:
        return ready(network, pick_precision(precision, torch.device("cpu")))
    except BedstoneError as error:
        print(f"bedstone {precision} is left out: {error}", flush=True)
        return None


def matrices(network: Any) -> int:
    """Weights of matrices that each token reads: a tied embedding is read once, as the head."""
    named = network.named_parameters(remove_duplicate=False)
    skipped = ("embed.weight", "positions.weight")
    read = {
        id(each): each.numel() for name, each in named if each.dim() > 1 and name not in skipped
    }
    return sum(read.values())


@dataclass
class LlamaCpp(Contestant):
    """A GGUF file, and the folder of llama.cpp's tools."""

    file: Path = Path()
    tools: Path = Path()

    def decode(self, prompts: Sequence[Ids], new: int) -> float | None:
        length = len(prompts[0])
        if len(prompts) == 1:
            return self._bench("-p", "0", "-n", str(new), "-d", str(length))
        tool = self.tools / "llama-batched-bench"
        if not tool.exists():
            return None
        rows = len(prompts)
        room = rows * -(-(length + new) // 256) * 256
        said = run(
            [tool, "-m", self.file, "-t", _threads(), "-npp", length, "-ntg", new, "-npl",
             f"{rows},1", "-c", room, "--output-format", "jsonl"],
            wanted=rf'"pl": {rows},.*"speed_tg": ([\d.]+)',
        )  # fmt: skip
        return float(said)

    def prefill(self, prompt: Ids) -> float | None:
        return self._bench("-p", str(len(prompt)), "-n", "0")

    def start(self) -> float | None:
        tool = self.tools / "llama-completion"
        words = [tool, "-m", self.file, "-t", _threads(), "-n", "1", "-p", PROMPT, *COMPLETION]
        return _until_said(words) if tool.exists() else None

    def _bench(self, *how: str) -> float:
        words = [self.tools / "llama-bench", "-m", self.file, "-t", _threads(), "-r", "1"]
        said = json.loads(run([*words, "-o", "json", *how]))
        return float(said[0]["avg_ts"])


def llama_cpp(tools: Path, files: dict[str, Path]) -> list[LlamaCpp]:
    """llama.cpp on each file, by the name of its kind, as q8_0."""
    return [
        LlamaCpp(f"llama.cpp {kind.upper()}", path.stat().st_size, file=path, tools=tools)
        for kind, path in files.items()
    ]


def make_files(model: Any, tools: Path, stem: Path, precisions: Sequence[str]) -> dict[str, Path]:
    """Bedstone's F32 file, and those that `llama-quantize` makes of it; kept ones are taken."""
    from bedstone.checkpoints.gguf import save_gguf

    found = {}
    whole = stem.with_name(f"{stem.name}-f32.gguf")
    if not whole.exists():
        save_gguf(model, whole, "f32")
    for name in precisions:
        kind = KINDS[name]
        found[kind] = path = stem.with_name(f"{stem.name}-{kind}.gguf")
        if not path.exists():
            run([tools / "llama-quantize", whole, path, kind.upper(), _threads()])
    return found


@dataclass
class Transformers(Contestant):
    """`generate` of transformers, greedy; `options` go to it."""

    network: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None  # that a process starts from

    def decode(self, prompts: Sequence[Ids], new: int) -> float | None:
        times = self._generate(prompts, new)
        return len(prompts) * (new - 1) / (times[-1] - times[0])

    def prefill(self, prompt: Ids) -> float | None:
        began = time.perf_counter()
        return len(prompt) / (self._generate([prompt], 1)[0] - began)

    def start(self) -> float | None:
        if self.folder is None:
            return None
        return _until_said([sys.executable, "-c", START_PEER, self.folder, *_last()])

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[Ids], new: int) -> list[float]:
        """The times at which there were tokens; nothing ends a row before its `new` tokens."""
        ids, times = torch.tensor(prompts), []

        def note(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)

        made = self.network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new,
            pad_token_id=0,
            stopping_criteria=[note],
            **self.options,
        )
        self.ids = made[0, ids.shape[1] :].tolist()
        return times


def transformers(folder: Path, weights: int, *, best: bool) -> list[Transformers]:
    """transformers as it comes, in bf16, and in bf16 compiled with a static cache.

    Args:
        weights: that each token reads, as `matrices` counts them.
    """
    from transformers import AutoModelForCausalLM

    def opened(dtype: torch.dtype) -> Any:
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        network.generation_config.eos_token_id = None
        return network

    name = "transformers bf16"
    found = [
        Transformers("transformers fp32", 4.0 * weights, network=opened(torch.float32)),
        Transformers(name, 2.0 * weights, network=opened(torch.bfloat16)),
    ]
    found[0].folder = folder
    if best:
        network = opened(torch.bfloat16)
        network.forward = torch.compile(network.forward)
        options = {"cache_implementation": "static"}
        found.append(
            Transformers(f"{name} compiled", 2.0 * weights, network=network, options=options)
        )
    return found


def _threads() -> str:
    return str(torch.get_num_threads())


def _last() -> tuple[str, str]:
    return _threads(), PROMPT


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": _threads(), "HF_HUB_OFFLINE": "1"}


def run(words: Sequence[Any], wanted: str = "") -> str:
    """What a tool of llama.cpp says, or the part of it that a pattern wants.

    Its log may lose its last lines as a tool exits (llama.cpp #22142): it is run again then.
    """
    for _ in range(TRIES):
        done = subprocess.run(
            [str(word) for word in words], capture_output=True, text=True, env=_environment()
        )
        if done.returncode:
            break
        if not wanted:
            return done.stdout
        if found := re.search(wanted, done.stdout):
            return found[1]
    sys.exit(
        f"{' '.join(map(str, words))}: exit {done.returncode}, said\n{done.stdout[-2000:]}\n"
        f"{done.stderr[-2000:]}"
    )


def _until_said(words: Sequence[Any]) -> float:
    """Seconds to the first byte that a process says, or to its end where it says nothing.

    The first token may have no text, and llama.cpp's may be lost, as `run` has it.
    """
    began = time.perf_counter()
    with subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        taken = time.perf_counter() - began
        process.stdout.read()
    if process.returncode:
        sys.exit(f"{' '.join(map(str, words))}: exit {process.returncode}")
    return taken
