"""Learning to draw: pictures, sounds, videos and volumes out of noise."""

from pathlib import Path

from bedstone.checkpoints.store import Checkpoint
from bedstone.commands.diffusion_data import (
    batches_of,
    drawing_tokenizer,
    latents_of,
    opened,
    texts_of,
)
from bedstone.commands.diffusion_model import (
    begun_with,
    check_sampling,
    drawing_model,
    process_of,
)
from bedstone.commands.diffusion_scoring import DrawingScorer
from bedstone.commands.training import Course, Finished, check_unchanged, train
from bedstone.objectives.diffusion import Denoising
from bedstone.recipes_diffusion import DiffusionRecipe
from bedstone.runtime import pick_device, pick_precision
from bedstone.train.averaging import steady
from bedstone.train.schedule import build_schedule, parse_budget


def run_diffusion(
    recipe: DiffusionRecipe, run: Path, checkpoint: Checkpoint | None, quiet: bool
) -> Finished:
    """A new run, or one that goes on from a checkpoint."""
    precision = pick_precision(recipe.precision, pick_device(recipe.device))
    parse_budget(recipe.budget), build_schedule(recipe.schedule)
    process, aim = process_of(recipe)
    objective = Denoising(process, aim, weight=recipe.weight, times=recipe.times)
    check_sampling(process, recipe.sampling)
    begun = begun_with(recipe, checkpoint)
    learnt, held = opened(recipe, quiet)
    record = {"source": recipe.data.source, **learnt.record()}
    if checkpoint is not None:
        check_unchanged(run, record)
    tokenizer = drawing_tokenizer(recipe, learnt, begun.model or begun.reader, run)
    model = drawing_model(recipe, learnt, tokenizer, begun)
    model.network.to(precision.device)
    if model.autoencoder is not None:
        learnt = latents_of(learnt, model.autoencoder, precision, quiet)
        held = latents_of(held, model.autoencoder, precision, quiet)
    prompts = model.prompts if recipe.condition == "text" else None
    texts = texts_of(learnt, prompts)
    scorer = DrawingScorer(
        model,
        objective,
        held,
        texts_of(held, prompts),
        precision,
        rows=recipe.evaluate_rows,
        samples=recipe.samples,
        sheet=run / "samples.png",
    )
    count = sum(weight.numel() for weight in model.network.parameters())
    config = model.config
    cut = texts.cut if texts is not None else 0
    told = f"{cut:,} texts are longer than the network reads, and are cut\n" if cut else ""
    course = Course(
        model=model,
        batches=batches_of(recipe, learnt, texts),
        objective=objective,
        evaluate=scorer.figures,
        data=record,
        plan=(
            f"{recipe.data.source}: {learnt.describe()}\n{told}held out: {held.describe()}\n"
            f"{config.layout} for {recipe.task}: {count / 1e6:.2f}M parameters, {config.tokens} "
            f"patches of {' x '.join(map(str, config.patches))}, {precision.name} on "
            f"{precision.device}\n{recipe.batch_size * recipe.accumulate:,} signals a step, budget "
            f"{recipe.budget}, into {recipe.out}"
        ),
        budget=recipe.budget,
        average=steady(recipe.average) if recipe.average else None,
    )
    return train(recipe, run, course, precision, checkpoint, quiet=quiet)
