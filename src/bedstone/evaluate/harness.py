"""A decoder in lm-evaluation-harness (Gao et al., 2021; version 0.4.13), in this process.

The harness writes the prompts of its tasks and scores the answers; the model answers through
Bedstone's own likelihoods and generation. Texts become tokens as in the harness's own model of
`transformers`, so the figures of both compare.

Tasks are names that the harness knows, whose data it fetches, or YAML files in its format. A task's
file isn't to run programs: `!function`, `include`, and metrics that are fetched as scripts are
refused, and the harness's templates are rendered in a sandbox.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from rich.table import Table

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.text.chat import Rendered
from bedstone.errors import BedstoneError, closest, nearest
from bedstone.evaluate.runner import present
from bedstone.generation.likelihood import scorer_of
from bedstone.generation.text import encode_prompt
from bedstone.reading import read_text, to_path
from bedstone.runtime import Precision
from bedstone.settings import YAML_LIMIT, Settings, load_yaml, one_of, optional, whole

NAME = "lm-eval"
BATCH = 8  # prompts that are continued together
Z = 1.96  # standard errors to the ends of a 95 % interval
# Settings of generation that tasks may name, beside those that the harness reads itself.
SETTINGS = ("temperature", "do_sample", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class HarnessSettings(Settings):
    """lm-evaluation-harness.

    Attributes:
        harness: lm-eval: measure by its tasks, instead of data.
        tasks: with --harness: names of its tasks and YAML files, with commas between.
        shots: examples in a prompt (default: as many as the task says).
        limit: rows of each task at most; 0 takes all.
    """

    harness: str = one_of("", NAME, default="")
    tasks: str = ""
    shots: int | None = optional(whole(0))
    limit: int = whole(0, default=0)


UNUSED = HarnessSettings()


def evaluate_harness(
    model: Model, settings: HarnessSettings, how: Precision, *, as_json: bool = False
) -> dict[str, Any]:
    """Measures a decoder by tasks of the harness, and prints the figures.

    Raises:
        BedstoneError: lm-eval isn't installed, the model is no decoder, or a task is unknown or
            can't be read.
    """
    if not model.writes_text:
        raise BedstoneError(f"--harness: {model!r} writes no text; give a GPT.")
    found = run_tasks(model, settings, how)
    results = {name: _figures(values) for name, values in found["results"].items()}
    rows = {name: int(each["effective"]) for name, each in found.get("n-samples", {}).items()}
    record = {
        "harness": f"{NAME} {found.get('lm_eval_version', '')}".strip(),
        "precision": how.name,
        "shots": dict(found.get("n-shot", {})),
        "rows": rows,
        "results": results,
    }
    return present(record, {"": _table(results, rows)}, as_json=as_json)


def run_tasks(model: Model, settings: HarnessSettings, how: Precision) -> dict[str, Any]:
    """What the harness's `simple_evaluate` gives, samples among it.

    Raises:
        BedstoneError: as `evaluate_harness`.
    """
    harness = _harness()
    from lm_eval.tasks import TaskManager

    tasks = read_tasks(settings.tasks)
    named = [each for each in tasks if isinstance(each, str)]
    manager = TaskManager(include_defaults=bool(named))
    for name in named:
        if name not in manager.all_tasks:
            near = closest(name, manager.all_tasks)
            raise BedstoneError(f"--tasks: {NAME} has no task {name!r}{near}.")
    for each in tasks:
        if isinstance(each, dict):
            _check_metrics(each)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with _sandbox():
            found = harness.simple_evaluate(
                harness_model(model, how),
                tasks=tasks,
                num_fewshot=settings.shots,
                limit=settings.limit or None,
                task_manager=manager,
                bootstrap_iters=1000,
            )
    except BedstoneError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, TemplateError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise BedstoneError(
            f"--tasks {settings.tasks}: {NAME} can't run them ({why}). The data of its own tasks "
            "has to be on this machine, or fetched by it; mend a task of yours in its YAML file."
        ) from error
    return dict(found or {})


def read_tasks(words: str) -> list[str | dict[str, Any]]:
    """Names of tasks, and the configurations in YAML files.

    Raises:
        BedstoneError: there is none, or a file can't be read or holds no task.
    """
    tasks: list[str | dict[str, Any]] = []
    for word in filter(None, (each.strip() for each in words.split(","))):
        if not word.endswith((".yaml", ".yml")):
            tasks.append(word)
            continue
        text = read_text(to_path(word, "--tasks"), YAML_LIMIT)
        value = load_yaml(text, f"{word}: is no YAML file of a task")
        if not isinstance(value, dict) or not isinstance(value.get("task"), str):
            raise BedstoneError(f"{word}: holds no task; expected a mapping with the key task.")
        if "include" in value:
            raise BedstoneError(
                f"{word}: include isn't followed. Write all of the task in one file."
            )
        tasks.append(value)
    if not tasks:
        raise BedstoneError("--tasks: is missing. Name tasks of lm-eval, or YAML files of tasks.")
    return tasks


def _check_metrics(task: Mapping[str, Any]) -> None:
    """Refuses metrics that the harness would fetch, and run, as a script.

    Raises:
        BedstoneError: one isn't among those of the harness.
    """
    import lm_eval.api.metrics  # noqa: F401  # it fills the registry
    from lm_eval.api.registry import metric_registry

    known = list(metric_registry)
    for each in task.get("metric_list") or ():
        name = each.get("metric") if isinstance(each, Mapping) else None
        if name not in known or each.get("hf_evaluate"):
            raise BedstoneError(
                f"{task['task']}: metric_list: {name!r} is no metric of {NAME} itself"
                f"{closest(str(name), known)}."
            )


@contextlib.contextmanager
def _sandbox() -> Iterator[None]:
    """The harness's templates in a sandbox, for as long; its own environment has none."""
    from lm_eval import utils

    before = utils.env
    utils.env = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    utils.env.filters |= before.filters
    try:
        yield
    finally:
        utils.env = before


