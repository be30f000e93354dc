"""How fast a decoder writes here, and how near that is to what memory allows.

Each new token reads every weight once, so the bytes of the weights and the pace of a loop that does
nothing but read (the roof) bound the tokens a second. Measured with random tokens; nothing else
should run beside it.
"""

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bedstone.files import cache_folder
from bedstone.generation.autoregress import decode, prefill, ready
from bedstone.measured import FILE, processor
from bedstone.nn.fast import kernels
from bedstone.nn.fast.decoder import Decoder
from bedstone.nn.fast.pick import pick
from bedstone.runtime import pick_precision

PRECISIONS = ("fp32", "bf16", "int8", "int4")
PICKED = ("auto", "int8", "int4")  # what leaves something to be picked
PROMPT, STEPS, ROWS = 128, 24, 8  # tokens of the prompt, tokens written, rows of a batch
ROOF_BYTES = 2**27


@dataclass(frozen=True)
class Pace:
    """Figures of one precision.

    Attributes:
        precision: by its name.
        backend: engine (nn/fast/native) or torch.
        threads: that work on few rows; None where torch computes.
        megabytes: of weights that a token reads, in 10^6 bytes; None where torch computes.
        tokens: written a second, one row.
        batch: written a second by 8 rows together.
        prompt: tokens of a prompt read a second.
        roof_share: of the bytes a second that a read loop reaches; None where torch computes.
        products, head, rest: microseconds of a token: layers' products, the head's, all else; None
            where torch computes.
    """

    precision: str
    backend: str
    threads: int | None
    megabytes: float | None
    tokens: float
    batch: float
    prompt: float
    roof_share: float | None = None
    products: float | None = None
    head: float | None = None
    rest: float | None = None


def speed(network: Any, *, writes: bool = True) -> dict[str, Any]:
    """The processor, its roof in GB/s, what was picked, and the pace in each precision.

    Args:
        writes: whether it writes text; nothing else has a pace.
    """
    name, flags = processor()
    roof = read_rate()
    return {
        "processor": name,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "has": [each for each in ("avx2", "avx512vnni", "avx512bf16", "amxtile") if each in flags],
        "threads": torch.get_num_threads(),
        "engine": kernels.why_not() or "on",
        "roof_gb_s": roof,
        "picked": [picked(network, each) for each in PICKED],
        "kept_in": str(cache_folder("speed") / FILE),
        "precisions": [asdict(pace(network, each, roof)) for each in PRECISIONS if writes],
    }


def picked(network: Any, name: str) -> dict[str, Any]:
    """What a precision, by its name, comes to for a network, and what was measured."""
    found = pick(network, pick_precision(name, torch.device("cpu")))
    return {"name": name, **asdict(found), "precision": found.precision.name}


def read_rate() -> float:
    """GB a second (10^9 bytes) that a loop on all threads reads; nan without the engine."""
    library = kernels.library()
    if library is None:
        return float("nan")
    data = torch.zeros(ROOF_BYTES // 8, dtype=torch.long)
    best = min(
        _seconds(lambda: library.bedstone_read(data.data_ptr(), len(data), kernels.threads()))
        for _ in range(8)
    )
    return data.nbytes / best / 1e9


@torch.inference_mode()
def pace(network: Any, precision: str, roof: float) -> Pace:
    """The figures of one precision."""
    decoder: Any = ready(network, pick_precision(precision, torch.device("cpu")))
    context, vocabulary = decoder.config.context, decoder.config.vocab_size
    prompt = min(PROMPT, max(1, context - STEPS - 1))
    steps = max(1, min(STEPS, context - prompt - 1))
    made = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (ROWS, prompt), generator=made)
    lengths = torch.full((ROWS,), prompt)

    def written(rows: int) -> tuple[float, float]:
        """Seconds of the prompts, and of one step."""
        cache = decoder.new_cache(rows, prompt + steps)
        began = time.perf_counter()
        logits = prefill(decoder, ids[:rows], lengths[:rows], cache)
        first = time.perf_counter() - began
        each = []
        for _ in range(steps):
            began = time.perf_counter()
            logits = decode(decoder, logits.argmax(-1), cache)
            each.append(time.perf_counter() - began)
        return first, statistics.median(each)

    written(1)  # allocates
    (reading, step), (_, batch_step) = written(1), written(ROWS)
    figures = Pace(precision, "torch", None, None, 1 / step, ROWS / batch_step, prompt / reading)
    if not isinstance(decoder, Decoder):
        return figures
    parts = decoder.seconds()
    return Pace(
        precision, "engine", decoder.few_threads, decoder.nbytes / 1e6, 1 / step,
        ROWS / batch_step, prompt / reading,
        decoder.nbytes / step / 1e9 / roof, 1e6 * parts["products"], 1e6 * parts["head"],
        1e6 * max(step - parts["products"] - parts["head"], 0.0),
    )  # fmt: skip


def _seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
