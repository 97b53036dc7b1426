import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter, quantise
from freia_kd.domain import Domain
from freia_kd.errors import CheckpointError

DOMAIN = Domain((1, 4, 4), 3)


def shard(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 4, 4, generator=generator)
    return (
        quantise(x),
        torch.randn(count, 3, generator=generator),
        torch.randint(3, (count,), generator=generator),
    )


def write(folder):
    shards = [shard(5, 0), shard(3, 1), shard(4, 2)]
    SyntheticWriter(folder, DOMAIN).append(*shards[0])
    SyntheticWriter(folder, DOMAIN).append(*shards[1])
    SyntheticWriter(folder, DOMAIN, worker=1).append(*shards[2])
    return [torch.cat(parts) for parts in zip(*shards, strict=True)]


def test_two_workers_write_what_is_read(tmp_path):
    inputs, logits, conditions = write(tmp_path)
    data = SyntheticSet(tmp_path)
    order = torch.tensor([11, 0, 5, 4, 7, 0])
    x, t, c = data.batch(order)
    assert len(data) == 12
    assert torch.equal(x, inputs[order].float() / 255)
    assert torch.equal(t, logits[order])
    assert torch.equal(c, conditions[order])
    assert torch.equal(data[8][0], inputs[8].float() / 255)


def test_vectors_keep_their_values(tmp_path):
    domain, x = Domain((2,), 2), torch.randn(4, 2)
    SyntheticWriter(tmp_path, domain).append(quantise(x), torch.zeros(4, 2), torch.zeros(4))
    assert torch.equal(SyntheticSet(tmp_path).batch(torch.arange(4))[0], x)


def test_a_shard_without_its_record_does_not_count(tmp_path):
    write(tmp_path)
    (tmp_path / "shard-000-00001.json").unlink()
    assert len(SyntheticSet(tmp_path)) == 9
    assert SyntheticWriter(tmp_path, DOMAIN).shards == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_images_stay_on_disk_and_no_file_stays_open(tmp_path):
    write(tmp_path)
    before = os.listdir("/proc/self/fd")
    data = SyntheticSet(tmp_path)
    data.batch(torch.tensor([0, 11, 5]))
    assert data._whole is None
    assert os.listdir("/proc/self/fd") == before


def test_a_file_that_is_cut_later_is_told(tmp_path):
    write(tmp_path)
    data, path = SyntheticSet(tmp_path), tmp_path / "shard-000-00000.logits.npy"
    path.write_bytes(path.read_bytes()[:-4])
    data.batch(torch.tensor([3]))
    with pytest.raises(OSError, match="ends too early"):
        data.batch(torch.tensor([4]))
    with pytest.raises(CheckpointError, match="Damaged"):
        SyntheticSet(tmp_path)


def test_damage_is_reported(tmp_path):
    with pytest.raises(CheckpointError, match="manifest"):
        SyntheticSet(tmp_path)
    write(tmp_path)
    (tmp_path / "shard-000-00000.json").write_text(json.dumps({"count": 6}))
    with pytest.raises(CheckpointError, match="shard-000-00000"):
        SyntheticSet(tmp_path)
    (tmp_path / "shard-000-00000.logits.npy").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="Damaged"):
        SyntheticSet(tmp_path)


def test_another_domain_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(CheckpointError, match="Expected a synthetic set"):
        SyntheticWriter(tmp_path, Domain((1, 8, 8), 3))


@pytest.mark.parametrize("index", [-1, 12])
def test_indices_out_of_range(tmp_path, index):
    write(tmp_path)
    with pytest.raises(IndexError):
        SyntheticSet(tmp_path).batch(torch.tensor([index]))


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def save(path, array):
        raise OSError("4194304 requested and 2989952 written")  # as numpy puts it

    writer = SyntheticWriter(tmp_path, Domain((1, 4, 4), 2, (0.5,), (0.5,)))
    monkeypatch.setattr(np, "save", save)
    with pytest.raises(OSError, match=r"disk may be full .*shard-000-00000\.inputs\.npy"):
        writer.append(
            torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, 2), torch.zeros(3).long()
        )
    assert not list(tmp_path.glob("*.npy"))
