"""The rows of a fine-tuning recipe: read, checked, augmented, tokenised."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bedstone.checkpoints.artefact import Model, tokenizer_of
from bedstone.checkpoints.opening import open_model
from bedstone.commands.picture_rows import draw_augmented, open_examples, picture_batches, see
from bedstone.data.augment_text import AugmentConfig, augment, sample
from bedstone.data.examples import ExampleBatches, Examples, make_examples
from bedstone.data.labelled import LabelledRows, open_rows
from bedstone.data.picture_examples import PictureExamples
from bedstone.errors import BedstoneError
from bedstone.generation.sampling import Sampling
from bedstone.generation.text import write
from bedstone.mapping import from_mapping
from bedstone.recipes import PICTURES, FinetuneRecipe
from bedstone.recipes_told import ToldRecipe
from bedstone.runtime import Precision
from bedstone.tasks.pipeline import pipeline
from bedstone.train.loop import Batches
from bedstone.train.progress import ProgressBar

PARAPHRASE = "Say the sentence in other words.\nSentence: {text}\nIn other words:"
PROPOSALS = 8  # words that a masked model proposes for a place


def show_augmented(recipe: FinetuneRecipe | ToldRecipe, count: int) -> None:
    """Prints some rows beside what augmentation makes of them; of pictures, draws a sheet.

    Raises:
        BedstoneError: the recipe asks for none, or the rows can't be read.
    """
    if isinstance(recipe, ToldRecipe):
        raise BedstoneError("sample: pictures are drawn by bedstone pretrain RECIPE --sample PNG.")
    if not recipe.augment:
        example = "flip: 0.5" if recipe.task == PICTURES else "copies: 1"
        raise BedstoneError(f"augment: the recipe asks for none; give it, as {{{example}}}.")
    if recipe.task == PICTURES:
        print(f"Augmented pictures: {draw_augmented(recipe, count)}")
        return
    rows = open_rows(recipe.data.train, columns=recipe.data.columns, split=recipe.data.split)
    config = augment_config(recipe)
    print(sample(rows.rows, config, count, **augment_parts(config, rows)))


@dataclass
class TaskRows:
    """The examples of a recipe: to learn from, to choose by, to measure on."""

    train: Any  # `Examples`, `PictureExamples` or `FeatureExamples`, as for the others
    validation: Any
    test: Any = None

    @classmethod
    def open(cls, recipe: FinetuneRecipe, model: Model, *, quiet: bool = False) -> "TaskRows":
        """Reads, checks, augments and tokenises all rows.

        Raises:
            BedstoneError: naming the file, row and column that can't be used.
        """
        if recipe.task == PICTURES:
            return cls(*open_examples(recipe, model, quiet))
        data = recipe.data

        def opened(name: str) -> LabelledRows:
            return open_rows(name, columns=data.columns, split=data.split)

        learnt = opened(data.train)
        if data.validation:
            held = opened(data.validation)
        else:
            learnt, held = learnt.hold_out(data.validation_share)
        if data.most_rows:
            learnt = learnt.take(data.most_rows, recipe.seed)
        if recipe.augment:
            learnt = augmented(learnt, recipe)
        tokenizer = tokenizer_of(model)
        limit = min(recipe.limit or model.config.context, model.config.context)

        def examples(rows: LabelledRows, known: Examples | None = None) -> Examples:
            return make_examples(
                recipe.task,
                rows,
                tokenizer,
                labels=known.head[1] if known else data.labels or None,
                problem=known.head[2] if known else recipe.problem,
                limit=limit,
                stride=recipe.stride,
                known=known is not None,
            )

        with ProgressBar("reading the rows", quiet=quiet):
            train_rows = examples(learnt)
            validation = examples(held, train_rows)
            test = examples(opened(data.test), train_rows) if data.test else None
        return cls(train_rows, validation, test)

    def batches(self, recipe: FinetuneRecipe, reads: str) -> Batches:
        """The endless stream that the recipe learns from; `reads` is which token the head does."""
        if isinstance(self.train, PictureExamples):
            return picture_batches(self.train, recipe)
        return ExampleBatches(
            self.train,
            recipe.batch_size,
            reads=reads,
            seed=recipe.seed,
            weights=recipe.class_weights or None,
        )

    def seen(self, model: Model, precision: Precision, *, quiet: bool = False) -> "TaskRows":
        """Of pictures what the frozen network sees, computed once."""
        with ProgressBar("looking at the pictures", quiet=quiet) as bar:
            parts = (self.train, self.validation, self.test)
            return TaskRows(*(part and see(model, part, precision, bar.update) for part in parts))


def augment_config(recipe: FinetuneRecipe) -> AugmentConfig:
    """How a recipe asks for new rows."""
    return from_mapping(AugmentConfig, recipe.augment, "recipe", "augment.")


def augmented(rows: LabelledRows, recipe: FinetuneRecipe) -> LabelledRows:
    """The rows, and new ones made from them as the recipe asks."""
    config = augment_config(recipe)
    return rows.with_rows(list(augment(rows.rows, config, **augment_parts(config, rows))))


def augment_parts(config: AugmentConfig, rows: LabelledRows) -> dict[str, Any]:
    """The models that the recipe names for new words and paraphrases, as functions.

    Raises:
        BedstoneError: a model can't be opened, or can't do what it is named for.
    """
    parts: dict[str, Any] = {"columns": list(rows.columns.values()) or None}
    if config.fill:
        parts["propose"] = proposer(open_model(config.fill))
    if config.paraphrase:
        parts["paraphrase"] = paraphraser(open_model(config.paraphrase))
    return parts


def proposer(model: Model) -> Callable[[list[str], int], list[str]]:
    """Words that fit a place, by a masked language model."""
    fill = pipeline("fill-mask", model)
    mask = tokenizer_of(model).settings["mask_token"]

    def propose(words: list[str], place: int) -> list[str]:
        hidden = [*words[:place], mask, *words[place + 1 :]]
        found = fill(" ".join(hidden), top_k=PROPOSALS)
        return [each["token_str"].strip() for each in found]

    return propose


def paraphraser(model: Model) -> Callable[[list[str]], list[str]]:
    """One paraphrase of each text, by a model that writes."""
    if model.config.head.kind != "language" or not getattr(model.network, "causal", False):
        raise BedstoneError(
            f"augment.paraphrase: {model.path} doesn't write text; name a GPT that follows "
            "instructions."
        )
    tokenizer = tokenizer_of(model)

    def paraphrase(texts: list[str]) -> list[str]:
        prompts = [PARAPHRASE.format(text=text) for text in texts]
        longest = 2 * max(len(tokenizer.encode(text)) for text in texts) + 16
        how = Sampling(max_tokens=longest, temperature=0.8, top_p=0.95, stop=("\n",))
        written = write(model.network, tokenizer, prompts, how, eos=model.end_ids)
        return [one.text.strip() for one in written]

    return paraphrase
