"""Losses of preferences beside TRL's own trainers, on the same network and rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bedstone.checkpoints.model import Model
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.objectives.preferences import (
    JudgedLoss,
    PairPreferenceLoss,
    RewardLoss,
    answer_log_probs,
    answer_scores,
    log_ratios,
)
from preference_cases import (
    BETA,
    LABELS,
    MARGINS,
    PAIR_LOSSES,
    PAIRS,
    SCORE,
    id_rows,
    judged_batch,
    network,
    pair_batch,
    with_reference,
)

trl = pytest.importorskip("trl")
transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")

NEAR = {"rtol": 1e-5, "atol": 1e-5}


def theirs(folder: Path, ours: Any, kind: str) -> Any:
    """Our network as `transformers` opens it."""
    Model(ours).save(folder)
    found = getattr(transformers, kind).from_pretrained(folder).eval()
    found.config.pad_token_id = 0
    return found


def check_gradients(folder: Path, ours: Any, other: Any) -> None:
    """All gradients, ours written as the published weights are."""
    with torch.no_grad():
        for weight in ours.parameters():
            assert weight.grad is not None
            weight.copy_(weight.grad)
    Model(ours).save(folder)
    found = load_file(folder / "model.safetensors")
    expected = {name: weight.grad for name, weight in other.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **NEAR, msg=name)


def options(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": [],
        "disable_dropout": True,
        "per_device_train_batch_size": PAIRS,
        "bf16": False,
        "max_length": 60,
        **more,
    }


def tokenizer(folder: Path) -> Any:
    train_bpe(["a b c d"] * 3, 261).save(folder)
    found = transformers.AutoTokenizer.from_pretrained(folder)
    found.pad_token = found.eos_token
    return found


def some_rows(**columns: Any) -> Any:
    return datasets.Dataset.from_list([columns] * 4)


def pairs_with_reference(batch: Any) -> list[dict[str, Any]]:
    chosen, rejected = batch.reference.chunk(2)
    return [
        {**row, "ref_chosen_logps": float(one), "ref_rejected_logps": float(other)}
        for row, one, other in zip(id_rows(), chosen, rejected, strict=True)
    ]


@pytest.mark.parametrize("case", PAIR_LOSSES)
def test_pairs(case: str, tmp_path: Path) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    loss, flipped, sft = PAIR_LOSSES[case]
    batch, ours = with_reference(pair_batch()), network(3)
    objective = PairPreferenceLoss(loss, BETA, flipped, sft)
    total, count = objective(ours, batch)
    (total / count).backward()
    other = theirs(tmp_path / "model", ours, "AutoModelForCausalLM")
    kinds, weights = ([loss, "sft"], [1.0, sft]) if sft else ([loss], [1.0])
    how = {"loss_type": kinds, "loss_weights": weights, "beta": BETA, "label_smoothing": flipped}
    trainer = trl.DPOTrainer(
        other,
        args=trl.DPOConfig(**options(tmp_path), precompute_ref_log_probs=False, **how),
        train_dataset=some_rows(prompt="a", chosen="b", rejected="c"),
        processing_class=tokenizer(tmp_path / "tokenizer"),
    )
    trainer.precompute_ref_logps = True
    inputs = DataCollatorForPreference(0)(pairs_with_reference(batch))
    expected = trainer._compute_loss(other, inputs, False)
    expected.backward()
    torch.testing.assert_close(total / count, expected, **NEAR)
    found = BETA * log_ratios(answer_log_probs(ours, batch), batch)
    for half, name in zip(found.chunk(2), ("chosen", "rejected"), strict=True):
        (reward,) = (
            trainer._metrics["eval"][f"rewards/{name}"]
            or trainer._metrics["train"][f"rewards/{name}"]
        )
        assert float(half.detach().mean()) == pytest.approx(reward, rel=1e-5, abs=1e-5)
    check_gradients(tmp_path / "gradients", ours, other)


@pytest.mark.parametrize(("weights", "lower"), [((1.0, 1.0), 0.0), ((0.7, 1.3), 1.0)])
def test_judged(weights: tuple[float, float], lower: float, tmp_path: Path) -> None:
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    batch, ours = with_reference(judged_batch(), lower), network(3)
    total, count = JudgedLoss(BETA, *weights)(ours, batch)
    (total / count).backward()
    other = theirs(tmp_path / "model", ours, "AutoModelForCausalLM")
    how = {"beta": BETA, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    rows = [{"prompt": "a", "completion": "b", "label": number % 2 == 0} for number in range(4)]
    trainer = trl.KTOTrainer(
        other,
        args=trl.KTOConfig(**options(tmp_path), **how),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer(tmp_path / "tokenizer"),
    )
    trainer.precompute_ref_logps = True
    own, away = batch.reference.chunk(2)
    plain = id_rows()
    examples = [
        {
            "prompt_ids": row["prompt_ids"],
            "completion_ids": row["chosen_ids"],
            "KL_completion_ids": plain[at - 1]["chosen_ids"],
            "ref_logps": float(own[at]),
            "ref_KL_logps": float(away[at]),
            "label": LABELS[at],
        }
        for at, row in enumerate(plain)
    ]
    inputs = DataCollatorForUnpairedPreference(0)(examples)
    expected = trainer._compute_loss(other, inputs, False)
    expected.backward()
    torch.testing.assert_close(total / count, expected, **NEAR)
    check_gradients(tmp_path / "gradients", ours, other)


@pytest.mark.parametrize("centring", [0.0, 0.05])
@pytest.mark.parametrize("margins", [False, True])
def test_rewards(centring: float, margins: bool, tmp_path: Path) -> None:
    from dataclasses import replace

    from trl.trainer.reward_trainer import DataCollatorForPreference

    ours = network(3, SCORE)
    batch = pair_batch(scored=True)
    if not margins:
        batch = replace(batch, margins=torch.zeros(PAIRS))
    total, count = RewardLoss(centring)(ours, batch)
    (total / count).backward()
    other = theirs(tmp_path / "model", ours, "AutoModelForSequenceClassification")
    assert other.config.num_labels == 1
    how = {"center_rewards_coefficient": centring or None}
    trainer = trl.RewardTrainer(
        other,
        args=trl.RewardConfig(**options(tmp_path), **how),
        train_dataset=some_rows(chosen="a b", rejected="c"),
        processing_class=tokenizer(tmp_path / "tokenizer"),
    )
    other.config.pad_token_id = 0
    rows = [
        {
            "chosen_ids": row["prompt_ids"] + row["chosen_ids"],
            "rejected_ids": row["prompt_ids"] + row["rejected_ids"],
            **({"margin": margin} if margins else {}),
        }
        for row, margin in zip(id_rows(), MARGINS, strict=True)
    ]
    inputs = DataCollatorForPreference(0)(rows)
    expected, outputs = trainer.compute_loss(other, inputs, return_outputs=True)
    expected.backward()
    torch.testing.assert_close(total / count, expected, **NEAR)
    torch.testing.assert_close(answer_scores(ours, batch), outputs.logits[:, 0], **NEAR)
    check_gradients(tmp_path / "gradients", ours, other)
