"""An endless synthetic set, and the teacher's answers to drawn inputs."""

import pytest
import torch

from freia_kd.data.synthetic import quantise
from freia_kd.synthesizers import build_synthesizers
from freia_kd.synthesizers.noise import Spectral
from freia_kd.synthesizers.on_the_fly import OnTheFlySet, generate_labelled


@pytest.fixture
def sources(teacher):
    made = build_synthesizers("spectral+uniform")
    for source in made:
        source.fit(teacher)
    return made


def test_sources_share_alike_and_the_teacher_answers_what_is_kept(teacher, sources):
    x, logits, labels = generate_labelled(sources, teacher, 7, torch.Generator().manual_seed(0))
    assert x.shape == (7, 1, 32, 32)
    assert x.dtype == torch.uint8
    with torch.no_grad():
        torch.testing.assert_close(logits, teacher(x.float() / 255))
    assert torch.equal(labels, logits.argmax(1)) or labels.shape == (7,)
    roughness = x.float().diff(dim=3).abs().mean((1, 2, 3))
    assert (roughness[:4] < roughness[4:].min()).all()  # four spectral, then three uniform


def test_an_index_holds_the_same_input_in_whatever_order(teacher, sources):
    endless = OnTheFlySet(sources, teacher, seed=3, chunk=10)
    x, logits, labels = endless.batch(torch.arange(35))
    order = torch.randperm(35, generator=torch.Generator().manual_seed(0))
    again = OnTheFlySet(sources, teacher, seed=3, chunk=10).batch(order)
    assert all(torch.equal(a[order], b) for a, b in zip((x, logits, labels), again, strict=True))
    assert len(x.flatten(1).unique(dim=0)) == 35
    assert 0 <= x.min() <= x.max() <= 1
    with torch.no_grad():
        torch.testing.assert_close(logits, teacher(x))


def test_the_seed_makes_the_inputs(teacher, sources):
    one, two = (
        OnTheFlySet(sources, teacher, seed, chunk=10).batch(torch.arange(5))[0] for seed in (0, 1)
    )
    assert not torch.equal(one, two)


def test_every_part_of_a_chunk_holds_all_sources(teacher, sources):
    x, _, _ = OnTheFlySet(sources, teacher, seed=0, chunk=64).batch(torch.arange(16))
    smooth = x.diff(dim=3).abs().mean((1, 2, 3)) < 0.1
    assert 2 <= smooth.sum() <= 14


def test_negative_indices_are_refused(teacher, sources):
    with pytest.raises(IndexError, match="from 0"):
        OnTheFlySet(sources, teacher, 0).batch(torch.tensor([-1]))


def test_noise_is_answered_once(teacher):
    asked, noise = [], Spectral()
    noise.fit(teacher)
    hook = teacher.net.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    try:
        made = generate_labelled([noise], teacher, 300, torch.Generator().manual_seed(0))
    finally:
        hook.remove()
    assert sum(asked) == 300
    inputs, logits, labels = made
    assert torch.equal(labels, logits.argmax(1))
    drawn, said = noise.sample(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantise(drawn), inputs)
    assert (said == labels).float().mean() > 0.95  # the rest differ by the rounding of pixels
