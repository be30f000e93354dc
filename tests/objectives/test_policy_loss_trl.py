"""Losses of policies beside TRL's own trainers, on the same network and rollouts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.objectives.policy import group_advantages, leave_one_out
from policy_cases import (
    CASES,
    GROUP,
    LIMIT,
    REWARDS,
    TEMPERATURE,
    answers,
    mean_loss,
    policy_batch,
)
from preference_cases import network

trl = pytest.importorskip("trl")
transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")

NEAR = {"rtol": 1e-5, "atol": 1e-5}


def theirs(folder: Path, ours: Any) -> Any:
    Model(ours).save(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def trainer(kind: str, folder: Path, model: Any, **more: Any) -> Any:
    train_bpe(["a b c d"] * 3, 261).save(folder / "tokenizer")
    words = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    words.pad_token = words.eos_token
    options = {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "report_to": [],
        "bf16": False,
        "per_device_train_batch_size": GROUP,
        "num_generations": GROUP,
        "max_completion_length": LIMIT,
        "temperature": TEMPERATURE,
        "epsilon_high": 0.28,
        **more,
    }
    return getattr(trl, f"{kind}Trainer")(
        model,
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=getattr(trl, f"{kind}Config")(**options),
        train_dataset=datasets.Dataset.from_list([{"prompt": "a"}] * 4),
        processing_class=words,
    )


def padded(values: Tensor) -> Tensor:
    """(M,) values of tokens as a matrix."""
    _, ids, lengths = answers()
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    return torch.zeros(ids.shape).masked_scatter(real, values)


def inputs(case: Any) -> dict[str, Any]:
    """Rollouts as TRL lays them: prompts padded on the left, answers on the right."""
    prompts, ids, lengths = answers()
    batch = policy_batch(case)
    longest = max(map(len, prompts))
    before = torch.tensor([[0] * (longest - len(each)) + each for each in prompts])
    known = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    found = leave_one_out(REWARDS) if case is None else group_advantages(REWARDS, None, case.scale)
    assert batch.old is not None and batch.reference is not None
    old = padded(batch.old)
    return {
        "prompt_ids": before,
        "prompt_mask": known,
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": found.flatten(),
        "old_per_token_logps": old,
        "old_logps": old.sum(1),
        "ref_per_token_logps": padded(batch.reference),
        "num_items_in_batch": mask.sum(),
    }


def check(folder: Path, case: Any, made: Any, model: Any) -> None:
    ours = network(3)
    loss = mean_loss(case, ours)
    loss.backward()
    made.model.eval()
    expected = made._compute_loss(model, inputs(case))
    expected.backward()
    torch.testing.assert_close(loss, expected, **NEAR)
    with torch.no_grad():
        for weight in ours.parameters():
            assert weight.grad is not None
            weight.copy_(weight.grad)
    Model(ours).save(folder / "gradients")
    found = load_file(folder / "gradients" / "model.safetensors")
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, **NEAR, msg=name)


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = theirs(tmp_path / "model", network(3))
    how = {"beta": case.kl, "epsilon": case.low, "epsilon_high": case.high, **case.trl}
    made = trainer("GRPO", tmp_path, model, **how)
    check(tmp_path, case, made, model)


def test_leave_one_out(tmp_path: Path) -> None:
    model = theirs(tmp_path / "model", network(3))
    check(tmp_path, None, trainer("RLOO", tmp_path, model), model)
