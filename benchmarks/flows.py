"""How fast our flows are beside FrEIA's, normflows', nflows' and zuko's, as paired ratios.

OMP_NUM_THREADS=1 python benchmarks/flows.py --compile --output benchmarks/results/flows.json
OMP_NUM_THREADS=1 python benchmarks/flows.py --only nice --rounds 5

(`--output` writes the page beside the JSON file, too.)

All contenders of a family do the same work: as many couplings, as wide, for the same batch. They
run in turns within each round, in a new random order, and each time is divided by that of the
plain FrEIA assembly in the same round. Reported are the median of these ratios and their
quartiles. A training step is latents to inputs, a loss of inputs and log-determinants, and its
backward pass (without an optimizer, which is the same for all). Times are CPU times of one thread,
since wall times on a shared machine measure the neighbours too.

Memory is how far the peak of a forked process rises above its start, in a training step. A compiled
net compiles in its first step: the time and memory of a fresh process with an empty cache that
imports, builds, compiles and takes one step are stated.

"Fixed" samples within `flow.fixed()`, which is entered before the clock starts.

The floor of NICE: what a step of it cannot do without, each alone. That is reading the weights from
memory for the forward pass and for the backward pass, writing their gradients, and the products
of bfloat16 numbers that are in the processor's cache.

`--also module:function` adds a contender, such as the paper's own code: `function(family)` is
called with "nice" or "glow" and gives an object with `decode(z, c)` and `log_prob(x, c)`, or None.
"""

import argparse
import ctypes
import gc
import os
import platform
import random
import resource
import statistics
import tempfile
import time
from contextlib import nullcontext
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import FrEIA.framework as ff
import FrEIA.modules as fm
import torch
from torch import nn

from freia_kd.files import write_json
from freia_kd.flows.bases import GaussianBase
from freia_kd.flows.glow import Glow
from freia_kd.flows.nice import NICE
from freia_kd.registry import import_object

CLASSES = 10
FEATURES, COUPLINGS, WIDTH = 1024, 8, 1500  # NICE, as the paper has it
IMAGE, LEVELS, STEPS, HIDDEN = (3, 32, 32), 3, 8, 32  # Glow
SHAPES = {"nice": (FEATURES,), "glow": IMAGE}
TASKS = ("train", "sample", "log_prob")


def mlp(c_in, c_out):
    layers = [nn.Linear(c_in, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, c_out))


def convnet(norm=False):
    def make(c_in, c_out):
        first = [nn.Conv2d(c_in, HIDDEN, 3, padding=1), *[nn.BatchNorm2d(HIDDEN)] * norm, nn.ReLU()]
        second = [nn.Conv2d(HIDDEN, HIDDEN, 1), *[nn.BatchNorm2d(HIDDEN)] * norm, nn.ReLU()]
        return nn.Sequential(*first, *second, nn.Conv2d(HIDDEN, c_out, 3, padding=1))

    return make


def one_hot(c):
    return nn.functional.one_hot(c, CLASSES).float()


def gaussian(z, shape):
    return GaussianBase(shape).log_prob(z)


def ours(flow):
    return SimpleNamespace(
        net=flow,
        decode=flow.decode_unbounded,
        log_prob=lambda x, c: _density(flow, x, c),
    )


def _density(flow, x, c):
    z, ladj = flow.encode_unbounded(x, c)
    return flow.base.log_prob(z) + ladj


def freia_nice():
    inn = ff.SequenceINN(FEATURES)
    condition = {"cond": 0, "cond_shape": (CLASSES,)}
    for _ in range(COUPLINGS):
        inn.append(fm.PermuteRandom)
        inn.append(fm.AffineCouplingOneSided, subnet_constructor=mlp, clamp=1.0, **condition)
    return SimpleNamespace(
        net=inn,
        decode=lambda z, c: inn(z, c=[one_hot(c)], rev=True),
        log_prob=lambda x, c: _freia_log_prob(inn(x, c=[one_hot(c)]), (FEATURES,)),
    )


def _freia_log_prob(output, shape):
    z, ladj = output
    return gaussian(z, shape) + ladj


