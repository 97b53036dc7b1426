"""What a student is to be: options of `distill`, `compress` and `compare`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import click

from freia_kd.config import PaperStudent, Runtime
from freia_kd.registry import COMPRESSIONS

from .command import Faults, option, options
from .options import OBJECT, bn_option

if TYPE_CHECKING:
    from freia_kd.compression import Compression
    from freia_kd.students import StudentSpec

TARGETS = ("target_params", "target_macs", "target_latency", "max_drop")
OWN = ("students", "layers", "ranks", "plan", *TARGETS)  # of the method tucker
NAMES = (
    *OWN,
    "runtime",
    "methods",
    "keep_ratio",
    "student_arch",
    "name",
    "bn",
)  # of all these options

student_options = options(
    option(
        "--student",
        "One of the papers' students, from the largest to the smallest; by default 1. For LeNet5 "
        "and ResNet14 these are KegNet's, and bdnf-1 to bdnf-3 those of BDNF's Table 1.",
        get_args(PaperStudent),
        name="students",
        multiple=True,
    ),
    option(
        "--layers PATTERN",
        "Compress the layers whose names match, such as 'layers3.*.conv1'; all matches every one.",
        multiple=True,
    ),
    option(
        "--ranks evbmf|RATIO|N|IN,OUT",
        "The ranks of --layers (of all layers without it): found by EVBMF (the default), a ratio "
        "of the channels such as 0.25, one number, or the input and the output rank.",
    ),
    option(
        "--plan FILE.yaml",
        "A file with patterns of layers and their ranks, one per line, such as 'conv2: 0.25'.",
        click.Path(exists=True, dir_okay=False),
    ),
    option(
        "--target-params SHARE",
        "Find the layers and ranks that leave at most this share of the parameters, such as 0.3.",
    ),
    option(
        "--target-macs SHARE",
        "Find those that leave at most this share of the multiply-accumulates.",
    ),
    option(
        "--target-latency SHARE",
        "Find those that leave at most this share of the time of one input, measured here in the "
        "--runtime.",
    ),
    option(
        "--runtime",
        "Where the student will run, in which --target-latency is measured: torch (the default) or "
        "onnxruntime (the extra onnx). What is faster in one may be slower in the other.",
        get_args(Runtime),
    ),
    option(
        "--max-drop POINTS",
        "Compress as far as the agreement with the teacher, before any distillation, drops by at "
        "most this many percentage points.",
    ),
    option(
        f"--method {OBJECT}",
        f"A method of compression: {', '.join(COMPRESSIONS.builtin)}, or one of your own. By "
        "default tucker (low ranks); prune removes channels, and quantize, always the last, makes "
        "eight-bit integers. Several are applied in this order.",
        name="methods",
        completes=COMPRESSIONS.builtin,
        multiple=True,
    ),
    option(
        "--keep-ratio SHARE",
        "The share of the multiply-accumulates that --method prune keeps; by default 0.5.",
    ),
    option(
        f"--student-arch {OBJECT}",
        "Distil into a new net of this architecture, with random weights, instead of what "
        "compression makes of the teacher. A --method then compresses that net once it is trained.",
    ),
    option(
        "--name NAME",
        "The student's name in reports and files; by default it says how the student is made.",
    ),
    bn_option,
)


def make_students(
    faults: Faults, given: dict[str, Any], settings: dict[str, Any]
) -> list[StudentSpec] | None:
    """The students that the options ask for; `None` where they ask for none.

    Arguments:
        faults: Where what is wrong goes.
        given: The options, from which those of students are taken.
        settings: What `--set` says, from which what the methods of compression know is taken.
    """
    from freia_kd.compression import Prune, Tucker, get_compression
    from freia_kd.students import StudentSpec

    own = {name: given.pop(name) for name in NAMES}
    arch = own["student_arch"]
    kinds: list[type[Compression]] = []
    for name in own["methods"] or (() if arch else (Tucker.name,)):
        with faults:
            kinds.append(get_compression(name))
    changes = {kind: _settings_of(kind.title, settings) for kind in kinds}
    if own["keep_ratio"] is not None:
        faults.names["prune.keep_ratio"] = "--keep-ratio"
        prune = next((kind for kind in kinds if kind is Prune), None)
        faults.expect(prune, "--keep-ratio is an option of --method prune, which is not given.")
        if prune is not None:
            said = "--keep-ratio and --set prune.keep_ratio say the same; pass one of them."
            faults.expect("keep_ratio" not in changes[prune], said)
            changes[prune]["keep_ratio"] = own["keep_ratio"]
    choices = _choices(faults, own)
    if choices and (own["methods"] or arch) and Tucker.name not in own["methods"]:
        faults.add(
            f"{_typed(own)[0]} chooses low ranks, which are of --method tucker; it is not given."
        )
    is_asked = arch or own["methods"] or own["name"] or own["bn"] or own["keep_ratio"] or choices
    if not is_asked and not any(changes.values()):
        return None
    specs = []
    is_whole = {"student", "layers", "target"} & set(changes.get(Tucker, {}))
    for choice in choices or [{} if is_whole else {"student": "1"}]:
        methods: list[Compression] = []
        for kind in kinds:
            with faults:
                chosen = choice if kind is Tucker else {}
                methods.append(kind.from_dict({**chosen, **changes[kind]}))
        if len(methods) == len(kinds) and (methods or not own["methods"]):
            with faults:
                specs.append(StudentSpec(tuple(methods), own["name"] or "", own["bn"], arch))
    faults.expect(
        not own["name"] or len(choices) < 2, "--name names one student; several are asked for."
    )
    return specs


def expect_methods(faults: Faults, settings: Mapping[str, Any]) -> None:
    """Refuses what is left of the settings for methods of compression that are not given."""
    for key in settings:
        name = key.rpartition(".")[0]
        if name in COMPRESSIONS.builtin:
            faults.add(f"--set {key} is of --method {name}, which is not given.")


def _settings_of(title: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Takes what is said of `title` out of the settings."""
    own = [key for key in settings if key.rpartition(".")[0] == title]
    return {key.rpartition(".")[2]: settings.pop(key) for key in own}


