"""Threads that make data leave torch's own threads to the training."""

import torch

from bedstone.runtime import lone_threads


def test_torch_computes_alone_there_and_as_before_here():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with lone_threads(3) as pool:
            assert torch.get_num_threads() == 2
            torch.set_num_threads(2)  # what others are told later changes nothing there
            found = [pool.submit(torch.get_num_threads) for _ in range(12)]
            assert {one.result() for one in found} == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
