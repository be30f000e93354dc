"""Evaluation of any task: its results on labelled rows, scored by the metric that it names.

A task's class says which `fields` a labelled row needs and which `metric` scores its results;
`METRICS` says for each metric how rows become inputs, and results figures.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

from bedstone.checkpoints.model import Model
from bedstone.data import labels
from bedstone.data.dataset import Dataset, image_numbers
from bedstone.data.fields import IMAGE_TEXT, PAIRS, Need, Sample
from bedstone.data.labels import LETTERS, choice_row, right_choice
from bedstone.data.open import open_dataset
from bedstone.data.scenes.captions import check_caption
from bedstone.errors import BedstoneError
from bedstone.evaluate.pairs import LANGUAGES, pair_rows
from bedstone.evaluate.runner import Evaluation, Progress, present
from bedstone.metrics.captioning import captions, true_facts
from bedstone.metrics.classification import classification, multi_label
from bedstone.metrics.figures import Figures
from bedstone.metrics.ner import entities
from bedstone.metrics.regression import regression
from bedstone.metrics.retrieval import matching
from bedstone.metrics.squad import answers
from bedstone.metrics.summarization import summaries
from bedstone.metrics.suspicion import swapped
from bedstone.metrics.translation import translations
from bedstone.metrics.vqa import QuestionOnlyBaseline, vqa_accuracy
from bedstone.report.output_pages import write_output_page
from bedstone.runtime import Precision
from bedstone.tasks.pipeline import TASKS, pipeline, task_class
from bedstone.tasks.task import Task
from bedstone.tasks.text.prompting import NO_LABEL
from bedstone.train.data import recorded_columns
from bedstone.train.logs import ProgressBar

# Metrics of a model's own evaluation, which needs no task's results.
OWN = ("perplexity", "masked_tokens", "judges")


class Metric:
    """How rows become inputs of a task, and its results figures.

    Args:
        rows: of the evaluation.
        model: that does the task.
    """

    def __init__(self, rows: Dataset, model: Model) -> None:
        self.rows, self.model = rows, model

    @property
    def options(self) -> dict[str, Any]:
        """Options of the task."""
        return {}

    def inputs(self) -> list[Any]:
        """Inputs of the task, in order."""
        raise NotImplementedError

    def score(self, results: Sequence[Any], resamples: int) -> Figures:
        """Figures of the results for these inputs."""
        raise NotImplementedError


class Classes(Metric):
    """Labels of texts or images; several or numbers a row where the model's head has such."""

    def __init__(self, rows: Dataset, model: Model) -> None:
        rows = with_labels(rows)
        super().__init__(rows, model)
        head = getattr(getattr(model, "config", None), "head", None)
        known = list(head.labels) if head is not None and head.kind == "sequence" else None
        self.problem, self.actual = "single", []
        if rows.samples:
            self.actual = [str(row.label) for row in rows]
            self.labels = known or list(rows.classes)
            return
        column = rows.need("label")
        entails = known is not None and any(each.lower().startswith("entail") for each in known)
        own = [] if known is None or (entails and "pair" not in rows.columns) else known
        self.problem = head.measured_as if head is not None and own else "single"
        read: dict[str, Any] = {
            "single": labels.single,
            "multi": labels.several,
            "regression": labels.figures,
        }
        if self.problem == "regression":
            self.actual = labels.figures(rows, column, len(own) or None).tolist()
        else:
            several = self.problem == "multi"  # a vector's places are named by the labels
            self.actual = list(read[self.problem](rows, column, own if several else None))
        self.labels = own or sorted(set(self.actual))

    def inputs(self) -> list[Any]:
        if self.rows.samples:
            return [{"image": image_of(row)} for row in self.rows]
        texts, column = self.rows.texts(self.rows.need("text")), self.rows.column("pair")
        if column is None:
            return texts
        pairs = self.rows.texts(column, empty=True)
        return [
            {"text": text, "text_pair": pair} if pair else text
            for text, pair in zip(texts, pairs, strict=True)
        ]

    @property
    def options(self) -> dict[str, Any]:
        if self.rows.samples:
            return {"top_k": 1}
        outputs = {"function_to_apply": "none"} if self.problem == "regression" else {}
        return {"return_all_scores": True, **outputs}

    def score(self, results: Sequence[Any], resamples: int) -> Figures:
        if self.rows.samples:
            found = [result[0]["label"] for result in results]
            return classification(found, self.actual, self.labels, resamples=resamples)
        names = [each["label"] for each in results[0]]
        if self.problem == "regression":
            numbers = [[each["score"] for each in result] for result in results]
            return regression(numbers, self.actual, names, resamples=resamples)
        if self.problem == "multi":
            sets = [[one["label"] for one in each if one["score"] > 0.5] for each in results]
            return multi_label(sets, self.actual, names, resamples=resamples)
        best = [max(result, key=lambda each: each["score"]) for result in results]
        found = [each["label"] if each["score"] else NO_LABEL for each in best]
        return among(found, self.actual, names, resamples)


