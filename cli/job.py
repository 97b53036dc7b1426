"""What `distill` and `extract` share: a run's options, for a new run and for one that goes on."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from freia_kd.config import DistillationOptions, Precision, get_preset, losses
from freia_kd.errors import UsageError
from freia_kd.files import TRIAL
from freia_kd.flows import FLOWS
from freia_kd.registry import COMPRESSIONS
from freia_kd.synthesizers import (
    AUTO,
    IMAGE_DEFAULT,
    STATISTICS_DEFAULT,
    SYNTHESIZERS,
    VECTOR_DEFAULT,
)

from .command import GO_ON, Faults, option, options, typed_options
from .options import (
    TEACHER,
    arch_options,
    device_option,
    domain_options,
    pop_domain,
    preset_option,
    repair_option,
    samples_option,
    seed_option,
    set_size_option,
    settings_option,
)
from .plan import dry_run_option
from .students import NAMES, expect_methods, make_students

if TYPE_CHECKING:
    from freia_kd.domain import Domain
    from freia_kd.job import Plan
    from freia_kd.runs.store import RunRecord
    from freia_kd.synthesizers.contract import Synthesizer

run_options = options(
    option("--teacher FILE|WEIGHTS", f"{TEACHER} Needed for a new run."),
    arch_options(),
    domain_options,
    samples_option,
    option("--resize", "Resize samples of another size."),
    option(
        "--proxy FOLDER|FILE.npz",
        "Unlabelled images from anywhere, shown beside what --synthesizer makes, an equal share.",
        click.Path(exists=True),
    ),
    option(
        "--synthesizer NAME[+NAME]|MODULE:CLASS",
        f"What makes the inputs, an equal share each: {', '.join(SYNTHESIZERS.builtin)}, or one of "
        f"your own. By default {STATISTICS_DEFAULT} for images where the teacher has batch "
        f"normalisation, {IMAGE_DEFAULT} where it has none, and {VECTOR_DEFAULT} for vectors, "
        f"joined with samples where there are any. {AUTO} tries mixtures on short runs first, and "
        "takes another than the default where it is surely better.",
        completes=[AUTO, *SYNTHESIZERS],
    ),
    settings_option(),
    option(
        "--loss NAME|MODULE:FUNCTION",
        f"The students' loss: {', '.join(losses())}, or one of your own. By "
        f"default {DistillationOptions.divergence}.",
        completes=losses(),
    ),
    option(
        "--minutes MINUTES",
        "About how long the run is to take in all on this machine: all steps, and the set's size "
        "unless --set-size says it, are multiplied by one factor.",
        click.FLOAT,
    ),
    set_size_option,
    option("--on-the-fly", "Show the students new inputs in every step, in place of a stored set."),
    option(
        "--gamma WEIGHT",
        "The weight of the samples while a flow learns; by default the paper's 0.01. With 0.1 its "
        "images follow the samples more closely.",
    ),
    option(
        "--flow NAME|FILE.yaml|MODULE:FUNCTION",
        "The flow of bdnf; by default nice, and a glow for images larger than 32 x 32.",
        completes=FLOWS.builtin,
    ),
    preset_option("standard"),
    seed_option,
    device_option,
    option(
        "--amp",
        "Let the teacher and the students compute in bfloat16 while they work, the default on GPUs "
        "that have it, or in float32; flows, and what the report measures, stay in float32.",
        get_args(Precision),
        name="precision",
    ),
    option("--out FOLDER", "The run's folder; by default a new one in runs/."),
    option("--resume", "Go on with the run in --out; --teacher is not needed."),
    repair_option,
    dry_run_option,
)


def run_arguments(faults: Faults, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of :func:`freia_kd.distill`, or of :func:`freia_kd.resume`.

    A run that goes on gets only what was typed, besides code of one's own. Settings then change
    the options that the run has recorded, so that the library can tell what differs.
    """
    from freia_kd.teachers import is_published

    record = _open_record(faults, given)
    _expect_effects(faults, given, record)
    settings, domain, students = given.pop("settings"), None, None
    trusted: tuple[str, ...] = ()
    with faults:
        domain = pop_domain(given)
    if set(given) >= set(NAMES):
        if record is not None:
            trusted = _trusted_code(record, given)
        students = make_students(faults, given, settings)
    base = get_preset(given["preset"]).training
    if record is not None:
        base = DistillationOptions.from_dict(record.config["training"])
    loss = given.pop("loss")
    with faults:
        _expect_trusted(
            record, "--loss", base.divergence, loss or settings.get("student.divergence")
        )
    training = pop_training(faults, loss, settings, base)
    changes = _changes(faults, given, settings)
    synthesizer = given.pop("synthesizer")
    if record is not None:
        with faults:
            if not is_published(record.config["teacher"]):
                _expect_trusted(record, "--arch", record.config["arch"], given["arch"])
    with faults:
        synthesizer = _synthesizers(faults, given, domain, synthesizer, changes, record)
    asked = {"students": students, "training": training, "synthesizer": synthesizer}
    asked = {name: value for name, value in asked.items() if value is not None}
    if record is None:
        return {**given, "out": given["out"] or _new_folder(given), "domain": domain, **asked}
    typed = typed_options()  # samples of a run that goes on are resized as they were
    kept = {k: v for k, v in given.items() if k in typed and k not in ("out", "resize")}
    return {"folder": given["out"], "domain": domain, "methods": trusted, **kept, **asked}