def normflows_nice():
    import normflows as nf

    flows = []
    for _ in range(COUPLINGS):
        net = nf.nets.MLP([FEATURES // 2, WIDTH, WIDTH, FEATURES], init_zeros=True)
        flows += [nf.flows.AffineCouplingBlock(net), nf.flows.Permute(FEATURES, mode="swap")]
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(FEATURES, trainable=False), flows)
    return SimpleNamespace(
        net=flow,
        decode=lambda z, c: flow.forward_and_log_det(z),
        log_prob=lambda x, c: flow.log_prob(x),
    )


def nflows_nice():
    import nflows.distributions as nd
    import nflows.flows
    import nflows.transforms as nt

    class Net(nn.Module):
        def __init__(self, c_in, c_out):
            super().__init__()
            self.net = mlp(c_in + CLASSES, c_out)

        def forward(self, x, context=None):
            return self.net(torch.cat([x, context], 1))

    mask = torch.arange(FEATURES) % 2
    steps = [nt.AffineCouplingTransform((mask + i) % 2, Net) for i in range(COUPLINGS)]
    flow = nflows.flows.Flow(nt.CompositeTransform(steps), nd.StandardNormal([FEATURES]))
    return SimpleNamespace(
        net=flow,
        decode=lambda z, c: flow._transform.inverse(z, context=one_hot(c)),
        log_prob=lambda x, c: flow.log_prob(x, context=one_hot(c)),
    )


def zuko_nice():
    import zuko

    flow = zuko.flows.NICE(FEATURES, CLASSES, transforms=COUPLINGS, hidden_features=(WIDTH, WIDTH))
    return SimpleNamespace(
        net=flow,
        decode=lambda z, c: flow.transform(one_hot(c)).inv.call_and_ladj(z),
        log_prob=lambda x, c: flow(one_hot(c)).log_prob(x),
    )


def freia_glow(norm=False):
    """A graph that branches, as FrEIA's documentation builds it, with the class on planes."""
    nodes = [ff.InputNode(*IMAGE, name="image")]
    planes, ends = [], []
    channels, size = IMAGE[0], IMAGE[1]
    for level in range(LEVELS):
        nodes.append(ff.Node(nodes[-1], fm.IRevNetDownsampling, {}))
        channels, size = 4 * channels, size // 2
        planes.append(ff.ConditionNode(CLASSES, size, size))
        for _ in range(STEPS):
            matrix = torch.linalg.qr(torch.randn(channels, channels))[0]
            nodes.append(ff.Node(nodes[-1], fm.Fixed1x1Conv, {"M": matrix}))
            options = {"subnet_constructor": convnet(norm), "clamp": 1.0}
            nodes.append(
                ff.Node(nodes[-1], fm.AffineCouplingOneSided, options, conditions=planes[-1])
            )
        if level < LEVELS - 1:
            channels //= 2
            nodes.append(ff.Node(nodes[-1], fm.Split, {}))
            ends.append(ff.OutputNode(nodes[-1].out0))
            nodes.append(
                ff.Node(nodes[-1].out1, fm.Reshape, {"output_dims": (channels, size, size)})
            )
    ends.append(ff.OutputNode(nodes[-1]))
    inn = ff.GraphINN([*nodes, *planes, *ends])
    shapes = [tuple(shape) for shape in inn.global_out_shapes]

    def conditions(c):
        return [one_hot(c)[:, :, None, None].expand(-1, *p.dims) for p in planes]

    def split(z):
        sizes = [torch.Size(shape).numel() for shape in shapes]
        parts = z.flatten(1).split(sizes, 1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

    def log_prob(x, c):
        parts, ladj = inn(x, c=conditions(c))
        return ladj + sum(gaussian(z, z.shape[1:]) for z in parts)

    return SimpleNamespace(
        net=inn, decode=lambda z, c: inn(split(z), c=conditions(c), rev=True), log_prob=log_prob
    )


def normflows_glow():
    import normflows as nf

    bases, merges, flows = [], [], []
    channels, size, _ = IMAGE
    for level in range(LEVELS):  # coarsest first
        width, side = channels * 2 ** (LEVELS + 1 - level), size // 2 ** (LEVELS - level)
        steps = [nf.flows.GlowBlock(width, HIDDEN) for _ in range(STEPS)]
        flows.append([*steps, nf.flows.Squeeze()])
        if level:
            merges.append(nf.flows.Merge())
        shape = (width // 2 if level else width, side, side)
        bases.append(nf.distributions.DiagGaussian(shape, trainable=False))
    flow = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)
    shapes = [base.shape for base in bases]

    def split(z):
        parts = z.flatten(1).split([torch.Size(s).numel() for s in shapes], 1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

    return SimpleNamespace(
        net=flow,
        decode=lambda z, c: flow.forward_and_log_det(split(z)),
        log_prob=lambda x, c: flow.log_prob(x, None),
    )


def nflows_glow():
    import nflows.distributions as nd
    import nflows.flows
    import nflows.transforms as nt

    class Net(nn.Module):
        """The same subnet as ours, the class as a bias of the first layer."""

        def __init__(self, c_in, c_out):
            super().__init__()
            self.net = convnet()(c_in, c_out)
            self.bias = nn.Linear(CLASSES, HIDDEN, bias=False)

        def forward(self, x, context=None):
            h = self.net[0](x) + self.bias(context)[:, :, None, None]
            return self.net[1:](h)

    channels, height, width = IMAGE
    multiscale = nt.MultiscaleCompositeTransform(LEVELS)
    for _ in range(LEVELS):
        channels, height, width = 4 * channels, height // 2, width // 2
        steps = [nt.SqueezeTransform()]
        mask = (torch.arange(channels) >= channels // 2).int()
        for _ in range(STEPS):
            steps += [nt.OneByOneConvolution(channels), nt.AffineCouplingTransform(mask, Net)]
        shape = multiscale.add_transform(nt.CompositeTransform(steps), (channels, height, width))
        if shape is not None:
            channels = shape[0]
    flow = nflows.flows.Flow(multiscale, nd.StandardNormal([torch.Size(IMAGE).numel()]))
    return SimpleNamespace(
        net=flow,
        decode=lambda z, c: flow._transform.inverse(z.flatten(1), context=one_hot(c)),
        log_prob=lambda x, c: flow.log_prob(x, context=one_hot(c)),
    )


def our_nice(**options):
    return ours(NICE((FEATURES,), CLASSES, transforms=COUPLINGS, hidden_features=WIDTH, **options))


def our_glow(**options):
    flow = Glow(IMAGE, CLASSES, levels=LEVELS, steps=STEPS, hidden_features=HIDDEN, **options)
    return ours(flow)


def contenders(family, compiled):
    """Names to constructors; the first is what the others are divided by."""
    if family == "nice":
        return {
            "FrEIA": freia_nice,
            "ours": our_nice,
            "ours, bf16": lambda: our_nice(bf16=True),
            "ours, fixed": our_nice,
            "ours, bf16, fixed": lambda: our_nice(bf16=True),
            "normflows (no condition)": normflows_nice,
            "nflows": nflows_nice,
            "zuko": zuko_nice,
        }
    names = {
        "FrEIA": freia_glow,
        "FrEIA, BatchNorm": lambda: freia_glow(norm=True),
        "ours": our_glow,
        "ours, bf16": lambda: our_glow(bf16=True),
        "ours, fixed": our_glow,
        "ours, bf16, fixed": lambda: our_glow(bf16=True),
        "ours, not channels_last": lambda: our_glow(channels_last=False),
        "ours, bf16, not channels_last": lambda: our_glow(bf16=True, channels_last=False),
        "normflows (no condition)": normflows_glow,
        "nflows": nflows_glow,
    }
    if compiled:
        names["ours, compile"] = lambda: our_glow(compile=True)
        names["ours, compile, bf16"] = lambda: our_glow(compile=True, bf16=True)
    return names


def build(make, shape):
    torch.manual_seed(0)
    contender = make()
    z, c = torch.randn(2, *shape), torch.tensor([0, 1])
    if not any(getattr(m, "_compiled_call_impl", None) for m in contender.net.modules()):
        contender.log_prob(z, c)  # layers of other libraries that want to see data first
    with torch.no_grad():
        for parameter in contender.net.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(0.01 * torch.randn_like(parameter))
    return contender


def tasks(contender, shape, batch):
    """The timed functions by name."""
    z, c = torch.randn(batch, *shape), torch.randint(CLASSES, (batch,))

    def train():
        contender.net.zero_grad()
        x, ladj = contender.decode(z, c)
        (x.square().mean() - ladj.mean() / z[0].numel()).backward()

    def sample():
        with torch.no_grad():
            contender.decode(z, c)

    def log_prob():
        with torch.no_grad():
            contender.log_prob(z, c)

    return {"train": train, "sample": sample, "log_prob": log_prob}


def seconds(function, at_least, region=None):
    """CPU seconds of one call, within a region if there is one; fast ones are repeated."""
    with nullcontext() if region is None else region():
        count, start = 0, time.process_time()
        while True:
            function()
            count += 1
            spent = time.process_time() - start
            if spent >= at_least:
                return spent / count


def measured(name, task, batch):
    """Whether a contender has such a task."""
    if "fixed" in name:  # a region without gradients
        return task != "train"
    # Compiling takes minutes for each task and batch: only training repays it.
    return "compile" not in name or (task == "train" and batch > 1)


def measure(built, shape, batch, rounds):
    """Ratios and times of all contenders, by task."""
    functions = {name: tasks(contender, shape, batch) for name, contender in built.items()}
    reference = next(iter(built))
    found = {}
    for task in TASKS:
        names = [name for name in built if measured(name, task, batch)]
        for name in names:
            functions[name][task]()  # warm up, or compile
        rows = []
        for _ in range(rounds):
            order = random.sample(names, len(names))
            regions = {n: built[n].net.fixed for n in order if "fixed" in n}
            least = 0.02 if batch == 1 else 0.0
            rows.append({n: seconds(functions[n][task], least, regions.get(n)) for n in order})
        found[task] = {
            name: summary([row[name] for row in rows], [row[name] / row[reference] for row in rows])
            for name in names
        }
    return found


def summary(times, ratios):
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
        "milliseconds": round(1e3 * statistics.median(times), 2),
    }


def peak_megabytes(function):
    """How far the peak memory of a forked process rises while it runs the function."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        before = _status("VmRSS")
        function()
        os.write(writer, str(_status("VmHWM") - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return round(int(pipe.read() or -1) / 1024, 1)


def compiling(name, batch):
    """What the first training step of a compiled net costs, in a fresh process."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with get_context("spawn").Pool(1) as pool:
        megabytes = pool.apply(_first_steps, (name, batch))
        pool.close()
        pool.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(time.monotonic() - start),
        "CPU seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
        "MB of the process": megabytes[0],
        "MB of its largest child": megabytes[1],
    }


def _first_steps(name, batch):
    """Peak memory of a process that takes the first step, and of its largest child."""
    torch.set_num_threads(1)
    tasks(build(contenders("glow", True)[name], IMAGE), IMAGE, batch)["train"]()
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return [round(resource.getrusage(kind).ru_maxrss / 1024) for kind in kinds]


def floor(batch):
    """Milliseconds of what NICE cannot do without, see the head of this file."""
    half = FEATURES // 2
    shapes = [(WIDTH, half), (WIDTH, WIDTH), (FEATURES, WIDTH)]
    weights = [torch.randn(shape) for _ in range(COUPLINGS) for shape in shapes]
    gradients = [torch.empty_like(weight) for weight in weights]
    ends = [[torch.randn(batch, n).bfloat16() for n in shape] for shape in shapes]
    low = [torch.randn(shape).bfloat16() for shape in shapes]

    def cast():
        for weight in weights:
            weight.to(torch.bfloat16)

    def write():
        for gradient in gradients:
            gradient.fill_(1.0)

    def multiply():
        for (y, x), weight in zip(ends, low, strict=True):
            for _ in range(COUPLINGS):
                nn.functional.linear(x, weight), y @ weight, y.t() @ x

    parts = {
        "read the weights once": lambda: [weight.sum() for weight in weights],
        "cast them to bfloat16": cast,
        "write their gradients": write,
        "bfloat16 products in the cache": multiply,
    }
    found = {}
    for name, part in parts.items():
        part()
        found[name] = round(1e3 * statistics.median(seconds(part, 0.0) for _ in range(7)), 1)
    return found


def _status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field))


