"""Gated cross-attention (Flamingo): a frozen GPT learns to read images.

Alayrac et al., 2022: between the blocks of a frozen language model stand fresh ones that attend to
the states of a frozen image tower.
"""

from dataclasses import dataclass

import torch

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.checkpoints.store import Checkpoint
from bedstone.data.dataset import Dataset
from bedstone.data.images.image_text import FlamingoTexts, ImageTexts, gpt_words
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.image_text import IMAGE_TEXT_TASKS, FlamingoScorer
from bedstone.models.flamingo.network import (
    FLAMINGO,
    OLD_NAMES,
    FlamingoConfig,
    FlamingoGPT,
    build_flamingo,
)
from bedstone.models.gpt.network import GPT
from bedstone.models.published import fresh_processor
from bedstone.models.resnet.network import ResNetTokens
from bedstone.objectives.image_text import flamingo_loss
from bedstone.recipes.image_text import (
    ImageText,
    ImageTextRecipe,
    ImageTextTokenizer,
    LossWeights,
    keep_beams,
)
from bedstone.train.data import Splits
from bedstone.train.loop import Objective
from bedstone.train.run import RunRecipe
from bedstone.train.start import Start, image_tower, take_image

SHAPE = ("layout", "every", "cross_heads")
LARGEST = 0.3  # share of the parameters that may learn


@dataclass
class FlamingoRecipe(ImageTextRecipe):
    """Gated cross-attention between a frozen GPT and a frozen image tower.

    Attributes, as in `ImageTextRecipe`, but for:
        task: image-to-text, visual-question-answering or joint.
        init: the GPT.
        image_init: a model whose picture tower it is to see by: a VLM, a CLIP or a ViT.
        model: `layout` flamingo, `every` and `cross_heads` of `models.flamingo.network`.
    """

    task: str = "visual-question-answering"
    out: str = "runs/sighted"

    def __post_init__(self) -> None:
        RunRecipe.__post_init__(self)
        known = [name for name in IMAGE_TEXT_TASKS if name != "image-text-matching"]
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
        plain = {"smoothing": 0.0, "weights": LossWeights(), "tokenizer": ImageTextTokenizer()}
        for name, usual in plain.items():
            if getattr(self, name) != usual:
                raise BedstoneError(
                    f"{name}: a GPT that sees learns by its own tokens, each counting alike; "
                    "leave it out."
                )


class Flamingo(ImageText):
    """Fresh cross-attention of a frozen GPT to a frozen image tower's states."""

    name = "flamingo"
    Recipe = FlamingoRecipe
    layouts = (FLAMINGO, *OLD_NAMES)
    tasks = tuple(name for name in IMAGE_TEXT_TASKS)
    scorer = FlamingoScorer

    def begin(self, recipe: FlamingoRecipe, checkpoint: Checkpoint | None) -> Model | None:
        if checkpoint is None:
            return None
        model = open_model(checkpoint.path, dtype=torch.float32)
        model.record = {}
        return model

    def parts(self, recipe: FlamingoRecipe) -> dict[str, Model]:
        named = {"text": recipe.init, "image": recipe.image_init}
        return {name: open_model(path, dtype=torch.float32) for name, path in named.items()}

    def texts(self, recipe: FlamingoRecipe, splits: Splits, start: Start) -> None:
        return None  # the GPT's tokenizer stays

    def model(
        self,
        recipe: FlamingoRecipe,
        splits: Splits,
        tokenizer: Tokenizer | None,
        start: Start,
    ) -> Model:
        model: Model = start.model or _fresh(recipe, start.parts["text"], start.parts["image"])
        splits.record["tokenizer"] = tokenizer_of(model).fingerprint()
        keep_beams(model, recipe)
        model.network.learning()
        check_share(model.network)
        return model

    def image_texts(self, rows: Dataset, model: Model) -> ImageTexts:
        return FlamingoTexts(rows, gpt_words(tokenizer_of(model), model.config.context))

    def objective(self, recipe: FlamingoRecipe, model: Model, start: Start) -> Objective:
        return flamingo_loss


def _fresh(recipe: FlamingoRecipe, words: Model, seen: Model) -> Model:
    """The GPT and the tower, with fresh cross-attention between them.

    Raises:
        BedstoneError: a folder holds another kind of model.
    """
    if not isinstance(words.network, GPT):
        raise BedstoneError(
            f"init: {recipe.init} is a {words.config.layout}; only a GPT can be given eyes. Train "
            "one by `bedstone pretrain gpt-scenes`, or name another."
        )
    tower = image_tower(seen.network, recipe.image_init)
    wide = tower.norm.normalized_shape[0] if isinstance(tower, ResNetTokens) else 0
    shape = {name: value for name, value in recipe.model.items() if name != "layout"}
    config = FlamingoConfig(gpt=words.config, image=tower.config, memory_width=wide, **shape)
    network = build_flamingo(config, seed=recipe.seed)
    network.gpt.load_state_dict(words.network.state_dict(), strict=False)
    take_image(network, seen.network)
    processor = seen.processor or fresh_processor(config)
    return Model(network, words.tokenizer, dict(words.generation), processor=processor)


def check_share(network: FlamingoGPT) -> float:
    """The share of the parameters that learns.

    Raises:
        BedstoneError: it is more than may.
    """
    sizes = [(weight.numel(), weight.requires_grad) for weight in network.parameters()]
    share = sum(size for size, learns in sizes if learns) / sum(size for size, _ in sizes)
    if share > LARGEST:
        raise BedstoneError(
            f"model.every: {share:.0%} of the parameters would learn, at most {LARGEST:.0%} may; "
            f"raise it above {network.config.every}, lower cross_heads, or take a larger GPT."
        )
    return share