def make_plan(again: bool, **arguments: Any) -> Plan:
    """What a run would take, with the arguments of its verb."""
    from freia_kd import api

    out = arguments.pop("folder", None) or arguments.pop("out")
    return api.plan(out=out, again=again, **arguments)


def remember_run(command: str, folder: str | None, given: dict[str, Any]) -> None:
    """Lets an interruption name the run's folder and the command that goes on with it.

    Arguments:
        command: The command's name.
        folder: The run's folder.
        given: The options, of which code of one's own must be typed again.
    """
    words = ["freiakd", command, "--resume", "--out", str(folder)]
    for name in ("arch", "synthesizer", "loss", "flow", "methods", "student_arch"):
        values = given.get(name) or ()
        for value in [values] if isinstance(values, str) else values:
            typed = f"--{name.removesuffix('s').replace('_', '-')}"
            words += [typed, value] if ":" in value else []

    def say() -> str:
        if folder is None or not Path(folder, "run.json").exists():
            began = f"Interrupted before the run in {folder} began"
            if folder is None or not any(Path(folder).glob(f"{TRIAL}*")):
                return f"{began}; nothing was written."
            return (
                f"{began}. The trials that ended are kept in it: give the command again, with "
                f"--out {shlex.quote(str(folder))}."
            )
        return f"Interrupted. What was done is kept in {folder}; go on with: {shlex.join(words)}"

    click.get_current_context().meta[GO_ON] = say


def pop_training(
    faults: Faults, loss: str | None, settings: dict[str, Any], base: DistillationOptions
) -> DistillationOptions | None:
    """How students learn, if anything of it was typed; takes that out of the settings."""
    own = [key for key in settings if key.startswith("student.")]
    changes = {key.removeprefix("student."): settings.pop(key) for key in own}
    if loss is not None:
        faults.names["student.divergence"] = "--loss"
    for name in {"divergence", "boundaries"} & set(changes) if loss else ():
        faults.add(f"--loss and --set student.{name} both choose the loss; pass one of them.")
    changed = base
    with faults:
        changed = changed.changed(**changes)
    with faults:
        changed = changed if loss is None else changed.with_loss(loss)
    return changed if changes or loss else None


def expect_data(faults: Faults, given: dict[str, Any], *names: str) -> None:
    """Refuses options of evaluation data where there are none."""
    for name in () if given["eval_data"] else names:
        typed = f"--{name.replace('_', '-')}"
        faults.expect(not given[name], f"{typed} is of --eval-data, which is not given.")


def _open_record(faults: Faults, given: dict[str, Any]) -> RunRecord | None:
    from freia_kd.runs.store import read_record

    repairs = given["repair"]
    if not given.pop("resume"):
        faults.expect(not repairs, "--repair is of a run that goes on; pass --resume as well.")
        del given["repair"]
        hint = "To go on with a run, pass --resume --out FOLDER."
        faults.expect(given["teacher"], f"--teacher FILE is missing. {hint}")
        return None
    if given["out"] is None:
        raise UsageError("--resume needs --out FOLDER, the run to go on with.")
    return read_record(given["out"], "distill")


def _expect_effects(faults: Faults, given: dict[str, Any], record: RunRecord | None) -> None:
    """Refuses options that could not take effect."""
    has_samples = given["samples"] or (record is not None and record.config["samples"])
    for name in () if has_samples else ("gamma", "resize"):
        unset = given[name] in (None, False)
        faults.expect(unset, f"--{name} is of real samples; pass --samples as well.")
    if given["on_the_fly"] and given["set_size"]:
        faults.add("--set-size is of a stored set, and --on-the-fly makes none; pass one of them.")
    for key in given["settings"] if given["minutes"] is not None and record is None else ():
        if key.rpartition(".")[2] == "steps":
            faults.add(f"--minutes and --set {key} both say how long; pass one of them.")
    if "eval_data" in given:
        expect_data(faults, given, "data_root", "download")


