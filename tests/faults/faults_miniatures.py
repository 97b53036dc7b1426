"""A teacher and data that commands read."""

import numpy as np
import torch
from job_cases import SMALL, make_data

from freia_kd.teachers import Classifier, build_net, save_classifier


def write_places(folder):
    """Writes both into a folder, as `T.pt` and `D.npz`."""
    torch.manual_seed(0)
    net = build_net("mlp", SMALL)
    net.layers[-1].weight.data *= 20
    save_classifier(folder / "T.pt", Classifier(net, SMALL, "mlp"))
    data = make_data()
    np.savez(folder / "D.npz", x=data.inputs.numpy(), y=data.labels.numpy())
    return folder
