"""A decoder's training on many GPUs, on paper: memory, time, bytes, failures, checkpoints, money.

A step's time is what its products take at a share of the peak (`EFFICIENCY`, the one figure that
was fitted), what its elementwise work takes to read and write, and what of the communication isn't
hidden behind both, over what the pipeline leaves of it. All else is counted, or is a constant below
with its reason; those were set beside the same points, so they are no independent test.
`tests/inspect/test_cluster.py` holds it against ten measured points of torchtitan (its file
benchmarks/llama3_h100_202412_torchtitan.md, December 2024): within 15 % in speed, 10 % in memory.
It is a plan, not a measurement: on other hardware than H100 nothing was compared.

Shapes: N weights, D width, L layers, T tokens of a row, V vocabulary. Units: bytes, seconds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from bedstone.errors import BedstoneError, nearest
from bedstone.models.gpt.network import GPTConfig

EFFICIENCY = 0.439  # of the peak that products reach: fitted to the ten points
FLASH = 0.7  # of that, attention: FlashAttention-2 reaches less than a plain product
BANDWIDTH = 0.85  # of memory's, elementwise work
LINK, NETWORK = 0.8, 0.9  # of NVLink's and the network's rates, collectives
HIDDEN = 0.6  # of FSDP's communication, behind computation
ASYNC = 0.25  # of tensor parallelism's, where products are cut up for it (async TP)
# Reads and writes of (tokens x D) in bf16 a layer, forward and backward: norms, rotary positions,
# gated MLP and residuals, counted operation by operation; compiled, each is read and written once.
PASSES = {"eager": 290, "compile": 80}
AGAIN = {"eager": 100, "compile": 30}  # of these, for a layer that is computed twice as a whole
WORKING = {"eager": 50, "compile": 12}  # (tokens x D) that stand while a layer goes backward
LAYER = 30  # likewise where all of a layer was computed again
LOGITS = 16  # bytes of a logit: bf16, fp32, log-softmax, and gradients of both
STATE = 16  # bytes of a weight: fp32, gradient, two moments
CONTEXT = 2.5 * 2**30  # of CUDA, NCCL and fragments
LAUNCH = 5e-6  # seconds that the host takes to start a kernel: a usual figure, not measured here
KERNELS = {"eager": 100, "compile": 40}  # of a layer, forward and backward
NODE = 8  # GPUs of a machine
# Meta's 54 days on 16,384 H100 had 419 unexpected interruptions (Llama 3, 2024, section 3.3.4).
HOURS_A_FAILURE = 16_384 * 54 * 24 / 419
RESTART = 300.0  # until all ranks compute again
PUE = 1.2  # of a data centre: all its energy to that of its machines
WRITING = 2e9  # bytes a second that a machine writes to shared storage
GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU, as its data sheet says it.

    Attributes:
        flops: dense bf16 products a second.
        flops8: likewise fp8; 0 has none.
        memory: bytes.
        bandwidth: bytes a second of its memory.
        link: to the others of its machine, one way.
        network: to other machines.
        watts: at work.
    """

    flops: float
    flops8: float
    memory: float
    bandwidth: float
    link: float
    network: float
    watts: float


GPUS = {
    "a100": Gpu(312e12, 0.0, 80e9, 2.0e12, 300e9, 25e9, 400),
    "h100": Gpu(989e12, 1979e12, 80e9, 3.35e12, 450e9, 50e9, 700),
    "h200": Gpu(989e12, 1979e12, 141e9, 4.8e12, 450e9, 50e9, 700),
    "b200": Gpu(2250e12, 4500e12, 180e9, 8.0e12, 900e9, 50e9, 1000),
}