def _changes(faults: Faults, given: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What differs from a synthesizer's own options."""
    expect_methods(faults, settings)
    changes = {
        k: v for k, v in settings.items() if k.rpartition(".")[0] not in COMPRESSIONS.builtin
    }
    proxy = given.pop("proxy")
    if proxy is not None:
        changes[_proxy_source()] = proxy
    for name in ("gamma", "flow"):
        value = given.pop(name)
        if value is not None:
            twice = any(key.rpartition(".")[2] == name for key in settings)
            faults.expect(not twice, f"--{name} and --set {name} say the same; pass one of them.")
            faults.names[f"bdnf.{name}"] = f"--{name}"
            changes[name] = value
    return changes


def _synthesizers(
    faults: Faults,
    given: dict[str, Any],
    domain: Domain | None,
    names: str | None,
    changes: dict[str, Any],
    record: RunRecord | None,
) -> str | list[str | Synthesizer] | list[Synthesizer] | None:
    """Synthesizers with the options of a preset, or of a run, some of them changed."""
    from freia_kd.synthesizers import build_synthesizers, get_synthesizer
    from freia_kd.synthesizers.bdnf import BDNF

    preset, base = given["preset"], {}
    if record is not None:
        config = record.config
        recorded, preset = config["synthesizer"], config["preset"]
        flow = next((o["flow"] for o in config["synthesizers"].values() if "flow" in o), "")
        _expect_trusted(record, "--synthesizer", recorded, names)
        _expect_trusted(record, "--flow", flow, changes.get("flow") or changes.get("bdnf.flow"))
        if names not in (None, recorded):
            return names  # which the library refuses, with both
        names = recorded if changes else names
        for kind in map(get_synthesizer, recorded.split("+") if changes else ()):
            for option, value in config["synthesizers"][kind.name].items():
                value = tuple(value) if isinstance(value, list) else value
                base[f"{kind.name}.{option}"] = value
    if not changes:
        return names
    if names is not None and AUTO in names.split("+"):
        return _partners(faults, names, changes, preset)
    if names is None:
        names = _default_synthesizer(given, domain)
        if any(key in ("flow", "gamma") or key.startswith(f"{BDNF.name}.") for key in changes):
            names = _joined(names, BDNF.name)
    if _proxy_source() in changes:
        names = _joined(names, _proxy_source().partition(".")[0])
    has_flow = any("flow" in get_synthesizer(name).known_options() for name in names.split("+"))
    for key in () if has_flow else {"flow", "gamma"} & set(changes):
        del changes[key]
        faults.add(f"--{key} is of bdnf, and the synthesizer is {names}.")
    return build_synthesizers(names, preset, {**base, **changes})


def _partners(
    faults: Faults, names: str, changes: dict[str, Any], preset: str
) -> list[str | Synthesizer]:
    """What is to be chosen, and what joins it with options of its own."""
    from freia_kd.synthesizers import build_synthesizers

    partners = [name for name in names.split("+") if name != AUTO]
    if _proxy_source() in changes:
        partners = _joined("+".join(partners), _proxy_source().partition(".")[0]).split("+")
    own = {name.partition(".")[0] for name in partners}
    for key in [key for key in changes if key.partition(".")[0] not in own]:
        del changes[key]
        faults.add(
            f"--synthesizer {AUTO} chooses among methods as they are, so that {key} has no effect; "
            "name the method in its place."
        )
    return [AUTO, *build_synthesizers(partners, preset, changes)] if partners else [AUTO]


def _proxy_source() -> str:
    """The option of the synthesizer that shows proxy images which says where they are."""
    from freia_kd.synthesizers.proxy import Proxy

    return f"{Proxy.name}.source"


def _joined(names: str, name: str) -> str:
    """The synthesizers with one more, unless it is one of them."""
    return names if name in names.split("+") else "+".join(filter(None, [names, name]))


def _default_synthesizer(given: dict[str, Any], domain: Domain | None) -> str:
    """What makes the inputs unless it is named; a teacher that is missing is a fault already."""
    from freia_kd.compression import load_teacher
    from freia_kd.job.opening import default_for

    if given["teacher"] is None:
        return IMAGE_DEFAULT
    loaded = load_teacher(given["teacher"], given["arch"], domain)
    return default_for(loaded, given["samples"] is not None)


def _new_folder(given: dict[str, Any]) -> str | None:
    from freia_kd.job.opening import new_folder

    return None if given["teacher"] is None else str(new_folder(given["teacher"]))


def _trusted_code(record: RunRecord, given: dict[str, Any]) -> tuple[str, ...]:
    """Code of one's own; if the run's students use it and no more is typed, that is all."""
    options = ("methods", "student_arch")
    named = [*given["methods"], *filter(None, [given["student_arch"]])]
    trusted = tuple(name for name in named if ":" in name)
    specs = record.students.values()
    used = {entry["method"] for spec in specs for entry in spec["methods"]}
    used |= {spec.get("arch") for spec in specs}
    others = [name for name in NAMES if name in typed_options() and name not in options]
    if not others and set(named) == set(trusted) <= used:
        given["methods"], given["student_arch"] = (), None
    return trusted


def _expect_trusted(
    record: RunRecord | None, option: str, recorded: str, typed: str | None
) -> None:
    if record is not None and ":" in recorded and typed is None:
        raise UsageError(  # importing what a file names would run it
            f"The run uses code of your own, {option} {recorded}; if you trust that code, type the "
            "option again."
        )
