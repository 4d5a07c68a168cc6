"""One of two processes that train a block together: `train_one_of_two.py RANK FOLDER`, started by test_sampling.py."""

from __future__ import annotations

import sys

import torch
from torch import nn

from repconv import BRANCHES, RepBlock, Sampling


def main(rank: int, folder: str) -> None:
    """Three steps without the branch `1x3`; writes the weights before and after."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    block = RepBlock(4, 4, branches=tuple(BRANCHES)[1:]).double()
    block.sampling = Sampling(20, least=1)
    block._trains_as_one = lambda *_: True
    if rank == 0:
        torch.save({n: p.detach().clone() for n, p in block.named_parameters()}, f"{folder}/before.pt")
    parallel = nn.parallel.DistributedDataParallel(block, find_unused_parameters=True)
    optimiser = torch.optim.SGD(block.parameters(), 0.1, momentum=0.9)
    torch.manual_seed(1 + rank)
    for _ in range(3):
        optimiser.zero_grad()
        x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
        parallel(x, active=[n for n in block.branch_set.searchable if n != "1x3"]).square().mean().backward()
        optimiser.step()
    torch.save({n: p.detach() for n, p in block.named_parameters()}, f"{folder}/after{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
