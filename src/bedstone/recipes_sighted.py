"""The recipe of giving eyes to a GPT."""

from dataclasses import dataclass

from bedstone.checks import at_least
from bedstone.config import RunRecipe
from bedstone.errors import BedstoneError, nearest
from bedstone.recipes_told import TASKS, TellingWeights, ToldRecipe, ToldTokenizer

LAYOUT = "sighted_gpt"
SHAPE = ("layout", "every", "cross_heads")
LARGEST = 0.3  # share of the parameters that may learn


@dataclass
class SightedRecipe(ToldRecipe):
    """Giving eyes to a GPT that stays as it is: gated cross-attention alone is trained.

    Attributes, as in `ToldRecipe`, but for:
        task: image-to-text, visual-question-answering or joint.
        init: the GPT.
        image_init: a model whose picture tower it is to see by: a VLM, a CLIP or a ViT.
        model: `layout` sighted_gpt, `every` and `cross_heads` of `models.sighted_config`.
    """

    task: str = "visual-question-answering"
    out: str = "runs/sighted"

    def __post_init__(self) -> None:
        RunRecipe.__post_init__(self)
        known = [name for name in TASKS if name != "image-text-matching"]
        if self.task not in known:
            raise BedstoneError(
                f"task: {self.task!r} isn't one for a GPT that sees{nearest(self.task, known)}."
            )
        for name in self.model:
            if name not in SHAPE:
                raise BedstoneError(
                    f"model.{name}: the shape of the GPT and of the tower is what it is; give "
                    f"{', '.join(SHAPE)} alone."
                )
        for name, what in (("init", "the GPT"), ("image_init", "who has the picture tower")):
            if not getattr(self, name):
                raise BedstoneError(f"{name}: is needed: the folder of {what}.")
        for name in ("text_init", "freeze", "lora"):
            if getattr(self, name):
                raise BedstoneError(
                    f"{name}: a GPT that sees learns its cross-attention alone; leave it out."
                )
        at_least(self, 1, "batch_size", "texts", "evaluate_rows", "beams")
        plain = {"smoothing": 0.0, "weights": TellingWeights(), "tokenizer": ToldTokenizer()}
        for name, usual in plain.items():
            if getattr(self, name) != usual:
                raise BedstoneError(
                    f"{name}: a GPT that sees learns by its own tokens, each counting alike; "
                    "leave it out."
                )
