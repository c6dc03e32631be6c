"""Two processes for the tests of training together."""

import pytest
import torch
import torch.multiprocessing as mp


def found_by_two(worker, folder, patience):
    """What `worker(rank, folder)` saved as `RANK.pt` in each of two processes; a failure after `patience` seconds."""
    context = mp.spawn(worker, (str(folder),), nprocs=2, join=False)
    try:
        for _ in range(patience // 10):  # `join` returns as soon as one of them has ended
            if context.join(timeout=10):
                break
        else:
            pytest.fail("the processes wait for each other: one of them makes more collective calls")
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
