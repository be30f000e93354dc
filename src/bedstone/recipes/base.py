"""Training methods: their interface, their registry, and which one a recipe asks for."""

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from bedstone import ranks
from bedstone.checkpoints.adapters import write_adapter_files
from bedstone.checkpoints.hub import resolve
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.store import Checkpoint, CheckpointStore
from bedstone.data.sources import DataConfig
from bedstone.data.text.fim_cuts import FimConfig
from bedstone.data.text.masked_lm import MaskingConfig
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import TokenizerConfig
from bedstone.data.write import write_rows
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.runner import Evaluation
from bedstone.reading import check_kinds, is_plain, kind_of, read_object
from bedstone.settings import Overrides, read_recipe, read_values, whole
from bedstone.train.averaging import Decay
from bedstone.train.data import Splits
from bedstone.train.loop import Batches, Objective, Watch
from bedstone.train.optim import OptimConfig
from bedstone.train.resume import EXTENDABLE, RECIPE, recover_files
from bedstone.train.run import (
    RunPlan,
    RunRecipe,
    RunResult,
    Stopping,
    held_folder,
    new_folder,
    run,
)
from bedstone.train.schedule import ScheduleConfig
from bedstone.train.start import Start, begin
from bedstone.train.watch import watched

R = TypeVar("R", bound=Any)  # a method's recipe
Trainer = Callable[[Iterable[str], Any], Tokenizer]  # (texts, the section `tokenizer`)

METHODS = {
    "causal_lm": "causal_lm:CausalLM",
    "masked_lm": "masked_lm:MaskedLM",
    "contrastive": "contrastive:Contrastive",
    "image_text": "image_text:ImageText",
    "flamingo": "flamingo:Flamingo",
    "autoencoder": "autoencoder:Autoencoder",
    "diffusion": "diffusion:Diffusion",
    "supervised": "supervised:Supervised",
    "sft": "sft:SFT",
    "seq2seq": "seq2seq:Seq2Seq",
    "reward": "reward:Reward",
    "dpo": "dpo:DPO",
    "kto": "kto:KTO",
    "grpo": "grpo:GRPO",
    "rloo": "rloo:RLOO",
    "ppo": "ppo:PPO",
    "dalle": "dalle:DallE",
    "prior": "prior:UnclipPrior",
    "unclip": "unclip:Unclip",
    "upsample": "upsample:Upsample",
}