def harness_model(model: Model, how: Precision) -> Any:
    """A decoder as the harness's `LM`: log-likelihoods, rolling ones, and greedy generation."""
    _harness()
    from lm_eval.api.model import LM
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    tokenizer = tokenizer_of(model)
    scorer = scorer_of(model.network, how, tokenizer)

    class BedstoneLM(LM):
        """Requests are instances with `args`; results stand in their order."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            found = scorer.score([each.args for each in requests])
            return [(each.log_probability, each.greedy) for each in found]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            found = scorer.rolling([each.args[0] for each in requests])
            return [each.log_probability for each in found]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            texts = [""] * len(requests)
            groups: dict[str, list[int]] = {}
            for number, each in enumerate(requests):
                groups.setdefault(repr(each.args[1]), []).append(number)
            for numbers in groups.values():
                settings = normalize_gen_kwargs(requests[numbers[0]].args[1])
                stops = handle_stop_sequences(settings.pop("until", None), eos=None)
                prompts = [requests[number].args[0] for number in numbers]
                for place, text in enumerate(self._written(prompts, stops, settings)):
                    texts[numbers[place]] = text
            return texts

        def _written(
            self, prompts: Sequence[str], stops: Sequence[str], settings: dict[str, Any]
        ) -> list[str]:
            most = int(settings.pop("max_gen_toks"))
            chosen = _generation(settings)
            room = int(model.config.context) - most
            if room < 1:
                raise BedstoneError(
                    f"--tasks: a task asks for {most:,} new tokens; the model's context is "
                    f"{model.config.context:,}. Lower max_gen_toks in the task's generation_kwargs."
                )
            given = [_cut(tokenizer, each, room) for each in prompts]
            texts: list[str] = []
            for start in range(0, len(given), BATCH):
                texts += model.generate(
                    given[start : start + BATCH],
                    precision=how.name,
                    max_new_tokens=most,
                    stop=tuple(stops),
                    **chosen,
                )
            return texts

        @property
        def tokenizer_name(self) -> str:
            return str(tokenizer.fingerprint())

    return BedstoneLM()


def _generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A task's settings as fields of `GenerationSettings`.

    Raises:
        BedstoneError: one is unknown.
    """
    for name in settings:
        if name not in SETTINGS:
            raise BedstoneError(
                f"--tasks: generation_kwargs: {name} can't be followed{nearest(name, SETTINGS)}."
            )
    if not settings.get("do_sample"):
        return {"do_sample": False}
    return dict(settings)


def _cut(tokenizer: Any, prompt: str, room: int) -> str:
    """A prompt with its last `room` tokens, which keep their ids."""
    ids = encode_prompt(tokenizer, prompt)
    if len(ids) <= room:
        return prompt
    kept = Rendered(prompt)
    kept.ids, kept.warning = ids[-room:], ""
    return kept


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    """A task's figures by name, each with the ends of its 95 % interval where it has an error."""
    found: dict[str, float] = {}
    for key, value in values.items():
        name, _, kind = key.partition(",")
        if not kind or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        name = name if kind == "none" else f"{name} ({kind})"
        found[name] = float(value)
        error = values.get(f"{key.partition(',')[0]}_stderr,{kind}")
        if isinstance(error, int | float):
            found[f"{name}_low"], found[f"{name}_high"] = value - Z * error, value + Z * error
    return found


def _table(results: Mapping[str, Mapping[str, float]], rows: Mapping[str, int]) -> Table:
    table = Table(title_justify="left")
    for heading in ("task", "figure", "value", "95 % interval", "rows"):
        table.add_column(heading, overflow="fold")
    for task, figures in results.items():
        for name, value in figures.items():
            if name.endswith(("_low", "_high")):
                continue
            low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
            between = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
            table.add_row(task, name, f"{value:.4f}", between, f"{rows.get(task, 0):,}")
    return table


def _harness() -> Any:
    try:
        import lm_eval
    except ImportError:
        raise BedstoneError(
            "--harness: needs lm-evaluation-harness. Install it: pip install 'bedstone[harness]'."
        ) from None
    return lm_eval
