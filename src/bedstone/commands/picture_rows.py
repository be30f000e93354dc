"""What fine-tuning on pictures begins with: the network that sees, and labelled pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bedstone.checkpoints.artefact import Model
from bedstone.checkpoints.opening import open_model
from bedstone.data.image_augment import ImageAugment
from bedstone.data.image_processor import plain_processor
from bedstone.data.pair_reader import Reader, open_pairs
from bedstone.data.pairs import PairRows
from bedstone.data.picture_batches import PictureBatches
from bedstone.data.picture_examples import FeatureExamples, PictureExamples, in_batches
from bedstone.data.pictures import decoded
from bedstone.errors import BedstoneError, nearest
from bedstone.inspect.contact_sheet import augmentation_sheet
from bedstone.mapping import from_mapping
from bedstone.models import labelled_tower, vit
from bedstone.models.clip import CLIP
from bedstone.models.labelled_tower import LabelledTowerConfig
from bedstone.models.resnet import ResNetConfig
from bedstone.models.vit import ViTConfig
from bedstone.recipes import FinetuneRecipe
from bedstone.runtime import Precision
from bedstone.tasks.picture_engine import processor_of
from bedstone.train.progress import ProgressBar

FRESH = ("vit", "resnet")
TOGETHER = 64  # pictures that a frozen network sees at a time


def open_picture_model(recipe: FinetuneRecipe) -> Model:
    """The network that a recipe starts from, and its processor: of a CLIP, the image tower; of a
    mapping of sizes, one with fresh weights.

    Raises:
        BedstoneError: it can't be opened, or reads no pictures.
    """
    if isinstance(recipe.model, dict):
        return fresh_model(recipe.model, recipe.seed)
    model = open_model(recipe.model, dtype=torch.float32)
    network = model.network
    if isinstance(network, CLIP):
        network = labelled_tower.labelled_tower(network)
    if not hasattr(network, "features"):
        raise BedstoneError(
            f"model: {recipe.model} is a {model.config.layout}, which reads no pictures; "
            "image-classification needs a ViT, a ResNet or a CLIP."
        )
    processor = processor_of(model)
    return Model(network, record=model.record, path=model.path, processor=processor)


def fresh_model(values: dict[str, Any], seed: int) -> Model:
    """A network with fresh weights by its sizes.

    Raises:
        BedstoneError: a size doesn't fit, or the layout isn't one that can be trained so.
    """
    layout = values.get("layout", "vit")
    if layout not in FRESH:
        raise BedstoneError(
            f"model.layout: {layout!r} can't be trained from scratch on labels"
            f"{nearest(str(layout), FRESH)}."
        )
    sizes = {name: value for name, value in values.items() if name != "layout"}
    network: Any
    if layout == "vit":
        shape = from_mapping(ViTConfig, {**sizes, "layout": layout}, "recipe", "model.")
        network = vit.build(shape, seed=seed)
    else:
        tower = from_mapping(ResNetConfig, sizes, "recipe", "model.")
        network = labelled_tower.build(LabelledTowerConfig("clip_resnet", tower), seed=seed)
    return Model(network, processor=plain_processor(network.config.size))


def open_examples(
    recipe: FinetuneRecipe, model: Model, quiet: bool
) -> tuple[PictureExamples, PictureExamples, PictureExamples | None]:
    """The pictures of a recipe: to learn from, to choose by, to measure on.

    Raises:
        BedstoneError: naming the row that can't be used, or the data that can't be read.
    """
    data = recipe.data
    learnt = _opened(recipe, data.train)
    if data.validation:
        held = _opened(recipe, data.validation)
    else:
        learnt, held = learnt.hold_out(data.validation_share)
    learnt = learnt.take(data.most_rows, recipe.seed)
    tested = _opened(recipe, data.test) if data.test else None
    processor = processor_of(model)
    with ProgressBar("decoding the pictures", quiet=quiet) as bar:

        def examples(rows: PairRows, known: PictureExamples | None = None) -> PictureExamples:
            labels = known.labels if known else data.labels or None
            return PictureExamples(
                rows, processor, labels=labels, known=known is not None, told=bar.update
            )

        train = examples(learnt)
        return train, examples(held, train), examples(tested, train) if tested else None


def _opened(recipe: FinetuneRecipe, name: str) -> PairRows:
    return open_pairs(name, Reader(recipe.data.columns), split=recipe.data.split)


def picture_batches(examples: PictureExamples, recipe: FinetuneRecipe) -> PictureBatches:
    """The endless stream that a recipe learns from, augmented as it asks."""
    return PictureBatches(
        examples,
        recipe.batch_size,
        seed=recipe.seed,
        weights=recipe.class_weights or None,
        augment=augmenter(recipe),
    )


def augmenter(recipe: FinetuneRecipe) -> ImageAugment | None:
    """How a recipe changes its pictures; None where it doesn't."""
    if not recipe.augment:
        return None
    return from_mapping(ImageAugment, recipe.augment, "recipe", "augment.")


def draw_augmented(recipe: FinetuneRecipe, count: int) -> Path:
    """A sheet of some training pictures beside what augmentation makes of them.

    Raises:
        BedstoneError: the model or the pictures can't be read.
    """
    augment = augmenter(recipe)
    assert augment is not None
    processor = processor_of(open_picture_model(recipe))
    rows = _opened(recipe, recipe.data.train).take(count, recipe.seed)
    shown = [processor.fit(decoded(pair)).copy() for pair in rows]
    sheet = Path(recipe.out) / "augmented.png"
    return augmentation_sheet(augment, shown, sheet, seed=recipe.seed)


def freeze_body(network: Any) -> None:
    """Leaves the head alone to be trained."""
    network.requires_grad_(False)
    network.head.requires_grad_(True)


def see(
    model: Model,
    examples: PictureExamples,
    precision: Precision,
    told: Callable[[float], None] = lambda share: None,
) -> FeatureExamples:
    """What the network's head reads of each picture, made once."""
    network = model.network.eval()
    found = []
    with torch.inference_mode(), precision.autocast():
        for batch in in_batches(examples, TOGETHER):
            found.append(network.features(batch.shown.to(precision.device)).float().cpu())
            told(len(found) * TOGETHER / len(examples))
    return FeatureExamples(examples, torch.cat(found).clone())
