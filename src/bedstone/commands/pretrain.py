"""`bedstone pretrain` and `bedstone resume`: from a recipe to an artefact."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bedstone.checkpoints.artefact import Model, load
from bedstone.checkpoints.store import Checkpoint
from bedstone.commands.text_data import TextData
from bedstone.commands.training import Course, Finished, begin, train
from bedstone.config import PretrainRecipe, from_mapping
from bedstone.data.batches import evaluation_batches
from bedstone.errors import BedstoneError
from bedstone.inspect.evaluate import text_figures, text_loss
from bedstone.models.gpt import build
from bedstone.models.gpt_config import GPTConfig
from bedstone.objectives.tokens import next_token_loss
from bedstone.runtime import Precision, pick_device, pick_precision, seed_everything
from bedstone.train.schedule import build_schedule, parse_budget


def pretrain(recipe: PretrainRecipe, *, quiet: bool = False) -> Finished:
    """Trains as the recipe says, into the folder `recipe.out`.

    The folder holds `recipe.yaml`, `data.json`, `tokenizer/`, `log.jsonl`, `tensorboard/`,
    `checkpoints/`, `curve.png` and, at the end, the artefact in `model/`.

    Raises:
        BedstoneError: the recipe, the data or the disk can't do it, said before training
            starts; or a loss that isn't finite.
    """
    run = Path(recipe.out)
    begin(run)
    return run_pretraining(recipe, run, None, quiet)


def run_pretraining(
    recipe: PretrainRecipe, run: Path, checkpoint: Checkpoint | None, quiet: bool
) -> Finished:
    """A new run, or one that goes on from a checkpoint."""
    precision = pick_precision(recipe.precision, pick_device(recipe.device))
    parse_budget(recipe.budget), build_schedule(recipe.schedule)  # before the data is read
    text = TextData.open(recipe, run, quiet=quiet)
    seed_everything(recipe.seed)
    model = _model(recipe, text, checkpoint)
    model.network.to(precision.device)
    course = Course(
        model=model,
        batches=text.batches,
        objective=next_token_loss,
        evaluate=_evaluation(recipe, text, precision),
        data=text.record,
        plan=_plan(recipe, model, text, precision),
        budget=recipe.budget,
    )
    return train(recipe, run, course, precision, checkpoint, quiet=quiet)


def _model(recipe: PretrainRecipe, text: TextData, checkpoint: Checkpoint | None) -> Model:
    """The checkpoint's, the initial one, or a new one; in fp32, with the run's record."""
    if checkpoint is not None or recipe.init:
        if checkpoint is None and recipe.model:
            raise BedstoneError(
                f"model: the shape of init = {recipe.init} is what it is; leave model out, or init."
            )
        model = load(checkpoint.path if checkpoint else recipe.init, dtype=torch.float32)
        model.tokenizer, model.record = text.tokenizer, {}
        if text.tokenizer.vocab_size > model.config.vocab_size:
            raise BedstoneError(
                f"tokenizer: has {text.tokenizer.vocab_size} tokens, more than the "
                f"{model.config.vocab_size} of {recipe.init}; leave tokenizer.path out."
            )
        return model
    tokens = text.tokenizer.vocab_size
    # Products of matrices are fastest at multiples of 64; small vocabularies stay as they are.
    vocabulary = -(-tokens // 64) * 64 if tokens > 512 else tokens
    shape = {"vocab_size": vocabulary, "context": recipe.context, **recipe.model}
    config = from_mapping(GPTConfig, shape, "recipe", "model.")
    if config.vocab_size < tokens:
        raise BedstoneError(
            f"model.vocab_size: {config.vocab_size} is less than the tokenizer's {tokens} tokens; "
            "leave it out, and it will fit."
        )
    if config.context < recipe.context:
        raise BedstoneError(
            f"context: {recipe.context} tokens a row is more than model.context = {config.context}."
        )
    return Model(build(config, seed=recipe.seed), text.tokenizer)


def _evaluation(
    recipe: PretrainRecipe, text: TextData, precision: Precision
) -> Callable[[nn.Module], dict[str, float]] | None:
    """The callable that measures the network on held-out text; None where there is none."""
    if (split := text.validation) is None or len(split) < 2:
        return None
    most = -(-recipe.evaluate_tokens // (recipe.batch_size * recipe.context)) or None
    tokens_a_byte = len(split) / max(split.bytes, 1)

    def evaluate(network: nn.Module) -> dict[str, float]:
        batches = evaluation_batches(split, recipe.context, recipe.batch_size)
        loss, _ = text_loss(network, next_token_loss, batches, precision, most_batches=most)
        figures = text_figures(loss, tokens_a_byte)
        return {f"validation_{name}": value for name, value in figures.items()}

    return evaluate


def _plan(recipe: PretrainRecipe, model: Model, text: TextData, precision: Precision) -> str:
    """What is about to be spent, said before it is."""
    count = sum(parameter.numel() for parameter in model.network.parameters())
    step = recipe.context * recipe.batch_size * recipe.accumulate
    tokens = text.record.get("train_tokens")
    size = f"{tokens:,} tokens" if tokens else "streamed"
    return (
        f"{recipe.data.source}: {size}, vocabulary {text.tokenizer.vocab_size:,}\n"
        f"{model.config.layout}: {count / 1e6:.2f}M parameters, {precision.name} on "
        f"{precision.device}\n{step:,} tokens a step, budget {recipe.budget}, into {recipe.out}"
    )
