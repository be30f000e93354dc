"""The peer of a training: one pass of transformers' Trainer over its rows."""

import tempfile
import time
from typing import Any

from transformers import Trainer, TrainingArguments


def one_pass(
    network: Any, rows: Any, collator: Any, *, rate: float, batch: int, seed: int, **options: Any
) -> tuple[float, int]:
    """Seconds and steps of it; `options` are the Trainer's own."""
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
        )
        began = time.perf_counter()
        trainer.train()
        return time.perf_counter() - began, trainer.state.global_step
