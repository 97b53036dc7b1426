"""The paper's figure 2 from Python: what a flow learns of two moons, without data and with a few.

python examples/toy_2d.py --out toy
"""

import argparse

import torch

from freia_kd.experiments.figure2 import figure2

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="toy", help="folder for moons.png and moons.json")
    parser.add_argument("--steps", type=int, default=400, help="training steps of each flow")
    options = parser.parse_args()

    result = figure2("moons", torch.Generator().manual_seed(0), steps=options.steps)
    for name in ("data_free", "with_samples"):
        numbers = result.numbers[name]
        print(
            f"{name}: energy distance to the true data {numbers['energy_distance']:.3f}, "
            f"{numbers['right_side']:.0%} on the teacher's right side"
        )
    print(result.save(options.out))
