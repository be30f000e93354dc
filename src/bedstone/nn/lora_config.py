"""What an adapter is made of, and which layers of a network get one."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from bedstone.checks import check_whole
from bedstone.errors import BedstoneError, nearest
from bedstone.nn.quantize import TARGETS, QuantizedLinear
from bedstone.nn.stack import Stack


@dataclass(frozen=True)
class LoraConfig:
    """What an adapter is made of.

    Attributes:
        rank: R, of every adapter that `ranks` doesn't name.
        alpha: numerator of the scale.
        dropout: share of the adapter's input that is dropped in training.
        targets: layers of the blocks by name (q, k, v, out, gate, up, down), or any linear
            layer of the network by its full name. A name that no block has is passed over.
        rslora: whether the scale is alpha / sqrt(rank) in place of alpha / rank.
        ranks, alphas: others than `rank` and `alpha`, by name or full name of the layer.
        shared: layers of one sublayer that read with one A, by name or full name, such as q, k
            and v where the published layout keeps them as one matrix.
        train: modules trained whole and kept with the adapter, by full name: new heads.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS
    rslora: bool = False
    ranks: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    train: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, rank in {"rank": self.rank, **self.ranks}.items():
            check_whole(f"lora.{name}", rank, 1)
        if not 0.0 <= self.dropout < 1.0:
            raise BedstoneError(
                f"lora.dropout: {self.dropout!r} was given; expected 0 or more, below 1."
            )
        if not self.targets:
            raise BedstoneError(f"lora.targets: is empty; name some of {', '.join(TARGETS)}.")

    def shares(self, path: str) -> bool:
        """Whether the layer with that full name reads with its neighbours' A."""
        return path in self.shared or leaf_of(path) in self.shared

    def rank_of(self, path: str) -> int:
        """The rank of the layer with that full name."""
        return self.ranks.get(path, self.ranks.get(leaf_of(path), self.rank))

    def alpha_of(self, path: str) -> float:
        """The alpha of the layer with that full name."""
        return self.alphas.get(path, self.alphas.get(leaf_of(path), self.alpha))

    def scale_of(self, path: str) -> float:
        """What the low-rank term of that layer is multiplied by."""
        rank = self.rank_of(path)
        return self.alpha_of(path) / (math.sqrt(rank) if self.rslora else rank)


def linears(network: nn.Module) -> dict[str, tuple[nn.Module, bool]]:
    """Linear layers by full name, and whether they stand in a block."""
    inside = {
        id(module)
        for stack in network.modules()
        if isinstance(stack, Stack)
        for module in stack.modules()
    }
    return {
        path: (module, id(module) in inside)
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear | QuantizedLinear)
    }


def find_targets(network: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """The layers that a configuration means, by full name.

    Raises:
        BedstoneError: there are none, or some that can't have an adapter of their own.
    """
    known = linears(network)
    for whole in config.train:
        if whole not in dict(network.named_modules()):
            raise BedstoneError(f"lora.train: the network has no module {whole!r}.")
    for target in config.targets:
        if target not in TARGETS and target not in known:
            raise BedstoneError(
                f"lora.targets: {target!r} is no linear layer{nearest(target, TARGETS)}, or the "
                "full name of one."
            )
    found = {
        path: module
        for path, (module, inside) in known.items()
        if path in config.targets or (inside and leaf_of(path) in config.targets)
    }
    owners: dict[int, list[str]] = {}
    for key, parameter in network.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(key)
    for path, module in found.items():
        weight = module._parameters.get("weight")
        if weight is not None and len(owners[id(weight)]) > 1:
            raise BedstoneError(
                f"lora.targets: {path} shares its weight with {owners[id(weight)][0]}, so it "
                "can't have an adapter of its own. Leave it out."
            )
        if any(f"{path}.".startswith(f"{whole}.") for whole in config.train):
            raise BedstoneError(
                f"lora.targets: {path} is trained whole (lora.train = {', '.join(config.train)}); "
                "it can't have an adapter too. Choose one."
            )
    if not found:
        raise BedstoneError(
            f"lora.targets: no block has any of {', '.join(config.targets)}; it has "
            f"{', '.join(sorted({leaf_of(p) for p, (_, inside) in known.items() if inside}))}."
        )
    ranks: dict[str, int] = {}
    for path in found:
        rank = config.rank_of(path)
        if config.shares(path) and ranks.setdefault(parent_of(path), rank) != rank:
            raise BedstoneError(
                f"lora.ranks: {path} has rank {rank}, but it reads with the same A as "
                f"others of {parent_of(path)}; give them one rank."
            )
    return found


def shared_names(network: nn.Module, paths: Iterable[str]) -> tuple[str, ...]:
    """Layers that share, as `LoraConfig.shared` names them: by name where all of that name do."""
    given = dict.fromkeys(paths)
    known = linears(network).items()
    apart = {leaf_of(path) for path, (_, inside) in known if inside and path not in given}
    named = (path if leaf_of(path) in apart else leaf_of(path) for path in given)
    return tuple(dict.fromkeys(named))


def leaf_of(path: str) -> str:
    """`q` of `stack.0.attn.sublayer.q`."""
    return path.rpartition(".")[2]


def parent_of(path: str) -> str:
    """`stack.0.attn.sublayer` of `stack.0.attn.sublayer.q`."""
    return path.rpartition(".")[0]
