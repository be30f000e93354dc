"""The shape of a GPT that sees."""

from dataclasses import dataclass, field, replace

from bedstone.checks import at_least
from bedstone.errors import BedstoneError
from bedstone.models import map_tower
from bedstone.models.gpt_config import GPTConfig
from bedstone.models.heads import HeadConfig
from bedstone.models.resnet import ResNetConfig
from bedstone.models.vit import ViTConfig


@dataclass(frozen=True)
class SightedConfig:
    """The shape of a GPT that sees.

    Attributes:
        layout: sighted_gpt.
        gpt: of the GPT.
        image: of the tower for pictures.
        every: blocks between two that attend to pictures: 1 is all, 2 every second.
        cross_heads: of that attention; 0 takes the GPT's.
        memory_width: of the states that it reads; 0 takes what the tower gives. A ResNet's map is
            brought to it.
    """

    layout: str = "sighted_gpt"
    gpt: GPTConfig = field(default_factory=GPTConfig)
    image: ViTConfig | ResNetConfig = field(default_factory=ViTConfig)
    every: int = 1
    cross_heads: int = 0
    memory_width: int = 0

    def __post_init__(self) -> None:
        if self.layout != "sighted_gpt":
            raise BedstoneError(f"model.layout: {self.layout!r} was given; expected sighted_gpt.")
        at_least(self, 1, "every", prefix="model.")
        at_least(self, 0, "cross_heads", "memory_width", prefix="model.")
        if self.every > self.gpt.layers:
            raise BedstoneError(
                f"model.every: {self.every} was given and the GPT has {self.gpt.layers} blocks; "
                "none would see. Give a number up to that."
            )
        if self.gpt.head.kind != "language":
            raise BedstoneError(
                f"model.gpt: its head is for {self.gpt.head.kind}; only one that writes can be "
                "given eyes. Name a GPT with a language head."
            )
        if isinstance(self.image, ViTConfig) and self.memory_width not in (0, self.image.width):
            raise BedstoneError(
                f"model.memory_width: {self.memory_width} was given and the tower's states are "
                f"{self.image.width} wide; leave it out."
            )
        if isinstance(self.image, ViTConfig) and not self.image.layout:
            object.__setattr__(self, "image", replace(self.image, layout="vit"))
        usual = {
            "cross_heads": self.gpt.heads,
            "memory_width": map_tower.states_width(self.image),
        }
        for name, value in usual.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    @property
    def vocab_size(self) -> int:
        return self.gpt.vocab_size

    @property
    def context(self) -> int:
        """The longest text, in tokens."""
        return self.gpt.context

    @property
    def width(self) -> int:
        return self.gpt.width

    @property
    def layers(self) -> int:
        return self.gpt.layers

    @property
    def heads(self) -> int:
        return self.gpt.heads

    @property
    def head(self) -> HeadConfig:
        return self.gpt.head

    @property
    def seeing(self) -> tuple[int, ...]:
        """The blocks that attend to pictures."""
        return tuple(range(self.every - 1, self.layers, self.every))