class Method(Generic[R]):
    """A training method: what `train.run.run` asks of it, in the order of the methods below.

    Attributes:
        name: in `METHODS`.
        Recipe: the class of its recipes.
        layouts: of the networks that it trains.
        tasks: that its recipes may name; none where the layout alone decides.
        unit: what a step is counted in, for the plan.
        fault, hint: for the error where `init` has another layout, as in `train.start.begin`.
        epochs: whether a recipe without a budget counts epochs.
        records_tokenizer: whether `data.json` holds the tokenizer's fingerprint.
        alone: why it isn't shared out over ranks; empty where it is.
    """

    name: ClassVar[str]
    Recipe: ClassVar[type[Any]]
    layouts: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "rows"
    fault: ClassVar[str] = "isn't trained so"
    hint: ClassVar[str] = ""
    epochs: ClassVar[bool] = False
    records_tokenizer: ClassVar[bool] = True
    alone: ClassVar[str] = ""

    def check(self, recipe: R) -> None:
        """Refuses what can be refused before a model is opened or data is read.

        Raises:
            BedstoneError: the recipe can't be run.
        """

    def begin(self, recipe: R, checkpoint: Checkpoint | None) -> Model | None:
        """The model that a run goes on from; None where its weights are fresh."""
        model: Model | None = begin(
            recipe, checkpoint, self.layouts, fault=self.fault, hint=self.hint
        )
        return model

    def parts(self, recipe: R) -> dict[str, Model]:
        """Models whose parts a run with fresh weights begins with, by the part's name."""
        return {}

    def open(self, recipe: R, start: Start) -> Splits:
        """The data, read and split."""
        raise NotImplementedError

    def texts(self, recipe: R, splits: Splits, start: Start) -> Iterable[str] | None:
        """The texts that a new tokenizer is trained on; None where no tokenizer is chosen."""
        return None

    def trainers(self, recipe: R) -> Mapping[str, Trainer]:
        """What trains a new tokenizer, by `tokenizer.kind`."""
        return {}

    def adopt(self, tokenizer: Tokenizer) -> Tokenizer:
        """A tokenizer that another model had, with the special tokens that are needed here."""
        return tokenizer

    def model(self, recipe: R, splits: Splits, tokenizer: Tokenizer | None, start: Start) -> Model:
        """The model that learns: that of `start`, or a new one; in fp32, frozen or adapted."""
        raise NotImplementedError

    def batches(self, recipe: R, model: Model, splits: Splits, start: Start) -> Batches:
        """The endless stream that the model learns from."""
        raise NotImplementedError

    def objective(self, recipe: R, model: Model, start: Start) -> Objective:
        """(network, batch) to (sum of losses, number of targets)."""
        raise NotImplementedError

    def evaluations(self, recipe: R, plan: RunPlan) -> Sequence[Evaluation]:
        """What measures the model; the first does it in training too."""
        raise NotImplementedError

    # What only some methods need.

    def lone(self, recipe: R, count: int) -> str:
        """Why so many ranks can't train by this recipe together; empty where they can."""
        return f"method: {self.name} learns in one process: {self.alone}" if self.alone else ""

    def stages(
        self, recipe: R, checkpoint: Checkpoint | None, *, quiet: bool
    ) -> Iterable[RunResult]:
        """Runs of other methods that are trained first; the last has no model if it was stopped."""
        return ()

    def budget(self, recipe: R, splits: Splits) -> str:
        """How long the run is."""
        return str(recipe.budget)

    def evaluate_every(self, recipe: R, splits: Splits) -> int:
        """Steps between evaluations; 0 spreads ten over the run."""
        return int(recipe.evaluate_every)

    def step_size(self, recipe: R) -> int:
        """How many of `unit` a micro-batch has."""
        return int(recipe.batch_size)

    def accumulate(self, recipe: R) -> int:
        """Micro-batches of a step at most."""
        return int(recipe.accumulate)

    def stopping(self, recipe: R, model: Model) -> Stopping:
        """When the run stops early, and which checkpoint becomes its model."""
        return Stopping()

    def average(self, recipe: R) -> Decay | None:
        """The decay of the weights' moving average, which is evaluated and kept; None has none."""
        return None

    def save(self, model: Model, folder: Path) -> None:
        """Writes a checkpoint's files into a folder."""
        model.write_files(folder)

    def save_adapter(self, model: Model, folder: Path) -> None:
        """Likewise of a run that trains an adapter."""
        write_adapter_files(model, folder)

    def bare(self, network: Any) -> AbstractContextManager[object]:
        """Takes out of a network, for as long, what is trained beside it and no artefact has."""
        return nullcontext()

    def finish(self, model: Model, folder: Path) -> Path:
        """Writes the finished artefact."""
        return model.save(folder)


def load_method(name: str) -> Method[Any]:
    """A training method by its name.

    Raises:
        BedstoneError: there is none such.
    """
    if name not in METHODS:
        raise BedstoneError(f"method: {name!r} is unknown{nearest(name, METHODS)}.")
    module, _, kind = METHODS[name].partition(":")
    found: type[Method[Any]] = getattr(importlib.import_module(f"bedstone.recipes.{module}"), kind)
    return found()


def method_of(recipe: Any) -> Method[Any]:
    """The method of a recipe: the one that it names, or whose class of recipes it is of.

    Raises:
        BedstoneError: it names another method than it is of.
    """
    if type(recipe) is PretrainRecipe:
        values = {"init": recipe.init, "model": recipe.model}
        return load_method(recipe.method or _by_values(values))
    if recipe.method:
        method = load_method(recipe.method)
        if type(recipe) is not method.Recipe:
            raise BedstoneError(
                f"method: {recipe.method} was given in a recipe of another, "
                f"{type(recipe).__name__}. Leave it out."
            )
        return method
    for name in METHODS:
        method = load_method(name)
        if method.Recipe is type(recipe):
            return method
    raise BedstoneError(f"{type(recipe).__name__} is no recipe of a training method.")