@dataclass(frozen=True)
class Mesh:
    """How GPUs share a model.

    Attributes:
        fsdp: ranks over which weights and rows are split.
        tensor: over which products are.
        pipeline: stages.
        virtual: parts of each stage that are interleaved.
    """

    fsdp: int
    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1

    @property
    def gpus(self) -> int:
        return self.fsdp * self.tensor * self.pipeline

    @property
    def bubble(self) -> float:
        """Share of the time that stages wait, with as many micro-batches as stages (Narayanan et
        al., 2021, section 2.2)."""
        wait = self.pipeline - 1
        return wait / (self.virtual * self.pipeline + wait)

    def text(self) -> str:
        parts = [f"FSDP {self.fsdp}"]
        parts += [f"TP {self.tensor}"] if self.tensor > 1 else []
        interleaved = f" x {self.virtual} interleaved" if self.virtual > 1 else ""
        parts += [f"PP {self.pipeline}{interleaved}"] if self.pipeline > 1 else []
        return ", ".join(parts)


@dataclass(frozen=True)
class How:
    """How a step is computed.

    Attributes:
        rows: that an FSDP rank has of a batch.
        length: tokens of a row.
        compiled: whether elementwise work is fused.
        fp8: whether the layers' products are in fp8.
        again: what is computed again in the backward pass: `some` (every second product and all
            that is elementwise), or `all` of a layer.
        overlapped: whether tensor parallelism communicates while it computes.
        batches: whose gradients make one step, one after another.
    """

    rows: int
    length: int
    compiled: bool = True
    fp8: bool = False
    again: str = "some"
    overlapped: bool = False
    batches: int = 1

    @property
    def tokens(self) -> int:
        """Of a batch, of an FSDP rank."""
        return self.rows * self.length

    @property
    def mode(self) -> str:
        return "compile" if self.compiled else "eager"


@dataclass(frozen=True)
class Estimate:
    """What a mesh takes.

    Attributes:
        mesh: that it is of.
        memory: bytes of a rank by what they are for.
        times: seconds of a step by what they are spent on; `bubble` is what stages wait.
        sent: bytes that a rank gathers or reduces in a step, by what for.
        tokens: of a step, of all ranks.
    """

    mesh: Mesh
    memory: dict[str, float]
    times: dict[str, float]
    sent: dict[str, float]
    tokens: int

    @property
    def bytes(self) -> float:
        """Of a rank, at most."""
        return sum(self.memory.values())

    @property
    def seconds(self) -> float:
        """Of a step."""
        return sum(self.times.values())

    @property
    def speed(self) -> float:
        """Tokens a second and GPU."""
        return self.tokens / self.seconds / self.mesh.gpus


@dataclass(frozen=True)
class Sizes:
    """Weights of a decoder: of a block's products, of all blocks, and of one table of words."""

    block: int
    blocks: int
    table: int
    tables: int

    @property
    def all(self) -> int:
        return self.blocks + self.table * self.tables


def sizes(config: GPTConfig) -> Sizes:
    """The weights of a decoder; norms and biases, which are few, are left out."""
    kv = config.kv_heads * config.head_width
    attention = config.width * (2 * config.heads * config.head_width + 2 * kv)
    matrices = 2 if config.layout == "gpt2" else 3
    block = attention + matrices * config.width * config.hidden
    table = config.vocab_size * config.width
    return Sizes(block, block * config.layers, table, 1 if config.tied else 2)


def estimate(
    config: GPTConfig, mesh: Mesh, how: How, gpu: Gpu, efficiency: float = EFFICIENCY
) -> Estimate:
    """Memory and time of a step.

    Raises:
        BedstoneError: the mesh doesn't divide the model.
    """
    for name, value, parts in (
        ("heads", config.kv_heads, mesh.tensor),
        ("layers", config.layers, 1 if mesh.pipeline == 1 else 0),
    ):
        if parts and value % parts:
            raise BedstoneError(
                f"model.{name}: {value} can't be split into {parts}. Choose another mesh."
            )
    if mesh.pipeline * mesh.virtual > config.layers:
        raise BedstoneError(f"model.layers: {config.layers} are fewer than the pipeline's stages.")
    memory = _memory(config, mesh, how)
    times, sent = _times(config, mesh, how, gpu, efficiency)
    times = {name: seconds * how.batches for name, seconds in times.items()}
    sent = {name: size * how.batches for name, size in sent.items()}
    return Estimate(mesh, memory, times, sent, how.tokens * mesh.fsdp * how.batches)