def conditions():
    with open("/proc/cpuinfo") as lines:
        text = lines.read()
    libraries = ("torch", "FrEIA", "normflows", "nflows", "zuko")
    return {
        "processor": platform.processor() or platform.machine(),
        "avx512_bf16": "avx512_bf16" in text,
        "amx_bf16": "amx_bf16" in text,
        "threads": torch.get_num_threads(),
        "time": "CPU time of the process",
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in libraries},
        "nice": {"features": FEATURES, "couplings": COUPLINGS, "width": WIDTH, "classes": CLASSES},
        "glow": {"shape": IMAGE, "levels": LEVELS, "steps": STEPS, "width": HIDDEN},
    }


def cells(name, found):
    """The ratios of one contender, by task, as text."""
    for task in TASKS:
        row = found[task].get(name)
        if row is None:
            yield ""
        else:
            low, high = row["quartiles"]
            yield f"{row['ratio']:.2f} ({low:.2f}-{high:.2f}), {row['milliseconds']:.1f} ms"


def page(results):
    """The results as Markdown."""
    made = results["conditions"]
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    kinds = ", ".join(name for name in ("avx512_bf16", "amx_bf16") if made[name]) or "no bfloat16"
    lines = [
        "# Speed of the flows",
        "",
        "Ratios to plain FrEIA in the same round: the median, the quartiles and the median time. "
        f"CPU time of {made['threads']} thread ({kinds}), load {made['load']:.1f}; {versions}. "
        "By `benchmarks/flows.py`. Memory: how far a training step raises the peak.",
    ]
    for family in ("nice", "glow"):
        for batch, entry in results.get(family, {}).items():
            found, memory = entry["ratios"], entry["peak_megabytes"]
            lines += ["", f"## {family}, {batch}", ""]
            lines += ["| | " + " | ".join((*TASKS, "MB")) + " |", "|---" * (len(TASKS) + 2) + "|"]
            for name in dict.fromkeys(name for task in TASKS for name in found[task]):
                row = (name, *cells(name, found), str(memory.get(name, "")))
                lines.append("| " + " | ".join(row) + " |")
            for name, cost in entry.get("compiling", {}).items():
                said = ", ".join(f"{value} {what}" for what, value in cost.items())
                lines += ["", f"Compiling `{name}`: {said}."]
            if "floor" in entry:
                said = ", ".join(f"{what} {value} ms" for what, value in entry["floor"].items())
                lines += ["", f"The floor of a step: {said}."]
    for note in results.get("notes", []):  # by whoever ran it
        lines += ["", note]
    return "\n".join(lines) + "\n"