class ZeroShotClasses(Metric):
    """Labels among those of the rows, which the model was never trained on."""

    def __init__(self, rows: Dataset, model: Model) -> None:
        rows = with_labels(rows)
        super().__init__(rows, model)
        if rows.samples:
            self.actual = [str(row.label) for row in rows]
        else:
            self.actual = labels.single(rows, rows.need("label"), None)
        self.labels = list(rows.classes) or sorted(set(self.actual))

    @property
    def options(self) -> dict[str, Any]:
        return {"candidate_labels": self.labels}

    def inputs(self) -> list[Any]:
        if self.rows.samples:
            return [{"image": image_of(row)} for row in self.rows]
        return self.rows.texts(self.rows.need("text"))

    def score(self, results: Sequence[Any], resamples: int) -> Figures:
        found = [
            result["labels"][0] if isinstance(result, Mapping) else result[0]["label"]
            for result in results
        ]
        return among(found, self.actual, self.labels, resamples)


def among(found: list[str], actual: list[str], names: list[str], resamples: int) -> Figures:
    """Figures of labels among some, one of which is right; a generated answer may name none."""
    shown = [*names, NO_LABEL] if NO_LABEL in found else names
    figures = classification(found, actual, shown, resamples=resamples)
    return replace(figures, baselines={**figures.baselines, "chance": 1 / len(names)})


class Choices(Metric):
    """Which of several answers is right, by their letters."""

    def __init__(self, rows: Dataset, model: Model) -> None:
        super().__init__(rows, model)
        self.actual = [LETTERS[right_choice(rows, number)] for number in range(len(rows))]

    def inputs(self) -> list[Any]:
        return [choice_row(self.rows, number) for number in range(len(self.rows))]

    def score(self, results: Sequence[Any], resamples: int) -> Figures:
        found = [
            NO_LABEL if each["choice"] is None else LETTERS[each["choice"]] for each in results
        ]
        most = max(len(each["scores"]) for each in results)
        return among(found, self.actual, list(LETTERS[:most]), resamples)


class Tags(Metric):
    """A tag a word: that of the word's first token."""

    options: ClassVar[dict[str, Any]] = {
        "is_split_into_words": True,
        "ignore_labels": [],
        "aggregation_strategy": "none",
    }

    def __init__(self, rows: Dataset, model: Model) -> None:
        super().__init__(rows, model)
        column, known = rows.need("tokens"), model.config.head.labels
        self.actual = labels.tags(rows, column, rows.need("tags"), known or None)
        self.words = [rows.value(number, column) for number in range(len(rows))]

    def inputs(self) -> list[Any]:
        return self.words

    def score(self, results: Sequence[Any], resamples: int) -> Figures:
        found = []
        for words, result in zip(self.words, results, strict=True):
            begins = [0, *accumulate(len(word) + 1 for word in words)]
            tags: dict[int, str] = {}
            for token in result:
                word = bisect_right(begins, max(token["end"] - 1, 0)) - 1
                tags.setdefault(word, token["entity"])
            found.append([tags.get(number, "O") for number in range(len(words))])
        return entities(found, self.actual, resamples=resamples)


