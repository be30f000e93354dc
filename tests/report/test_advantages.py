"""The page of advantages: tokens by colour, groups by reward, what isn't learnt is said."""

from pathlib import Path

import torch

from bedstone.data.dataset import Dataset
from bedstone.data.text.reinforcement import Prompts
from bedstone.generation.rollout import Sampled
from bedstone.models.heads import HeadConfig
from bedstone.report.advantages import rollout_groups, write_advantage_page
from bedstone.train.rollout import Rollout
from small_models import decoder


def test_tokens_are_coloured_by_their_advantage(tmp_path: Path) -> None:
    tokenizer = decoder(HeadConfig(), "llama").tokenizer
    assert tokenizer is not None
    prompts = Prompts(Dataset([{"prompt": "go <b>"}, {"prompt": "a film"}]), tokenizer, room=20)
    answers = [tokenizer.encode(text) for text in (" red & far", " slow", " red", " dull")]
    lengths = torch.tensor([len(each) for each in answers])
    ids = torch.zeros(4, int(lengths.max()), dtype=torch.long)
    for row, each in enumerate(answers):
        ids[row, : len(each)] = torch.tensor(each)
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    sampled = Sampled(
        ids, lengths, torch.tensor([True, True, False, True]), torch.zeros(ids.shape),
        torch.zeros(ids.shape),
    )  # fmt: skip
    apart = torch.tensor([-0.5, 1.0, 0.0, 0.0])
    rollout = Rollout(
        torch.tensor([0, 0, 1, 1]),
        sampled,
        torch.tensor([0.0, 1.5, 2.0, 2.0]),
        torch.tensor([True, True, False, True]),
        torch.tensor([True, True, False, False]),
        apart[:, None] * real,
    )
    groups = rollout_groups(prompts, rollout)
    assert [group.prompt for group in groups] == ["go <b>", "a film"]
    best, worst = groups[0].answers
    assert best.reward == 1.5 and {colour for _, _, colour in best.parts} == {100}
    assert {colour for _, _, colour in worst.parts} == {-50}
    assert "".join(text for text, _, _ in worst.parts) == " red & far"
    notes = [answer.note for answer in groups[1].answers]
    assert notes[0] == ", cut by max_new_tokens, doesn't count"
    assert notes[1] == ", its group has equal rewards: nothing is learnt"
    path = write_advantage_page(tmp_path / "page.html", "run", prompts, [rollout, rollout])
    page = path.read_text()
    assert "go &lt;b&gt;" in page and "the last rollout: mean reward 1.375" in page
    assert "var(--right) 50%" in page and "var(--wrong) 25%" in page and "1 before" in page
