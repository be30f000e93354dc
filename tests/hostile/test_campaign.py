"""A small part of the campaign of hostile files, always the same; the whole is `make hostile`."""

import collections

import torch
from campaign import campaign

from faults import needs_fork

FAILURES = ("traceback", "slow", "memory", "wrong", "unnamed")


@needs_fork
def test_hostile_files_are_refused_or_harmless(tmp_path, capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        counts = campaign(80, 0, "", tmp_path)
    finally:
        torch.set_num_threads(threads)
    total = sum(counts.values(), collections.Counter())
    failed = {kind: found for kind, found in counts.items() if set(found) & set(FAILURES)}
    assert not failed, f"{failed}\n{capsys.readouterr().out}"
    assert sum(total.values()) == 80 and total["right"] > total["accepted"]
