"""What one of two processes does whose losses wait; apart, so that its process imports little."""

import math

import torch
from torch import nn

from freia_kd import ranks
from freia_kd.training import TrainingLoop
from freia_kd.training import loop as looping


def train():
    """The weights of a small training, in which the second process meets a loss that is none."""
    torch.manual_seed(0)
    net, generator = nn.Linear(3, 1), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    loop = TrainingLoop("fit", 50, {"net": net, "adam": optimizer}, generator, optimizer)
    for step in loop:
        x = torch.randn(8, 3, generator=generator)[ranks.share(8)]
        loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
        if step in (7, 31) and not ranks.is_first():
            loss = loss * math.nan
        if loop.accept(loss):
            loop.backward(loss)
            optimizer.step()
    return [loop.rollbacks, *net.weight.detach().flatten().tolist()]


def train_together(rank, path, results):
    """Once with a look at every loss, once with late looks."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=2
    )
    at_once = train()
    looping.DEFERRED = ("cpu",)
    results[rank] = (at_once, train())
    torch.distributed.destroy_process_group()