def _memory(config: GPTConfig, mesh: Mesh, how: How) -> dict[str, float]:
    """Bytes of the rank with most: the first stage, with its table and all micro-batches."""
    own, unit = sizes(config), 2 * config.width  # of a token's state
    layers = -(-config.layers // mesh.pipeline)
    held: float = own.block * layers + own.table * (own.tables if mesh.pipeline == 1 else 1)
    held /= mesh.tensor
    weights = STATE * held / mesh.fsdp
    if mesh.fsdp == 1:
        gathered = 2 * held
    elif mesh.pipeline > 1:  # stages keep what they gathered, and gradients until the last one
        gathered = (2 + 4) * held
    else:  # two blocks while one computes, and the head with its gradient
        gathered = (2 * 2 * own.block + 6 * own.table) / mesh.tensor
    kv = config.kv_heads * config.head_width / config.width
    kept = 1 if how.again == "all" else 3 + kv + config.hidden / config.width
    activations = how.tokens * layers * kept * unit / mesh.tensor
    micro = how.tokens / mesh.pipeline  # a micro-batch
    working: float = LAYER if how.again == "all" else WORKING[how.mode]
    working *= micro * unit / mesh.tensor
    if mesh.tensor > 1:  # two states with all of the sequence
        working += 2 * micro * unit * (0.5 if how.overlapped else 1)
    ends = 2 * how.tokens * unit / mesh.tensor if mesh.pipeline > 1 else 0.0  # of stages
    logits = LOGITS * config.vocab_size * how.tokens / mesh.tensor if mesh.pipeline == 1 else 0.0
    return {
        "weights and optimizer": weights,
        "gathered": gathered,
        "activations": activations + ends,
        "working": working,
        "logits": logits,
        "context": CONTEXT,
    }


def _times(
    config: GPTConfig, mesh: Mesh, how: How, gpu: Gpu, efficiency: float
) -> tuple[dict[str, float], dict[str, float]]:
    own, unit = sizes(config), 2 * config.width
    parts = mesh.tensor * mesh.pipeline
    full = how.again == "all"
    inner = how.tokens * own.blocks * (8 if full else 7) / parts
    head = how.tokens * own.table * 6 / mesh.tensor  # of the last stage, which the others wait for
    peak = gpu.flops8 if how.fp8 else gpu.flops
    products = inner / (efficiency * peak) + head / (efficiency * gpu.flops)
    # Scores and sums of half the tokens before; backward 2.5 times that.
    flash: float = 2 * how.tokens * how.length * config.heads * config.head_width * config.layers
    flash *= (4.5 if full else 3.5) / parts
    attention = flash / (efficiency * FLASH * gpu.flops)
    passes = PASSES[how.mode] + (AGAIN[how.mode] if full else 0)
    moved = how.tokens * config.layers * passes * unit / parts
    moved += how.tokens * config.vocab_size * (14 if how.compiled else 28) / mesh.tensor
    if how.fp8:  # the largest value is looked for, then each is cast
        moved += how.tokens * config.layers * 50 * unit / parts
    moved += 28 * own.all / mesh.gpus / how.batches  # the optimizer's step
    elementwise = moved / (BANDWIDTH * gpu.bandwidth)
    sent = {"fsdp": 0.0, "tensor": 0.0, "pipeline": 0.0}
    fsdp = tensor = 0.0
    if mesh.fsdp > 1:  # gathered twice in bf16, reduced in fp32
        share = own.all / parts * (1 - 1 / mesh.fsdp)
        times = 1 if mesh.pipeline > 1 else 2
        sent["fsdp"] = (2 * times + 4) * share
        beside = max(NODE // mesh.tensor, 1)  # ranks of a group on one machine share its network
        inside = sent["fsdp"] / (LINK * gpu.link) if beside > 1 else 0.0
        outside = mesh.fsdp * mesh.tensor > NODE
        across = sent["fsdp"] / (beside * NETWORK * gpu.network) if outside else 0.0
        fsdp = max(inside, across) * (1 - HIDDEN)
    if mesh.tensor > 1:
        each = (12 if full else 8) * unit * (1 - 1 / mesh.tensor)
        sent["tensor"] = how.tokens * config.layers / mesh.pipeline * each
        tensor = sent["tensor"] / (LINK * gpu.link) * (1 - ASYNC * how.overlapped)
    if mesh.pipeline > 1:
        sent["pipeline"] = 2 * how.tokens * unit / mesh.tensor * mesh.virtual
    busy = products + attention + elementwise + tensor
    bubble = busy * mesh.bubble / (1 - mesh.bubble)
    launches = (config.layers + 1) * KERNELS[how.mode] * LAUNCH  # a stage's for each micro-batch
    waits = max(0.0, launches - busy)  # what is too small to keep a GPU at work
    found = {"launching": waits, "products": products, "attention": attention}
    found["elementwise"] = elementwise
    return {**found, "tensor parallel": tensor, "fsdp": fsdp, "bubble": bubble}, sent


@dataclass(frozen=True)
class Reliability:
    """What failures and checkpoints cost a run.

    Attributes:
        hours: between two failures, on average.
        writing: seconds that a checkpoint stops the run.
        bytes: of a checkpoint.
    """

    hours: float
    writing: float
    bytes: float

    @property
    def interval(self) -> float:
        """Seconds between checkpoints: sqrt(2 d M) (Young, 1974)."""
        return math.sqrt(2 * self.writing * self.hours * 3600)

    @property
    def lost(self) -> float:
        """Share of the time that is lost: saving, what is computed again, and restarts."""
        between = self.hours * 3600
        again = self.interval / 2 / between
        return self.writing / self.interval + again + RESTART / between


def reliability(config: GPTConfig, gpus: int, writing: float | None = None) -> Reliability:
    """Failures and checkpoints of so many GPUs.

    Args:
        writing: seconds of a checkpoint; None takes the bytes over what the machines write.
    """
    size = float(STATE * sizes(config).all)
    machines = -(-gpus // NODE)
    seconds = size / (machines * WRITING) if writing is None else writing
    return Reliability(HOURS_A_FAILURE / gpus, max(seconds, 1.0), size)


@dataclass(frozen=True)
class ClusterPlan:
    """A plan on paper.

    Attributes:
        config: the model.
        gpu: by its name.
        found: estimates of the meshes that fit into memory, the fastest first.
        tokens: of the whole run.
        safety: failures and checkpoints.
        price: of a GPU's hour; 0 isn't known.
    """

    config: GPTConfig
    gpu: str
    found: list[Estimate]
    tokens: float
    safety: Reliability
    price: float = 0.0

    @property
    def hours(self) -> float:
        """Of the run, with what failures cost."""
        best = self.found[0]
        return self.tokens / best.tokens * best.seconds / 3600 / (1 - self.safety.lost)

    @property
    def kilowatt_hours(self) -> float:
        return self.hours * self.found[0].mesh.gpus * GPUS[self.gpu].watts / 1000 * PUE

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "gpu": self.gpu,
            "parameters": sizes(self.config).all,
            "meshes": [
                {
                    "mesh": each.mesh.text(),
                    "memory_bytes": each.memory,
                    "step_seconds": each.times,
                    "sent_bytes": each.sent,
                    "tokens_per_second_per_gpu": each.speed,
                }
                for each in self.found
            ],
            "tokens": self.tokens,
            "hours": self.hours,
            "hours_between_failures": self.safety.hours,
            "checkpoint": {
                "bytes": self.safety.bytes,
                "seconds": self.safety.writing,
                "every_seconds": self.safety.interval,
                "time_lost": self.safety.lost,
            },
            "kilowatt_hours": self.kilowatt_hours,
            "cost": self.price * self.hours * self.found[0].mesh.gpus or None,
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        best, gpu = self.found[0], GPUS[self.gpu]
        yield (
            f"{sizes(self.config).all / 1e9:.2f}B parameters, {best.tokens:,} tokens a step, on "
            f"{best.mesh.gpus:,} {self.gpu} of {gpu.memory / GIB:.0f} GiB. On paper: products at "
            f"{EFFICIENCY:.0%} of the peak, as ten runs on H100 had it; nothing was measured here."
        )
        yield "mesh | GiB a rank | tokens/s a GPU | step | bubble | GB sent a rank and step"
        for each in self.found[:6]:
            parts = [f"{name} {value / 1e9:.1f}" for name, value in each.sent.items() if value]
            sent = ", ".join(parts)
            bubble = each.times["bubble"] / each.seconds
            yield (
                f"{each.mesh.text()} | {each.bytes / GIB:.1f} | {each.speed:,.0f} | "
                f"{each.seconds:.3g} s | {bubble:.0%} | {sent or 'nothing'}"
            )
        memory = ", ".join(f"{n} {v / GIB:.1f}" for n, v in best.memory.items() if v > 0.05 * GIB)
        yield f"memory of {best.mesh.text()}, GiB: {memory}"
        times = ", ".join(f"{n} {v / best.seconds:.0%}" for n, v in best.times.items() if v)
        yield f"time: {times}"
        safety = self.safety
        yield (
            f"a failure every {safety.hours:.1f} h (419 in 54 days on 16,384 H100: Llama 3); a "
            f"checkpoint has {safety.bytes / 1e9:,.0f} GB and takes {safety.writing:.0f} s; save "
            f"every {safety.interval / 60:.0f} min (Young); {safety.lost:.1%} of the time is lost"
        )
        cost = self.price * self.hours * best.mesh.gpus
        spent = f", {cost:,.0f} at {self.price:g}" if cost else ""
        yield (
            f"{self.tokens:.3g} tokens: {self.hours:,.1f} h, {self.hours * best.mesh.gpus:,.0f} "
            f"GPU hours{spent}, {self.kilowatt_hours:,.0f} kWh at {gpu.watts:.0f} W and a PUE of "
            f"{PUE}"
        )


def meshes(gpus: int) -> Iterator[Mesh]:
    """Ways to share a model between so many GPUs."""
    for tensor in (1, 2, 4, 8):
        for pipeline in (1, 2, 4, 8, 16):
            if gpus % (tensor * pipeline) == 0:
                mesh = Mesh(gpus // (tensor * pipeline), tensor, pipeline)
                yield mesh
                if pipeline > 1:
                    yield replace(mesh, virtual=2)


def plan_cluster(
    config: GPTConfig,
    *,
    gpus: int,
    gpu: str,
    rows: int,
    length: int,
    tokens: float,
    batches: int = 1,
    price: float = 0.0,
) -> ClusterPlan:
    """The plan of a run on many GPUs.

    Args:
        rows: of a batch of all ranks.
        length: tokens of each.
        tokens: of the run.
        batches: of a step (`accumulate`).
        price: of a GPU's hour.

    Raises:
        BedstoneError: the GPU is unknown, or no mesh fits.
    """
    if gpu not in GPUS:
        raise BedstoneError(f"--gpu: {gpu!r} is unknown{nearest(gpu, GPUS)}.")
    if gpus < 1:
        raise BedstoneError(f"--gpus: {gpus} was given; expected one or more.")
    room, found, least = GPUS[gpu].memory, [], math.inf
    for mesh in meshes(gpus):
        if rows % mesh.fsdp or (mesh.pipeline > 1 and rows // mesh.fsdp % mesh.pipeline):
            continue
        for again in ("some", "all"):
            rank = rows // mesh.fsdp
            how = How(rank, length, again=again, overlapped=mesh.tensor > 1, batches=batches)
            try:
                each = estimate(config, mesh, how, GPUS[gpu])
            except BedstoneError:
                continue
            least = min(least, each.bytes)
            if each.bytes <= room:
                found.append(each)
                break
    if not found:
        why = (
            f"the least needs {least / GIB:.0f} GiB a rank"
            if least < math.inf
            else (
                f"a batch of {rows} rows can't be split: take a batch_size that is a multiple "
                f"of {gpus}"
            )
        )
        raise BedstoneError(
            f"--gpus: no mesh of {gpus} {gpu} takes this run: {why}. Change batch_size, context, "
            "model or the number of GPUs."
        )
    found.sort(key=lambda each: -each.speed)
    return ClusterPlan(config, gpu, found, tokens, reliability(config, gpus), price)
