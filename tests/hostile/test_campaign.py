"""A small part of both campaigns, always the same; the whole is `make hostile`."""

import collections

import pytest
import row_campaign
import torch
from campaign import campaign

from faults import needs_fork

FAILURES = ("traceback", "slow", "memory", "wrong", "unnamed")


@pytest.mark.slow
@needs_fork
def test_hostile_files_are_refused_or_harmless(tmp_path, capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        counts = campaign(25, 0, "", tmp_path)
    finally:
        torch.set_num_threads(threads)
    total = sum(counts.values(), collections.Counter())
    failed = {kind: found for kind, found in counts.items() if set(found) & set(FAILURES)}
    assert not failed, f"{failed}\n{capsys.readouterr().out}"
    assert sum(total.values()) == 25 and total["right"] > total["accepted"]


@needs_fork
def test_rows_that_lie_are_refused_or_read_as_written(tmp_path, capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        counts, inputs = row_campaign.campaign(1, 25, "", tmp_path)
    finally:
        torch.set_num_threads(threads)
    total = sum(counts.values(), collections.Counter())
    failed = {kind for kind, found in counts.items() if set(found) & set(row_campaign.FAILURES)}
    assert not failed, f"{failed}\n{capsys.readouterr().out}"
    assert inputs == 25 and total["accepted"] > total["right"] > 0
