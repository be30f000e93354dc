"""Supervised fine-tuning of a decoder on conversations, instructions or completions."""

from dataclasses import dataclass
from typing import ClassVar

from bedstone.recipes.supervised import FinetuneRecipe, Supervised
from bedstone.settings import one_of


@dataclass
class SFTRecipe(FinetuneRecipe):
    """Supervised fine-tuning of a decoder on conversations, instructions or completions.

    Attributes as in `FinetuneRecipe`; the task is text-generation.
    """

    method: str = "sft"
    task: str = one_of("text-generation", default="text-generation")
    out: str = "runs/sft"


class SFT(Supervised):
    """A decoder that learns to answer: the first step of InstructGPT (Ouyang et al., 2022)."""

    name = "sft"
    Recipe = SFTRecipe
    tasks: ClassVar[tuple[str, ...]] = ()
