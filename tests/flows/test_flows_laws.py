"""The laws of conditional flows, over the table of flows, and what only some flows can be asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flow_cases import ARCHITECTURES, BLOCKS, CLASSES
from flow_laws import LABELS, LAWS, inputs

CASES = ARCHITECTURES + BLOCKS
PLANE = [case for case in ARCHITECTURES if case.fresh().shape == (2,)]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_laws(case, law):
    law(case)


@pytest.mark.parametrize("case", PLANE, ids=lambda case: case.name)
def test_density_integrates_to_one(case):
    flow = case.perturbed()
    axis = torch.linspace(-16, 16, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for label in range(CLASSES):
        c = torch.full((len(grid),), label)
        with torch.no_grad():
            mass = flow.log_prob(grid, c).exp().sum() * (axis[1] - axis[0]) ** 2
        assert mass.item() == pytest.approx(1, abs=2e-3)


def test_the_density_is_that_of_the_samples():
    """Squashed, too: shares of samples agree with the integral of the density."""
    flow = next(case for case in PLANE if case.name == "nice-2d").perturbed()
    c = torch.ones(20_000, dtype=torch.int64)
    with torch.no_grad():
        x = flow.sample(c, generator=torch.Generator().manual_seed(0))
        axis = torch.linspace(-8, 8, 321, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        mass = flow.log_prob(grid, torch.ones(len(grid), dtype=torch.int64)).exp()
    for angle in (0.0, 1.0, 2.0):
        direction = torch.tensor([angle, 1.0], dtype=torch.float64)
        share = (x @ direction > 0.5).double().mean()
        expected = mass[grid @ direction > 0.5].sum() / mass.sum()
        assert share.item() == pytest.approx(expected.item(), abs=0.02)


LOADER = """
import sys, torch
from flow_cases import ARCHITECTURES
saved = torch.load(sys.argv[1], weights_only=True)
for case in ARCHITECTURES:
    flow = case.perturbed(seed=9)
    flow.load_state_dict(saved[case.name]["state"])
    log_prob = flow.log_prob(saved[case.name]["x"], saved["labels"])
    assert torch.equal(log_prob, saved[case.name]["log_prob"]), case.name
"""


@pytest.mark.slow
def test_states_load_in_another_process(tmp_path):
    """Module order must not depend on the process (FrEIA#168)."""
    saved = {"labels": LABELS}
    for case in ARCHITECTURES:
        flow = case.perturbed()
        x = inputs(flow)
        log_prob = flow.log_prob(x, LABELS).detach()
        saved[case.name] = {"state": flow.state_dict(), "x": x, "log_prob": log_prob}
    torch.save(saved, tmp_path / "states.pt")
    environment = os.environ | {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-c", LOADER, str(tmp_path / "states.pt")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