def run(family, makers, arguments):
    """All that is measured of a family."""
    built = {name: build(make, SHAPES[family]) for name, make in makers.items()}
    results = {}
    for batch in arguments.batches:
        entry = {"peak_megabytes": {}, "compiling": {}}
        for name, contender in built.items():
            if measured(name, "train", batch) and batch > 1:
                train = tasks(contender, SHAPES[family], batch)["train"]
                if "compile" in name:
                    entry["compiling"][name] = compiling(name, batch)
                    train()  # from what that left in the cache
                entry["peak_megabytes"][name] = peak_megabytes(train)
        entry["ratios"] = measure(built, SHAPES[family], batch, arguments.rounds)
        if family == "nice" and batch > 1:
            entry["floor"] = floor(batch)
        results[f"batch {batch}"] = entry
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=["nice", "glow"], help="one family")
    parser.add_argument("--rounds", type=int, default=7, help="rounds at batch 64")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 1])
    parser.add_argument("--compile", action="store_true", help="with torch.compile (minutes)")
    parser.add_argument("--also", metavar="MODULE:FUNCTION", help="one more contender")
    parser.add_argument("--output", help="where to write the results as JSON, and the page")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    results = {"conditions": conditions(), "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for family in [arguments.only] if arguments.only else ["nice", "glow"]:
            makers = contenders(family, arguments.compile)
            if arguments.also and (extra := import_object(arguments.also)(family)) is not None:
                makers[arguments.also] = lambda extra=extra: extra
            results[family] = run(family, makers, arguments)
    print(page(results))
    if arguments.output:
        write_json(arguments.output, results)
        Path(arguments.output).with_suffix(".md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
