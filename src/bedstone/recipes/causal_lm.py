"""Learning text: by the next token (GPT), or by what is hidden of it (BERT)."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from bedstone.checkpoints.store import Checkpoint
from bedstone.data.text.causal_lm import evaluation_batches
from bedstone.evaluate.language import text_figures, text_loss
from bedstone.models.bert.network import LAYOUTS as ENCODERS
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.objectives.tokens import next_token_loss
from bedstone.recipes.base import Fresh, PretrainRecipe, TextData, layout_of, plan, pretrain_model
from bedstone.recipes.masked_lm import masked_course
from bedstone.runtime import Precision, pick_device, pick_precision, seed_everything
from bedstone.train.run import RunPlan, RunResult, train
from bedstone.train.schedule import build_schedule, parse_budget


def run_text(
    recipe: PretrainRecipe, run: Path, checkpoint: Checkpoint | None, quiet: bool
) -> RunResult:
    """A new run, or one that goes on from a checkpoint."""
    precision = pick_precision(recipe.precision, pick_device(recipe.device))
    parse_budget(recipe.budget), build_schedule(recipe.schedule)  # before the data is read
    make = masked_course if layout_of(recipe, checkpoint) in ENCODERS else _course
    course = make(recipe, run, precision, checkpoint, quiet)
    return train(recipe, run, course, precision, checkpoint, quiet=quiet)


def _course(
    recipe: PretrainRecipe,
    run: Path,
    precision: Precision,
    checkpoint: Checkpoint | None,
    quiet: bool,
) -> RunPlan:
    """Predicting the next token of text."""
    text = TextData.open(recipe, run, quiet=quiet)
    seed_everything(recipe.seed)
    model = pretrain_model(recipe, text.tokenizer, checkpoint, Fresh(GPTConfig, build))
    model.network.to(precision.device)
    return RunPlan(
        model=model,
        batches=text.batches,
        objective=next_token_loss,
        evaluate=_evaluation(recipe, text, precision),
        data=text.record,
        plan=plan(recipe, model, text.record, precision),
        budget=recipe.budget,
    )


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