class Answers(Metric):
    """Stretches of contexts that answer questions, as SQuAD scores them."""

    def __init__(self, rows: Dataset, model: Model) -> None:
        super().__init__(rows, model)
        column = rows.need("answers")
        self.actual = [rows.value(number, column)["text"] for number in range(len(rows))]

    @property
    def options(self) -> dict[str, Any]:
        return {"handle_impossible_answer": any(not each for each in self.actual)}

    def inputs(self) -> list[Any]:
        columns = [self.rows.texts(self.rows.need(name)) for name in ("question", "context")]
        return [{"question": one, "context": two} for one, two in zip(*columns, strict=True)]

    def score(self, results: Sequence[Any], resamples: int) -> Figures:
        return answers([each["answer"] for each in results], self.actual, resamples=resamples)


class Similarity(Metric):
    """Cosines of pairs of texts, beside how similar they are said to be."""

    def inputs(self) -> list[Any]:
        columns = [self.rows.texts(self.rows.need(name)) for name in ("text", "pair")]
        return [{"source_sentence": a, "sentences": [b]} for a, b in zip(*columns, strict=True)]

    def score(self, results: Sequence[Any], resamples: int) -> Figures:
        actual = labels.figures(self.rows, self.rows.need("label"), 1).tolist()
        return regression(list(results), actual, ["similarity"], resamples=resamples)


class Captions(Metric):
    """Captions of images beside their references; of drawn scenes, their true facts."""

    def __init__(self, rows: Dataset, model: Model) -> None:
        super().__init__(rows.pick([i for i, row in enumerate(rows) if row.captions]), model)

    def inputs(self) -> list[Any]:
        return [image_of(row) for row in self.rows]

    def score(self, results: Sequence[Any], resamples: int) -> Figures:
        found = [each[0]["generated_text"] for each in results]
        scenes = [row.scene for row in self.rows if row.scene is not None]
        if len(scenes) == len(found):
            return true_facts(found, scenes, resamples=resamples)
        return captions(found, [row.captions for row in self.rows], resamples=resamples)


class VQA(Metric):
    """Answers to questions about images.

    Attributes:
        blind: the baseline that reads the question alone; None leaves baselines out.
    """

    blind: QuestionOnlyBaseline | None = None

    def __init__(self, rows: Dataset, model: Model) -> None:
        super().__init__(rows.pick([i for i, row in enumerate(rows) if row.questions]), model)
        numbered = enumerate(self.rows)
        self.questions = [(number, one) for number, row in numbered for one in row.questions]

    @property
    def options(self) -> dict[str, Any]:
        return {"top_k": 1}

    def inputs(self) -> list[Any]:
        images = [image_of(row) for row in self.rows]
        return [
            {"image": images[number], "question": one.question} for number, one in self.questions
        ]

    def score(self, results: Sequence[Any], resamples: int) -> Figures:
        questions = [one for _, one in self.questions]
        return vqa_accuracy(
            [each[0]["answer"] for each in results],
            [one.answers for one in questions],
            [one.kind for one in questions],
            questions=[one.question for one in questions],
            blind=self.blind,
            images=image_numbers(self.rows, [number for number, _ in self.questions]),
            resamples=resamples,
        )


class Matching(Metric):
    """Whether texts belong to images: of each its own caption, and another row's."""

    def __init__(self, rows: Dataset, model: Model) -> None:
        super().__init__(rows.pick([i for i, row in enumerate(rows) if row.captions]), model)
        self.pairs = list(self._pairs())

    def _pairs(self) -> Iterator[tuple[Sample, str, bool]]:
        count = len(self.rows)
        for number, row in enumerate(self.rows):
            yield row, row.captions[number % len(row.captions)], True
            others = [self.rows[(number + more) % count] for more in range(1, 4)]
            if wrong := wrong_caption(row, others):
                yield row, wrong, False

    def inputs(self) -> list[Any]:
        return [{"image": image_of(row), "text": text} for row, text, _ in self.pairs]

    def score(self, results: Sequence[Any], resamples: int) -> Figures:
        truth = [true for _, _, true in self.pairs]
        return matching([each["score"] for each in results], truth, resamples=resamples)