def _typed(own: Mapping[str, Any]) -> list[str]:
    """Which of the ways to choose low ranks were typed."""
    given = [name for name in OWN if own[name] not in (None, ())]
    if "layers" in given and "ranks" in given:
        given.remove("ranks")
    return [f"--{'student' if n == 'students' else n.replace('_', '-')}" for n in given]


def _choices(faults: Faults, own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The options of the method tucker, one for each student."""
    from freia_kd.compression import parse_ranks, read_rules

    typed = _typed(own)
    faults.expect(
        own["runtime"] is None or own["target_latency"] is not None,
        "--runtime is an option of --target-latency, which is not given.",
    )
    if len(typed) > 1:
        faults.add(
            f"Pass only one of {' and '.join(typed)}: each says by itself which layers are "
            "compressed, and how far."
        )
        return []
    for name in TARGETS:
        if own[name] is not None:
            faults.names["tucker.goal"] = typed[0]
            target = "drop" if name == "max_drop" else name.removeprefix("target_")
            where = {"runtime": own["runtime"]} if own["runtime"] else {}
            return [{"target": target, "goal": own[name], **where}]
    if own["plan"] is not None:
        try:
            return [{"layers": read_rules(own["plan"])}]
        except ValueError as error:
            faults.add(f"--plan: {error}")
            return []
    if own["layers"] or own["ranks"]:
        with faults:
            ranks = parse_ranks(own["ranks"] or "evbmf")
            return [{"layers": dict.fromkeys(own["layers"] or ("all",), ranks)}]
        return []
    return [{"student": student} for student in own["students"]]
