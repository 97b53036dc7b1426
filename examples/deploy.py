"""A student without torch: exported to ONNX, run by onnxruntime and numpy alone.

pip install freia_kd[onnx]
python examples/deploy.py [RUN]    # without a run, a LeNet5 with random weights
"""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import freia_kd
from freia_kd.exporting import export
from freia_kd.teachers import build_net, save_classifier


def untrained(folder):
    domain = freia_kd.Domain((1, 32, 32), 10, mean=(0.3,), std=(0.3,))
    path = Path(folder) / "lenet5.safetensors"
    save_classifier(path, freia_kd.Classifier(build_net("lenet5", domain), domain, "lenet5"))
    return path


if __name__ == "__main__":
    if not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        sys.exit("This example needs onnx, onnxscript and onnxruntime: freia_kd[onnx].")
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        source = sys.argv[1] if len(sys.argv) > 1 else untrained(folder)
        (result,) = export(source, ["onnx"], Path(folder) / "student.onnx")
        session = onnxruntime.InferenceSession(result.file)  # all that a deployment needs
        shape = session.get_inputs()[0].shape[1:]
        pixels = np.random.default_rng(0).random((8, *shape), dtype=np.float32)
        (logits,) = session.run(["logits"], {"pixels": pixels})
        print(f"{result.bytes:,} bytes, at most {result.max_difference:.0e} from torch")
        print("classes of 8 random images:", logits.argmax(1))