class Outputs(Metric):
    """Texts that are written given a source, beside what people wrote.

    Attributes:
        coverage: whether the task says how much of each source was read.
    """

    measure: Callable[..., Figures]
    translated: ClassVar[bool]
    coverage = False

    def __init__(self, rows: Dataset, model: Model) -> None:
        super().__init__(rows, model)
        self.sources = rows.texts(rows.need("source"))
        column = rows.need("target")
        self.references = [rows.value(number, column) for number in range(len(rows))]

    def inputs(self) -> list[Any]:
        return list(self.sources)

    @property
    def options(self) -> dict[str, Any]:
        return {"return_coverage": True} if self.coverage else {}

    def score(self, results: Sequence[Any], resamples: int) -> Figures:
        found, read = [_written(each) for each in results], self._read(results)
        given = self.sources, found, self.references
        made = type(self).measure(*given, coverage=read, resamples=resamples, **self.more())
        return replace(made, doubts=(*made.doubts, *self.doubts()))

    def doubts(self) -> list[str]:
        """What the rows themselves make doubtful, a sentence each."""
        return []

    def more(self) -> dict[str, Any]:
        """Other arguments of the measure."""
        return {}

    def _read(self, results: Sequence[Any]) -> list[float] | None:
        return [_best(each)["coverage"] for each in results] if self.coverage else None

    def write_page(
        self, path: str, title: str, results: Sequence[Any], languages: tuple[str, str]
    ) -> Path:
        """Writes the page of sources, outputs and references, the most suspicious first."""
        return write_output_page(
            path,
            title,
            self.sources,
            [_written(each) for each in results],
            self.references,
            translated=self.translated,
            coverage=self._read(results),
            places=[self.rows.where(number) for number in range(len(self.rows))],
            languages=languages,
        )


class Translations(Outputs):
    """Translations, by BLEU and chrF."""

    measure = staticmethod(translations)
    translated = True

    def doubts(self) -> list[str]:
        rows = swapped(self.sources, [_first(each) for each in self.references])
        if not rows:
            return []
        more = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
        return [f"{self.rows.where(rows[0])}{more}: source and reference look swapped; swap them."]

    def more(self) -> dict[str, Any]:
        recipe = {} if self.model is None else self.model.record.get("recipe")
        lower = isinstance(recipe, Mapping) and recipe.get("lowercase_bleu") is True
        return {"lowercase": lower}  # as the run measured it


class Summaries(Outputs):
    """Summaries, by ROUGE."""

    measure = staticmethod(summaries)
    translated = False


METRICS: dict[str, type[Metric]] = {
    "classification": Classes,
    "zero_shot": ZeroShotClasses,
    "choices": Choices,
    "entities": Tags,
    "answers": Answers,
    "similarity": Similarity,
    "captions": Captions,
    "vqa": VQA,
    "matching": Matching,
    "translations": Translations,
    "summaries": Summaries,
}


def _first(reference: Any) -> str:
    return reference if isinstance(reference, str) else str(reference[0])


def _best(result: Any) -> Mapping[str, Any]:
    """A task's result, the best where there are several."""
    found: Mapping[str, Any] = result[0] if isinstance(result, list) else result
    return found


def _written(result: Any) -> str:
    """The text of a task's result."""
    return str(next(value for key, value in _best(result).items() if key.endswith("_text")))


def with_labels(rows: Dataset) -> Dataset:
    """Of samples those that have a label; rows of text as they are."""
    if not rows.samples:
        return rows
    return rows.pick([number for number, row in enumerate(rows) if row.label is not None])


def image_of(row: Sample) -> Any:
    """A row's image as tasks take it; what draws it is called."""
    return row.image() if callable(row.image) else row.image


def wrong_caption(row: Sample, others: Sequence[Sample]) -> str:
    """A caption of another row that isn't true of this one, as far as can be known; "" of none."""
    for other in others:
        for text in other.captions[:1]:
            if text in row.captions:
                continue
            if row.scene is not None:
                stated, true = check_caption(row.scene, text)
                if stated == true:
                    continue
            return text
    return ""


