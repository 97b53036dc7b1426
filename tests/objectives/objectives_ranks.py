"""What one of two ranks does; apart, so that its process imports little."""

import torch
from torch import nn

from freia_kd.objectives import BatchStatistics


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomized(layer, seed=3):
    layer.running_mean = draw(4, seed=seed)
    layer.running_var = draw(4, seed=seed + 1).exp()
    return layer.double().eval()


def two_layers():
    return nn.Sequential(randomized(nn.BatchNorm2d(4)), randomized(nn.BatchNorm2d(4), seed=8))


def reduced_gradient(rank, path, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=2
    )
    teacher, x = two_layers(), draw(6, 4, 3, 2)
    shift = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    share = x[:2] if rank == 0 else x[2:]  # ranks may differ in size
    with BatchStatistics().observe(teacher) as records:
        teacher(share * (1 + shift.view(1, 4, 1, 1)))
    loss = BatchStatistics().loss(records)
    loss.backward()
    torch.distributed.all_reduce(shift.grad)  # what DDP does, up to the division by 2
    results[rank] = (loss.item(), (shift.grad / 2).tolist())
    torch.distributed.destroy_process_group()
