"""What `--target-latency` and int8 are worth in PyTorch and in onnxruntime.

    python benchmarks/latency.py

ResNet18, MobileNetV2 and VGG11 of torchvision with random weights, on one thread: the net itself,
its students of `Tucker(target="latency")`, one for each runtime and both timed in both, and the net
in 8-bit integers as `export` writes it. All forms take turns, by the time of the processor, which a
busy machine hardly changes; ratios are medians over rounds with 95 % intervals. Writes
`benchmarks/results/latency.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from real_sizes import line, lively

from freia_kd.compression import Quantize, Tucker
from freia_kd.compression.cost import Speed, count_macs, latency_of, time_rounds
from freia_kd.domain import Domain
from freia_kd.errors import UsageError
from freia_kd.exporting.formats import FORMATS
from freia_kd.runtimes import InOnnxRuntime
from freia_kd.students import StudentSpec, build, calibration_set
from freia_kd.teachers import Teacher

HERE = Path(__file__).resolve().parents[1]
RUNTIMES = ("torch", "onnxruntime")
NETS = {"resnet18": 0.7, "mobilenet_v2": 0.9, "vgg11_bn": 0.7}  # with the targets asked for
STUDENTS = tuple(f"for {runtime}" for runtime in RUNTIMES)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def measure(name, side, batches, seconds):
    from torchvision import models

    torch.manual_seed(0)
    domain = Domain((3, side, side), 10, MEAN, STD, "random")
    net = lively(getattr(models, name)(num_classes=10), domain)
    teacher = Teacher(net, domain, f"torchvision.models:{name}")
    inputs, found = (
        calibration_set(teacher, size=64),
        {"net": name, "side": side, "target": NETS[name]},
    )
    nets, found["searches"] = {"before": teacher}, {}
    for runtime in RUNTIMES:
        start = time.process_time()
        method = Tucker(target="latency", goal=NETS[name], runtime=runtime)
        try:
            student = build(teacher, StudentSpec((method,)), inputs)
        except UsageError as error:
            found["searches"][runtime] = {"refused": str(error)}
            continue
        net = nets[f"for {runtime}"] = student.classifier.eval().requires_grad_(False)
        (search,) = student.searches
        found["searches"][runtime] = {
            "reached": search["reached"],
            "agreement": search["agreement"],
            "batches": search["batches"],
            "processor_seconds": round(time.process_time() - start, 1),
            "layers_at_lower_ranks": len(student.steps[0]["layers"]),
            "layers_left_alone": len(student.steps[0]["skipped"]),
            "macs": count_macs(net, domain.shape) / count_macs(teacher, domain.shape),
        }
    int8 = build(teacher, StudentSpec((Quantize(),)), inputs).classifier
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for key, form in {**nets, "int8": int8}.items():
            path = paths[key] = Path(folder) / f"{key}.onnx"
            FORMATS["onnx"].write(
                form, path, {}
            )  # timed only: answers of random weights mean little
        found["integer_kernels"] = integer_kernels(paths["int8"])
        runtimes = {
            "torch": nets,
            "onnxruntime": {key: InOnnxRuntime(str(path)) for key, path in paths.items()},
        }
        found["latency"] = {
            runtime: {str(b): compare(forms, domain.shape, b, seconds) for b in batches}
            for runtime, forms in runtimes.items()
        }
    return found


def integer_kernels(path):
    """How many of an exported net's convolutions and products onnxruntime computes in integers."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # a warning that the graph is for this processor alone
    options.optimized_model_filepath = str(path.with_suffix(".seen.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    seen = onnx.load(options.optimized_model_filepath, load_external_data=False)
    kinds = [node.op_type for node in seen.graph.node]
    integer = sum(kind in ("QLinearConv", "QGemm", "MatMulIntegerToFloat") for kind in kinds)
    return [integer, integer + sum(kind in ("Conv", "FusedConv", "Gemm") for kind in kinds)]


def compare(forms, shape, batch, seconds):
    """Milliseconds of each form, and how many times faster than the net itself it is."""
    with torch.no_grad():
        times = time_rounds(
            list(forms.values()), [shape] * len(forms), batch, seconds, time.thread_time
        )
    rows = {}
    for key, taken in zip(forms, times, strict=True):
        speed = Speed.of(times[0], taken)
        rows[key] = {
            "ms": round(latency_of(taken, batch).median, 3),
            "times_faster": [round(v, 3) for v in (speed.ratio, speed.low, speed.high)],
            "rounds": speed.rounds,
        }
    return rows


def write(path, result):
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["# Latency before and after", "", result["about"], ""]
    heads = ["net", "runtime", "batch", "before, ms", "target", *STUDENTS, "int8"]
    lines += [line(heads), "|" + "---|" * len(heads)]

    def told(row):
        if row is None:
            return "-"
        ratio, low, high = row["times_faster"]
        return f"{row['ms']:.2f} ms, {ratio:.2f}x ({low:.2f} to {high:.2f})"

    for net in result["nets"]:
        for runtime, batches in net["latency"].items():
            for batch, rows in batches.items():
                target = f"{1 / net['target']:.2f}x" if batch == "1" else "-"
                cells = [f"{net['net']}, {net['side']} px", runtime, batch]
                cells += [f"{rows['before']['ms']:.2f}", target]
                lines.append(line([*cells, *(told(rows.get(key)) for key in (*STUDENTS, "int8"))]))
    lines += [""]
    for net in result["nets"]:
        integer, layers = net["integer_kernels"]
        lines.append(
            f"- {net['net']}, {net['side']} px, int8: {integer} of {layers} layers in integer "
            "kernels; weights of the others are turned into floats in every pass."
        )
        for runtime, search in net["searches"].items():
            lines.append(f"- {net['net']}, {net['side']} px, for {runtime}: {described(search)}")
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def described(search):
    if "refused" in search:
        return search["refused"]
    return (
        f"{search['layers_at_lower_ranks']} layers at lower ranks, "
        f"{search['layers_left_alone']} left alone; {search['macs']:.0%} of the "
        f"multiply-accumulates; an agreement of {search['agreement']:.0%} before any training; "
        f"{search['batches']} batches and {search['processor_seconds']:.0f} s of a core for the "
        f"search, which measured {search['reached']:.0%} of the latency."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(NETS))
    parser.add_argument("--side", type=int, default=32, help="of an image, in pixels")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 64])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each form")
    parser.add_argument("--results", type=Path, default=HERE / "benchmarks/results/latency")
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.results.with_suffix(".json")
    nets = json.loads(path.read_text())["nets"] if path.exists() else []
    for name in given.only:
        found = measure(name, given.side, given.batches, given.seconds)
        found["load_average"] = round(os.getloadavg()[0], 1)
        print(json.dumps(found), flush=True)
        nets = [n for n in nets if (n["net"], n["side"]) != (name, given.side)] + [found]
        result = {
            "about": (
                f"Random weights, 10 classes, one thread; {os.cpu_count()} cores "
                f"({platform.machine()}) that other processes share; torch {torch.__version__}. "
                "How many times faster than the net itself in the same runtime, with 95 % "
                "intervals over rounds in which all forms took turns. int8 is what onnxruntime's "
                "own kernels make of the exported QuantizeLinear nodes."
            ),
            "nets": nets,
        }
        write(given.results, result)


if __name__ == "__main__":
    main()
