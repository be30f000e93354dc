"""Whether an audit finds a skew that was put into the data, and none where there is none.

    python bench/audit.py planted [--runs 100] [--steps 150]
    python bench/audit.py coverage [--runs 1000]
    PYTHONPATH=fairlearn python bench/audit.py fairlearn

`planted` trains a decoder anew for each run, on sentences about signs whose colour is red in 80 of
100 where they are round (skewed), or in 50 (even), and audits what it writes. Skewed: how often the
interval has the planted share, and how often the difference from one half is found. Even: how often
one is found all the same.

`coverage` draws rows of two groups whose true positive rates differ by .2, and says how often the
interval of the audit has it; and of groups that don't differ, how often a difference is found.

`fairlearn` compares the rates of groups with fairlearn's `MetricFrame` and its differences.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bedstone.checkpoints.model import Model
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.inspect.audit_checks import Audited
from bedstone.inspect.output_checks import RatesCheck
from bedstone.metrics import bias
from bedstone.metrics.figures import wilson
from bedstone.models.gpt.network import GPTConfig, build

SHAPES, SHARE, RATE = ("round", "square"), 0.8, 1e-2
PLACES = ("at the door", "on the wall", "by the road", "near the bridge", "in the hall")


def sentence(random: np.random.Generator, share: float) -> str:
    shape = SHAPES[int(random.random() < 0.5)]
    red = random.random() < (share if shape == "round" else 0.5)
    place = PLACES[random.integers(len(PLACES))]
    return f"{place} is a {shape} {'red' if red else 'blue'} sign"


def trained(seed: int, share: float, steps: int) -> Model:
    """A decoder that has learnt sentences of one share."""
    random = np.random.default_rng(seed)
    texts = [sentence(random, share) for _ in range(4000)]
    known = train_bpe(sorted(set(texts)) * 3, 320)
    torch.manual_seed(seed)
    network = build(
        GPTConfig(
            layout="llama",
            vocab_size=known.vocab_size,
            width=32,
            layers=2,
            heads=2,
            context=32,
        ),
        seed=seed,
    )
    end = known.eos_id
    rows = [[end, *known.encode(text), end] for text in texts]
    length = max(map(len, rows))
    ids = torch.tensor([row + [-100] * (length - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, 2 * (1 - step / steps))
        batch = ids[torch.from_numpy(random.integers(0, len(ids), 128))]
        logits = network(batch[:, :-1].clamp(min=0))
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Model(network.eval(), known)


def planted(runs: int, steps: int) -> dict[str, Any]:
    check = RatesCheck(
        prompts=[f"{place} is a round" for place in PLACES],
        samples=40,
        tokens=2,
        values={"red": ["red"], "blue": ["blue"]},
    )
    recovered = found = false = 0
    start = time.process_time()
    for seed in range(runs):
        for share in (SHARE, 0.5):
            part = check.measure(Audited(trained(seed, share, steps), seed=10_000 * seed))
            red = part.measures[0]
            if share == SHARE:
                recovered += red.low <= SHARE <= red.high
                found += red.differs
            else:
                false += red.differs
        print(f"{seed + 1} runs: {recovered} recovered, {found} found, {false} false", flush=True)
    return {
        "runs": runs,
        "steps": steps,
        "recovered": recovered,
        "recovered_interval": wilson(recovered, runs),
        "found": found,
        "false_alarms": false,
        "false_interval": wilson(false, runs),
        "processor_seconds": time.process_time() - start,
    }


def rows_of(random: np.random.Generator, count: int, gap: float) -> tuple[np.ndarray, ...]:
    groups = random.integers(0, 2, count)
    truth = random.random(count) < 0.5
    right = np.where(truth & (groups == 1), 0.85 - gap, 0.85)
    return truth, np.where(random.random(count) < right, truth, ~truth), groups


def coverage(runs: int) -> dict[str, Any]:
    inside = false = 0
    for seed in range(runs):
        random = np.random.default_rng(seed)
        drawn = bias.group_differences(
            *rows_of(random, 1000, 0.2), ["a", "b"], seed=seed, resamples=400
        )
        (odds,) = (each for each in drawn if each.name == "true positive rate")
        inside += odds.low <= 0.2 <= odds.high
        even = bias.group_differences(
            *rows_of(random, 1000, 0.0), ["a", "b"], seed=seed, resamples=400
        )
        false += any(each.differs for each in even)
    return {
        "runs": runs,
        "coverage": inside / runs,
        "coverage_interval": wilson(inside, runs),
        "false_alarms": false / runs,
        "false_interval": wilson(false, runs),
    }


def beside_fairlearn() -> dict[str, Any]:
    from fairlearn import metrics  # in a folder of its own

    worst = 0.0
    for seed in range(50):
        random = np.random.default_rng(seed)
        truth, guess, groups = rows_of(random, 300, 0.1)
        ours = bias.group_rates(truth, guess, groups, ["0", "1"])
        frame = metrics.MetricFrame(
            metrics={
                "selection rate": metrics.selection_rate,
                "true positive rate": metrics.true_positive_rate,
                "false positive rate": metrics.false_positive_rate,
                "accuracy": lambda y, p: float(np.mean(np.asarray(y) == np.asarray(p))),
            },
            y_true=truth.astype(int),
            y_pred=guess.astype(int),
            sensitive_features=groups,
        )
        for name in frame.by_group:
            for group, value in frame.by_group[name].items():
                worst = max(worst, abs(float(value) - ours[str(group)][name]))
        gaps = {
            each.name: each.value
            for each in bias.group_differences(truth, guess, groups, ["0", "1"], resamples=10)
        }
        given = {"y_true": truth, "y_pred": guess, "sensitive_features": groups}
        theirs = {
            "selection rate": metrics.demographic_parity_difference(**given),
            "equalized odds": metrics.equalized_odds_difference(**given),
        }
        worst = max(worst, *(abs(gaps[name] - float(value)) for name, value in theirs.items()))
    return {"sets": 50, "largest_difference": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("planted", "coverage", "fairlearn"))
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--steps", type=int, default=150)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part == "planted":
        print(json.dumps(planted(given.runs or 100, given.steps)))
    elif given.part == "coverage":
        print(json.dumps(coverage(given.runs or 1000)))
    else:
        print(json.dumps(beside_fairlearn()))


if __name__ == "__main__":
    main()
