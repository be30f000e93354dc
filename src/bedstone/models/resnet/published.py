"""OpenAI's names for the tensors of CLIP's ResNets, `visual.*`; a batch norm's are torch's own."""

from collections.abc import Iterator

from bedstone.models.published import Name
from bedstone.models.resnet.network import ResNetConfig

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _conv(conv: str, norm: str, ours: str) -> Iterator[Name]:
    yield Name(f"{conv}.weight", (f"{ours}.conv.weight",))
    for leaf in _NORM:
        yield Name(f"{norm}.{leaf}", (f"{ours}.norm.{leaf}",))


def names_resnet(config: ResNetConfig, theirs: str, ours: str) -> Iterator[Name]:
    """Every tensor; `theirs` and `ours` are what the names begin with."""
    for i in range(3):
        yield from _conv(f"{theirs}.conv{i + 1}", f"{theirs}.bn{i + 1}", f"{ours}.stem.{i}")
    convs = 3 if config.block == "bottleneck" else 2
    expands = config.block == "bottleneck"
    for stage, count in enumerate(config.blocks):
        for i in range(count):
            block, mine = f"{theirs}.layer{stage + 1}.{i}", f"{ours}.stages.{stage}.{i}"
            for n in range(1, convs + 1):
                yield from _conv(f"{block}.conv{n}", f"{block}.bn{n}", f"{mine}.conv{n}")
            if i == 0 and (stage or expands):  # where the map or its channels change
                down = f"{block}.downsample"
                yield from _conv(f"{down}.0", f"{down}.1", f"{mine}.skip.map")
    pool = f"{theirs}.attnpool"
    yield Name(f"{pool}.positional_embedding", (f"{ours}.pool.positions.weight",))
    for leaf, part in {"q_proj": "q", "k_proj": "k", "v_proj": "v", "c_proj": "out"}.items():
        for kind in ("weight", "bias"):
            yield Name(f"{pool}.{leaf}.{kind}", (f"{ours}.pool.attn.{part}.{kind}",))