def read(
    path: str | Path | Mapping[str, Any], overrides: Overrides = (), *, usual: str = ""
) -> Any:
    """The recipe in a file: its method, its task, or its model's layout says of which kind it is.

    Args:
        path: a YAML file, or values by name.
        overrides: `key=value`, set after it.
        usual: the method of a recipe whose task no other method knows; empty has none.

    Raises:
        BedstoneError: as `settings.read_recipe`, or method, task or layout is unknown.
    """
    values = read_start(path, overrides)
    where = "recipe" if isinstance(path, Mapping) else str(path)
    name = values.get("method") or _by_values(values, where, usual)
    try:
        return read_recipe(load_method(str(name)).Recipe, path, overrides)
    except BedstoneError as error:
        if not values.get("method"):
            raise
        raise BedstoneError(
            f"{error} The recipe names method: {name}, so it was read as one of that method. If it "
            "is of another, name that one there, or remove the line."
        ) from error


def read_start(path: str | Path | Mapping[str, Any], overrides: Overrides = ()) -> dict[str, Any]:
    """A recipe's values; those that its method is told from are texts.

    Raises:
        BedstoneError: as `settings.read_values`, or one is of another kind.
    """
    values = read_values(path, overrides)
    where = "recipe" if isinstance(path, Mapping) else path
    check_kinds(values, dict.fromkeys(("method", "task", "init"), "text"), where)
    return values


def _by_values(values: Mapping[str, Any], path: str = "recipe", usual: str = "") -> str:
    """The name of the method that a task or a layout belongs to."""
    shape, init, task = (values.get(name) for name in ("model", "init", "task"))
    layout = shape.get("layout") if isinstance(shape, dict) else None
    methods = [load_method(name) for name in METHODS if name != "supervised"]
    tasks = tuple(dict.fromkeys(each for method in methods for each in method.tasks))
    if task is not None and task not in tasks:
        if usual:
            return usual
        if task in load_method("supervised").tasks:
            raise BedstoneError(
                f"{path}: task: {task} is learnt from labelled rows; run bedstone finetune."
            )
        raise BedstoneError(f"{path}: task: {task!r} is unknown{nearest(str(task), tasks)}.")
    if task is None and layout is None and isinstance(init, str) and init:
        layout = layout_of(init)
    able = [method for method in methods if task is None or task in method.tasks]
    fit = [method for method in able if layout in method.layouts]
    if task is None and layout is not None and not fit:
        known = [name for method in methods for name in method.layouts]
        raise BedstoneError(
            f"{path}: model.layout: {layout!r} is unknown{nearest(str(layout), known)}."
        )
    return (fit or able)[0].name


def layout_of(path: str) -> str | None:
    """The layout that a model's folder or hub id says; None where it says none."""
    config = resolve(path) / "config.json"
    published = read_object(config) if is_plain(config) else {}
    return published.get("model_type")


ROWS = "rows"  # the folder of a run that holds rows of the caller's own


def train(
    recipe: Any,
    rows: Mapping[str, Any] | None = None,
    *,
    quiet: bool = False,
    watch: Watch | None = None,
) -> RunResult:
    """Trains as a recipe says, into the folder `recipe.out`, which `train.run.run` describes.

    Args:
        rows: rows as `data.write.write_rows` takes them, by the field of `data` that is to name
            their file; they are written into the run's folder.
        watch: of `train.loop.Trainer`.

    Raises:
        BedstoneError: as `train.run.run`; or the folder holds a run already, or rows can't be
            written.
    """
    method = method_of(recipe)
    usual = type(recipe.optim)()
    if recipe.optim.kind == "adamw" and recipe.optim.adamw_lr == usual.adamw_lr != recipe.optim.lr:
        optim = dataclasses.replace(recipe.optim, adamw_lr=recipe.optim.lr)  # `lr` alone was set
        recipe = dataclasses.replace(recipe, optim=optim)
    if not recipe.method and method.name != "supervised":
        values = {"init": recipe.init, "model": recipe.model, "task": getattr(recipe, "task", None)}
        if _by_values(values) != method.name:  # the folder is to say whose recipe it holds
            recipe = dataclasses.replace(recipe, method=method.name)
    with ranks.joined(), watched():
        if ranks.restarted() and CheckpointStore(Path(recipe.out) / "checkpoints").latest():
            return _go_on(Path(recipe.out), quiet=quiet, watch=watch)
        with held_folder(recipe.out) as folder:
            ranks.first(lambda: new_folder(folder))
            files = ranks.first(lambda: _kept_rows(rows or {}, recipe.out))
            if files:
                data = dataclasses.replace(recipe.data, **files)
                recipe = dataclasses.replace(recipe, data=data)
            return run(method, recipe, folder, quiet=quiet, watch=watch)