@dataclass
class TaskEvaluation(Evaluation):
    """A task's results on labelled rows, and their figures.

    Attributes:
        task: with its model.
        rows: that have the fields that the task names.
        name: of the data.
        metric: made of both.
    """

    task: Task
    rows: Dataset
    name: str = "validation"
    metric: Metric = field(init=False)

    def __post_init__(self) -> None:
        self.metric = METRICS[self.task.metric](self.rows, self.task.model)

    def predict(self, progress: Progress = None) -> list[Any]:
        inputs = self.metric.inputs()

        def counted() -> Iterator[Any]:
            for number, each in enumerate(inputs):
                if progress is not None:
                    progress(number / len(inputs))
                yield each

        size = {"batch_size": BATCH}
        return list(self.task(counted(), **self.metric.options, **size))

    def score(self, found: list[Any], resamples: int) -> dict[str, Figures]:
        return {self.task.name: self.metric.score(found, resamples)}


BATCH = 32  # inputs that are read at a time


def needs_of(kind: type[Task]) -> Sequence[Need]:
    """What a task needs of samples; nothing of rows of text, which are read by their columns."""
    if "image" not in kind.fields:
        return ()
    return PAIRS if "class" in kind.fields else IMAGE_TEXT


def measured_tasks() -> list[str]:
    """Names of the tasks whose classes name a metric."""
    return [name for name in TASKS if task_class(name).metric]


def metric_of(task: str) -> str:
    """The metric of a task, by its name.

    Raises:
        BedstoneError: there is no such task, or it has none.
    """
    kind = task_class(task)
    if not kind.metric:
        raise BedstoneError(
            f"task: {task} has no metric. Tasks that have one: {', '.join(measured_tasks())}."
        )
    return kind.metric


def evaluate_task(
    task: str,
    model: Model,
    data: str,
    precision: Precision,
    *,
    columns: dict[str, str] | None = None,
    split: str | None = None,
    languages: tuple[str, str] = ("", ""),
    page: str | None = None,
    as_json: bool = False,
    resamples: int = 1000,
    predict: Callable[["TaskEvaluation", Progress], list[Any] | None] = TaskEvaluation.predict,
) -> dict[str, Any]:
    """Prints and returns a task's figures on labelled rows, with 95 % intervals.

    Args:
        columns: which column holds what, where the usual names aren't used.
        languages: of sources and targets, for translation.
        page: an HTML file to write, of sources and what is written over them.
        predict: gives the results of the evaluation's inputs, or None where there is no more to do.

    Raises:
        BedstoneError: the model can't do the task, or the rows can't be read or lack a field.
    """
    kind = task_class(task)
    writes = "source" in kind.fields
    for option, value in (("--page", page), ("--source-lang, --target-lang", any(languages))):
        fits = writes if option == "--page" else kind.metric == "translations"
        if value and not fits:
            raise BedstoneError(f"{option}: {task} has no use for it. Leave it out.")
    given = {name: value for name, value in zip(LANGUAGES, languages, strict=True) if value}
    done = pipeline(task, model, precision=precision.name, **given)
    need = needs_of(kind)
    columns = recorded_columns(model.record, data, columns, split=split, images=bool(need))
    rows = open_dataset(data, need, columns=columns, split=split)
    if writes:
        rows, languages = pair_rows(rows, task, model, languages)
    evaluation = TaskEvaluation(done, rows, data)
    metric = evaluation.metric
    if page is not None and isinstance(metric, Outputs):
        metric.coverage = True
    with ProgressBar("evaluating", quiet=as_json) as bar:
        results = predict(evaluation, bar.update)
        if results is None:
            return {}
        found = evaluation.score(results, resamples)
    title = f"{model.path} on {data}"
    notes = list(filter(None, [rows.faults.left_out()]))
    if page is not None and isinstance(metric, Outputs):
        notes.append(f"page: {metric.write_page(page, title, results, languages)}")
    return present(
        {name: figures.record() for name, figures in found.items()},
        {f"{title}: {name}": figures for name, figures in found.items()},
        notes=notes,
        as_json=as_json,
    )
