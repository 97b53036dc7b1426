"""A set larger than memory, and sets in other processes."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from freia_kd.data import synthetic
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter
from freia_kd.domain import Domain

MB = 10**6


@pytest.fixture
def data(tmp_path):
    generator = torch.Generator().manual_seed(0)
    writer = SyntheticWriter(tmp_path, Domain((1, 4, 4), 2, (0.5,), (0.5,)))
    for rows in (5, 3):
        inputs = torch.randint(256, (rows, 1, 4, 4), generator=generator, dtype=torch.uint8)
        writer.append(inputs, torch.rand(rows, 2, generator=generator), torch.arange(rows))
    return SyntheticSet(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_set(tmp_path):
    def measure(kept):
        script = Path(__file__).parent / "data_large.py"
        arguments = [sys.executable, script, tmp_path / str(kept), str(kept)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            arguments, env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    found = measure(32 * MB)
    assert found["rows"] == 40 * 512
    assert max(found["growth"]) < 50 * MB  # of a set of 252 MB
    assert max(measure(1000 * MB)["growth"]) > 200 * MB  # so that it would be seen


def test_a_small_set_in_use_is_kept_in_memory_with_the_same_rows(data, monkeypatch):
    rows = torch.tensor([7, 0, 5, 0])
    data.batch(rows)
    before = data.batch(rows)
    assert data._whole is None
    for ours, theirs in zip(data.batch(rows), before, strict=True):
        assert torch.equal(ours, theirs)
    assert data._whole is not None
    large = SyntheticSet(data.folder)
    monkeypatch.setattr(synthetic, "KEPT", large._bytes - 1)
    for _ in range(4):
        large.batch(rows)
    assert large._whole is None


def test_a_loader_shuffles_over_the_whole_set_and_other_processes_open_it_themselves(data):
    loader = DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(0))
    x, logits, _ = (torch.cat(parts) for parts in zip(*loader, strict=True))
    inputs, expected, _ = data.batch(torch.arange(len(data)))
    order = [int((row == expected).all(1).nonzero()) for row in logits]
    assert sorted(order) == list(range(8))
    assert any(i >= 5 for i in order[:4])  # of the second shard
    assert any(i < 5 for i in order[:4])
    assert torch.equal(x, inputs[order])
    assert len(pickle.dumps(data)) < 500
    assert torch.equal(copy.copy(data)[6][0], data[6][0])
