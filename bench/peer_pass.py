"""The peer of a training: one pass of transformers' Trainer over its rows, and its clock.

The clock begins where Bedstone's does: network, rows, optimizer and schedule are there, and the
first batch isn't made yet. It ends with the last step.
"""

import tempfile
import time
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments


class StepClock(TrainerCallback):
    """When the Trainer's first batch was next to be made, and when each of its steps ended."""

    def __init__(self) -> None:
        self.began = float("nan")
        self.ends: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def one_pass(
    network: Any, rows: Any, collator: Any, *, rate: float, batch: int, seed: int, **options: Any
) -> tuple[float, int]:
    """Seconds and steps of it; `options` are the Trainer's own."""
    clock = StepClock()
    with tempfile.TemporaryDirectory() as nowhere:
        trainer = Trainer(
            network,
            TrainingArguments(
                output_dir=nowhere,
                num_train_epochs=1,
                learning_rate=rate,
                per_device_train_batch_size=batch,
                seed=seed,
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **options,
            ),
            train_dataset=rows,
            data_collator=collator,
            callbacks=[clock],
        )
        trainer.train()
    return clock.ends[-1] - clock.began, len(clock.ends)
