"""Figures of encoder-decoders on pairs: held-out loss, and texts beside their references."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bedstone.checkpoints.model import Model
from bedstone.data.text.seq2seq import PairExamples, evaluation_batches
from bedstone.evaluate.pairs import languages_of
from bedstone.evaluate.runner import Evaluation, Progress, held_out_loss
from bedstone.metrics.figures import Figures
from bedstone.metrics.summarization import summaries
from bedstone.metrics.translation import translations
from bedstone.objectives.tokens import PairLoss
from bedstone.report.output_pages import write_output_page
from bedstone.runtime import Precision
from bedstone.tasks.text.text2text_generation import Summarization, Text2TextGeneration
from bedstone.tasks.text.translation import Translation
from bedstone.train.logs import ProgressBar

TASKS: dict[str, type[Text2TextGeneration]] = {
    "translation": Translation,
    "summarization": Summarization,
    "text2text-generation": Text2TextGeneration,
}
AT_ONCE = 512  # sources written between two looks at the progress


@dataclass
class PairScorer(Evaluation):
    """Loss of pairs, and what is written of their sources beside what people wrote.

    Attributes:
        model: what is measured.
        examples: pairs by their tokens, for the loss.
        precision: of the matrix products.
        task: translation, summarization or text2text-generation.
        lowercase: whether BLEU and chrF ignore letter case.
        batch_size: pairs of a batch of the loss.
        most: pairs that are written in training, greedily.
        name: validation or test.
        cut: whether sources that are longer than the network reads are cut, as in training, and
            not split.
    """

    model: Model
    examples: PairExamples
    precision: Precision
    task: str = "translation"
    lowercase: bool = False
    batch_size: int = 64
    most: int = 200
    name: str = "validation"
    cut: bool = False

    def log(self, network: Any) -> dict[str, float]:
        batches = evaluation_batches(self.examples, self.batch_size)
        loss, _ = held_out_loss(network, PairLoss(), batches, self.precision)
        texts = self._write(network, self.most, num_beams=1, do_sample=False)
        figures = self._measured(texts, 0)
        return {"validation_loss": loss, f"validation_{figures.main}": figures.score}

    def predict(self, progress: Progress = None) -> list[str]:
        """The text of every source, by the model's own settings of generation."""
        return self._write(self.model.network, len(self.examples.pairs), progress)

    def score(self, found: list[str], resamples: int) -> dict[str, Figures]:
        return {self.task: self._measured(found, resamples)}

    def report(
        self, folder: Path, metrics: dict[str, float], *, quiet: bool = False
    ) -> dict[str, Any]:
        with ProgressBar(f"writing {self.name} texts", quiet=quiet) as bar:
            texts = self.predict(bar.update)
        figures = self.score(texts, 1000)
        pairs = self.examples.pairs
        write_output_page(
            folder / f"{self.name}.html",
            f"{self.task}, {self.name}",
            pairs.sources,
            texts,
            pairs.targets,
            translated=self.task == "translation",
            places=[pairs.where(pair) for pair in range(len(pairs))],
            languages=languages_of(self.task, self.model),
        )
        return {self.name: {kind: each.record() for kind, each in figures.items()}}

    def _measured(self, texts: list[str], resamples: int) -> Figures:
        count, pairs = len(texts), self.examples.pairs
        given = pairs.sources[:count], texts, pairs.targets[:count]
        if self.task == "translation":
            return translations(*given, lowercase=self.lowercase, resamples=resamples)
        return summaries(*given, resamples=resamples)

    @torch.no_grad()
    def _write(
        self, network: Any, most: int, progress: Progress = None, **options: Any
    ) -> list[str]:
        """Texts of the first `most` sources."""
        model = copy.copy(self.model)
        model.network = network
        network.eval()
        how = {"precision": self.precision.name, "truncation": self.cut, **options}
        task = TASKS[self.task](model, **how)
        key = f"{task.key}_text"
        sources, texts = self.examples.pairs.inputs()[:most], []
        say: Callable[[float], None] = progress or (lambda share: None)
        for at in range(0, len(sources), AT_ONCE):
            texts += [each[key] for each in task(sources[at : at + AT_ONCE])]
            say(len(texts) / len(sources))
        return texts