def _kept_rows(rows: Mapping[str, Any], out: str) -> dict[str, str]:
    """Rows written into the run's folder: their files by the field of `data` that names them."""
    return {
        name: str(write_rows(value, Path(out) / ROWS / f"{name}.parquet", f"data.{name}"))
        for name, value in rows.items()
    }


def go_on(
    folder: Path,
    overrides: Overrides = (),
    *,
    quiet: bool = False,
    watch: Watch | None = None,
) -> RunResult:
    """Goes on with the run in a folder, from its last complete checkpoint.

    Args:
        watch: of `train.loop.Trainer`.

    Raises:
        BedstoneError: there is no run there, or another process trains it; its recipe, data or
            tokenizer isn't what it began with; or an override would change what it has learnt from.
    """
    with ranks.joined(), watched():
        return _go_on(folder, overrides, quiet=quiet, watch=watch)


def _go_on(
    folder: Path, overrides: Overrides = (), *, quiet: bool = False, watch: Watch | None = None
) -> RunResult:
    store = CheckpointStore(folder / "checkpoints")
    if not kind_of(folder / RECIPE) and store.latest() is None:
        raise BedstoneError(f"{folder}: holds no {RECIPE}, so it is not a run's folder.")
    for key in read_values(None, overrides):
        if key not in EXTENDABLE:
            raise BedstoneError(
                f"{key}: can't be changed when a run goes on{nearest(key, EXTENDABLE)}. Start a "
                f"new run that begins with this one's model, {folder / 'model'}."
            )
    with held_folder(folder):
        latest = ranks.first(lambda: _path_of(store.latest()))
        checkpoint = Checkpoint.open(latest) if latest else None
        recipe = read(recover_files(folder, checkpoint), overrides, usual="supervised")
        moved = {}
        for each in dataclasses.fields(recipe.data):  # rows of its own are where the folder is now
            value = getattr(recipe.data, each.name)
            if isinstance(value, str) and value.startswith(f"{recipe.out}/"):
                moved[each.name] = str(folder / value.removeprefix(f"{recipe.out}/"))
        data = dataclasses.replace(recipe.data, **moved)
        # The folder may have been moved since: `out` is where it is now.
        recipe = dataclasses.replace(recipe, data=data, out=str(folder))
        return run(method_of(recipe), recipe, folder, checkpoint, quiet=quiet, watch=watch)


def _path_of(checkpoint: Checkpoint | None) -> str:
    return "" if checkpoint is None else str(checkpoint.path)


# Recipes and sections that several methods share.


@dataclass
class PretrainRecipe(RunRecipe):
    """Pretraining a language model: the fields that `CausalLMRecipe` and `MaskedLMRecipe` share.

    Attributes, besides those of every run:
        budget: how long to train: `5m`, `2h`, `1000 steps`, `20M tokens`.
        init: a model to go on from, instead of fresh weights.
        model: the shape, in the fields of `models.gpt.network.GPTConfig` or, where its `layout` is
            bert, roberta or distilbert, of `models.bert.network.BertConfig`.
        data: what to learn from.
        tokenizer: how text becomes tokens.
        masking: which tokens an encoder has to predict.
        fim: which documents a decoder learns to fill in the middle of; without this section, none.
        context: tokens a row.
        batch_size: rows in a micro-batch; of an encoder, so many full rows' tokens.
        evaluate_tokens: validation tokens an evaluation reads at most; 0 reads them all.
    """

    out: str = "runs/pretrain"
    budget: str = "1000 steps"
    init: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    fim: FimConfig | None = None
    context: int = whole(1, default=256)
    batch_size: int = whole(1, default=16)
    evaluate_tokens: int = 50_000


@dataclass
class ImagesOptim(OptimConfig):
    """`OptimConfig` with CLIP's second beta and decay for small networks."""

    kind: str = "adamw"
    lr: float = 1e-3
    adamw_lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6


@dataclass
class ImagesSchedule(ScheduleConfig):
    """`ScheduleConfig` that falls by a cosine from the warm-up on."""

    warmup: float = 0.03
    decay: float = 0.97
    shape: str = "cosine"
