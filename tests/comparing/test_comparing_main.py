"""Comparisons: trials apart, a failed one reported, resumed, and judged by independent methods."""

import copy
import json

import pytest
import torch

from freia_kd.comparing import compare
from freia_kd.comparing.methods import BASELINE, REFERENCE, Method, build_methods, choose_methods
from freia_kd.comparing.ranking import Verdict, judge_trials
from freia_kd.comparing.trials import Trial, TrialOptions
from freia_kd.data.datasets import LabelledData
from freia_kd.data.sources import RealData
from freia_kd.data.synthetic import SyntheticSet
from freia_kd.errors import CheckpointError, ConfigError, TrainingError, UsageError
from freia_kd.evaluation import accuracy, agreement
from freia_kd.job import run as job_run
from freia_kd.report.schema import Comparison
from freia_kd.report.storage import read_result
from freia_kd.students import as_specs
from freia_kd.synthesizers import IMAGE_DEFAULT, STATISTICS_DEFAULT
from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions
from freia_kd.synthesizers.noise import Noise, NoiseOptions, Spectral, Uniform
from freia_kd.training import Progress


class Flat(Noise):
    """One grey, which teaches nothing."""

    name = "flat"

    def draw(self, n, generator=None):
        shape = (n, *self.teacher.domain.shape)
        return torch.rand(shape, generator=generator) * 0.01 + 0.5


class Broken(Flat):
    """Fails while it is fitted."""

    name = "broken"

    def fit(self, *arguments, **options):
        raise RuntimeError("this method is broken")


HERE = __name__
FLAT, BROKEN = f"{HERE}:Flat", f"{HERE}:Broken"
FAST = NoiseOptions(tries=1)
METHODS = [Spectral(FAST), Uniform(FAST), FLAT, BROKEN]
ONE = {"synthesizers": METHODS[:2], "seeds": 1, "students": ("1",)}


@pytest.fixture
def run(teacher, tmp_path, tiny):
    def run(out=tmp_path / "out", teacher=teacher, **options):
        common = {"synthesizers": METHODS, "students": ("1", "3"), "seeds": 2, "preset": tiny}
        return compare(teacher, out=out, **{**common, "device": "cpu", "workers": 1, **options})

    return run


@pytest.fixture(scope="session")
def compared(teacher, evaluation, tiny, tmp_path_factory):
    return compare(
        teacher,
        synthesizers=METHODS,
        students=("1", "3"),
        seeds=2,
        preset=tiny,
        device="cpu",
        workers=1,
        eval_data=evaluation,
        reference=True,
        out=tmp_path_factory.mktemp("compared") / "out",
    )


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_rows_files_and_failure(compared):
    comparison = compared.comparison
    assert read_result(compared.folder, Comparison) == comparison
    kinds = {row.method: row.kind for row in comparison.rows}
    assert kinds == {
        **dict.fromkeys(("spectral", "uniform", FLAT), "method"),
        BASELINE.name: "baseline",
        REFERENCE.name: "reference",
    }
    assert comparison.rows[-1].kind == "reference"
    baseline = next(row for row in comparison.rows if row.kind == "baseline")
    assert (baseline.own, baseline.images) == ({"1": None, "3": None}, 0)  # no training, no inputs
    assert list(comparison.failed) == [f"{BROKEN}, seed {seed}" for seed in (0, 1)]
    assert "RuntimeError: this method is broken" in comparison.failed[f"{BROKEN}, seed 0"]
    assert comparison.rows[-1].images == 50
    for name in ("compare.md", "compare.html"):
        assert (compared.folder / name).stat().st_size > 500
    assert (compared.folder / "compare.png").exists()
    html = (compared.folder / "compare.html").read_text()
    assert "this method is broken" in html
    assert 'src="http' not in html
    trials = compared.folder / "trials"
    assert not list(trials.glob("*/synthetic*/train"))
    assert not (trials / "real-training-data-0/checkpoints").exists()
    assert (trials / "spectral-1/student-3.pt").exists()
    assert all(
        record(folder)["config"]["seed"] == int(folder.name[-1]) for folder in trials.iterdir()
    )


def test_rows_say_what_the_trials_say(compared, teacher, evaluation):
    trials = {(t.method, t.seed): t for t in compared.comparison.trials}
    row = next(r for r in compared.comparison.rows if r.method == "spectral")
    values = [trials["spectral", seed].accuracy["3"].value for seed in (0, 1)]
    assert row.accuracy["3"].mean == pytest.approx(sum(values) / 2)
    assert row.accuracy["3"].std == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    for trial in opened(compared, teacher):
        for name, student in trial.load_students().items():
            found = trials[trial.method.name, trial.seed].accuracy[name]
            assert found.value == accuracy(student, evaluation)
            assert found.count == 50
    # These students all give one class, so that accuracies do not tell one from another.
    for trial in opened(compared, teacher):
        sizes = {n: sum(map(torch.numel, s.parameters())) for n, s in trial.load_students().items()}
        assert sizes["1"] > sizes["3"]
    assert row.seconds.mean == pytest.approx(
        sum(sum(trials["spectral", s].stages.values()) for s in (0, 1)) / 2
    )
    assert row.picture == "trials/spectral-0/inputs-spectral.png"
    assert (compared.folder / row.picture).exists()


def opened(compared, teacher):
    """Some trials of a comparison again."""
    sets = {"spectral": Spectral(FAST), "uniform": Uniform(FAST)}
    methods = [BASELINE, *(Method(name, (source,)) for name, source in sets.items())]
    for method in methods:
        stem = method.name.replace(" ", "-")
        folder = compared.folder / f"trials/{stem}-1"
        students = tuple(spec.changed(bn="match") for spec in as_specs(("1", "3")))
        yield Trial(method, 1, students, folder, TrialOptions(teacher))


def test_nobody_is_judged_by_its_own_family(compared):
    folder = compared.folder / "trials"
    judged = json.loads((folder / "uniform-0/judged.json").read_text())
    assert set(judged) == {"spectral", FLAT}
    judged = json.loads((folder / "compression-only-0/judged.json").read_text())
    assert set(judged) == {"spectral", "uniform", FLAT}
    mixed, sampled = build_methods("bdnf+uniform,bdnf(samples)")
    assert mixed.families == {"spectral noise", "pixel noise"}
    assert sampled.families == {"spectral noise", "samples"}
    assert (mixed.sees_samples, sampled.sees_samples) == (False, True)


def test_agreement_is_that_on_the_half_that_chose_no_weights(compared, teacher):
    found, even = [], []
    _, *trials = opened(compared, teacher)
    for trial in trials:
        judged = json.loads((trial.folder / "judged.json").read_text())
        for other in trials:
            heldout = SyntheticSet(other.folder / "synthetic/heldout")
            for name, student in trial.load_students().items():
                own = trial.result.agreement[name].value
                value = own if other is trial else judged[other.method.name][name]
                assert value == agreement(student, heldout, half="odd")
                found.append(value)
                even.append(agreement(student, heldout, half="even"))
    assert found != even


class Told(Trial):
    """Its students are judged as the table below says."""

    def judge(self, others):
        assert {other.seed for other in others} == {self.seed}
        return {
            other.method.name: {
                spec.name: EASE[other.method.name] + 0.01 * self.seed + 0.1 * int(spec.name)
                for spec in self.students
            }
            for other in others
        }


EASE = {"uniform": 0.1, "normal": 0.3, "spectral": 0.4, FLAT: 0.0, "bdnf+normal": 0.5}
EASE |= {"bdnf(samples)": 0.6}


def test_each_is_judged_by_all_other_families_of_its_seed(tmp_path):
    methods = [BASELINE, *build_methods(",".join(EASE)), REFERENCE]
    students, options = tuple(as_specs(("1", "3"))), TrialOptions("teacher.pt")
    trials = [Told(m, seed, students, tmp_path, options) for m in methods for seed in (0, 1)]
    pixel, spectral = "pixel noise", "spectral noise"
    # Mixed inputs judge nobody; the two methods of pixel noise are one judge, their mean.
    judges = {
        "uniform": {"flat": 0.0, spectral: 0.4},
        "normal": {"flat": 0.0, spectral: 0.4},
        "spectral": {"flat": 0.0, pixel: 0.2},
        FLAT: {spectral: 0.4, pixel: 0.2},
        "bdnf+normal": {"flat": 0.0},
        "bdnf(samples)": {"flat": 0.0, pixel: 0.2},
        BASELINE.name: {"flat": 0.0, spectral: 0.4, pixel: 0.2},
    }
    expected = {
        (m, j, (s, n)): pytest.approx(ease + 0.01 * s + 0.1 * int(n))
        for m, eases in judges.items()
        for j, ease in eases.items()
        for s in (0, 1)
        for n in ("1", "3")
    }
    said = list(judge_trials(trials, Progress()))
    assert all(isinstance(v, Verdict) for v in said)
    assert {v[:3]: v.agreement for v in said} == expected
    assert len(said) == len(expected)


@pytest.mark.slow
def test_real_data_are_read_for_what_they_are_meant(run, evaluation, tmp_path, monkeypatch):
    training = LabelledData(evaluation.inputs[:40], evaluation.labels[:40], "training")
    few = LabelledData(evaluation.inputs[40:], evaluation.labels[40:], "few")
    sets = {("few", "train"): few, ("real", "train"): training, ("real", "test"): evaluation}
    trials, read = tmp_path / "out/trials", []

    def load(self, domain, split):
        if (tmp_path / "out").exists() and split == "train" and self.source.name != "real":
            return self.source  # a trial's own samples
        read.append((self.source.name, split, len(list(trials.glob("*/trial.json")))))
        return sets[self.source.name, split]

    monkeypatch.setattr(RealData, "load", load)
    options = {"samples": few, "eval_data": evaluation, "reference": True, "seeds": 1}
    options["synthesizers"] = ["spectral,samples,bdnf(samples)", *METHODS[:1]]
    options["synthesizers"].append(BDNF(BDNFOptions(steps=2, batch_size=4)))
    comparison = run(**options).comparison
    assert read == [("few", "train", 0), ("real", "train", 0), ("real", "test", 6)]
    assert (comparison.real_data.evaluation, comparison.real_data.evaluation_count) == ("real", 50)
    assert comparison.reference == "training (40)"
    assert comparison.failed == {}
    seen = {path.name: record(path)["config"]["samples"] for path in trials.iterdir()}
    assert seen == {
        "compression-only-0": None,
        "spectral-0": None,
        "bdnf-0": None,
        "samples-0": "few",
        "bdnf-samples-0": "few",
        "real-training-data-0": "training",
    }
    sets["real", "train"] = LabelledData(training.inputs, training.labels, "another reference")
    with pytest.raises(UsageError, match=r"reference was 'training \(40\)', is 'another"):
        run(resume=True, **options)


@pytest.mark.slow
def test_the_winner_does_not_depend_on_real_data(run, compared):
    blind = run().comparison
    assert blind.ranking == compared.comparison.ranking
    assert blind.real_data.evaluation is None
    assert blind.rows[0].accuracy == {"1": None, "3": None}


@pytest.mark.slow
def test_resuming_runs_only_what_is_missing(run, teacher, evaluation, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="Expected the folder of a run"):
        run(resume=True, **ONE)
    first = run(eval_data=evaluation, **ONE).comparison
    with pytest.raises(UsageError, match="already holds a run"):
        run(**ONE)
    with pytest.raises(UsageError, match=r"in memory; .*eval_data="):
        run(resume=True, **ONE)
    trained = []
    make = job_run.synthesize
    monkeypatch.setattr(
        job_run, "synthesize", lambda job, *a: trained.append(job.run.folder.name) or make(job, *a)
    )
    again = run(eval_data=evaluation, resume=True, **ONE).comparison
    assert trained == []
    assert (again.rows, again.ranking) == (first.rows, first.ranking)
    few = LabelledData(torch.rand(2, 1, 32, 32), torch.arange(2), "few")
    for changes, said in (
        ({"samples": few}, r"samples was None, is 'few \(2\)'"),
        ({"set_size": 32}, "set_size was 64, is 32"),
        ({"students": ("3",)}, "students.1.bn was 'match', is None"),
        ({"synthesizers": [Spectral()]}, r"methods.spectral.spectral.tries was 1, is 10"),
    ):
        with pytest.raises(UsageError, match=said):
            run(eval_data=evaluation, resume=True, **{**ONE, **changes})
    other = copy.deepcopy(teacher)
    other.net.fc2.bias.data += 1
    with pytest.raises(UsageError, match=r"other options.*teacher_sha256"):
        run(teacher=other, eval_data=evaluation, resume=True, **ONE)
    more = {**ONE, "synthesizers": [*METHODS[:2], FLAT], "seeds": 2}
    larger = run(eval_data=evaluation, resume=True, **more).comparison
    flat = f"{HERE}-Flat".replace("_", "-").replace(".", "-")
    assert sorted(trained) == sorted([f"{flat}-0", f"{flat}-1", "spectral-1", "uniform-1"])
    assert larger.ranking.seeds == 2
    assert list(record(tmp_path / "out")["config"]["methods"]) == ["spectral", "uniform", FLAT]


@pytest.mark.slow
def test_a_trial_that_was_stopped_goes_on(run, tmp_path, monkeypatch):
    """Stopped before the last student was trained, it leaves the same students."""
    whole = run(tmp_path / "whole", **ONE).folder / "trials/spectral-0/student-1.safetensors"
    train = job_run.train_student_of

    def stop(job, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(job_run, "train_student_of", stop)
    with pytest.raises(KeyboardInterrupt):
        run(**ONE)
    monkeypatch.setattr(job_run, "train_student_of", train)
    resumed = run(resume=True, **ONE)
    assert (resumed.folder / "trials/spectral-0/student-1.safetensors").read_bytes() == (
        whole.read_bytes()
    )


def test_if_every_method_fails_so_does_the_comparison(run):
    with pytest.raises(TrainingError, match="this method is broken"):
        run(synthesizers=BROKEN, seeds=1)


def test_all_are_those_that_can_work_with_the_teacher(teacher):
    able, refused = choose_methods(build_methods("all"), teacher)
    names = {method.name for method in able}
    assert {IMAGE_DEFAULT, "bdnf", "kegnet", "dfad", "rdskd", "spectral"} <= names
    assert "batch normalisation" in refused[STATISTICS_DEFAULT]
    assert "real samples" in refused["samples"]
    assert "bdnf(samples)" not in refused
    few = LabelledData(torch.zeros(4, 1, 32, 32), torch.arange(4), "few")
    able, _ = choose_methods(build_methods(f"all,{FLAT}"), teacher, few)
    assert {"samples", "bdnf(samples)", FLAT} <= {method.name for method in able}


def test_a_synthesizer_stands_for_its_name():
    own = BDNF(BDNFOptions(steps=7))
    methods = {m.name: m for m in build_methods(("all", own))}
    assert methods["bdnf"].is_named
    assert not methods["kegnet"].is_named
    for name in ("bdnf", STATISTICS_DEFAULT, "bdnf(samples)"):
        assert methods[name].synthesizers[0] is own
    with pytest.raises(ConfigError, match="Two methods have the same name"):
        build_methods([own, BDNF()])


def test_options_go_to_the_methods_that_have_them():
    options = {"spectral.tries": 3, "steps": 5}
    methods = {m.name: m for m in build_methods("bdnf+spectral,uniform", "quick", options)}
    flow, noise = methods["bdnf+spectral"].synthesizers
    assert (flow.options.steps, noise.options.tries) == (5, 3)
    assert methods["uniform"].synthesizers[0].options.tries == 10
    with pytest.raises(ConfigError, match=r"tries.*got 0.*kegnet.stepz.*uniform.tries") as raised:
        build_methods("uniform", options={"kegnet.stepz": 1, "uniform.tries": 0})
    assert len(raised.value.faults) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"synthesizers": "spectral,boat"}, "Unknown synthesizer 'boat'; known ones are bdnf"),
        ({"synthesizers": "samples"}, "needs real samples.*Those that can work.*bdnf"),
        ({"synthesizers": "bdnf(samples)"}, "needs real samples"),
        ({"reference": True, "seeds": 0}, "seeds: expected 1 to 1,000.*needs evaluation data"),
        ({"seeds": 2**31}, "seeds: expected 1 to 1,000; got 2,147,483,648"),
        ({"students": ()}, "students: expected at least one"),
        ({"students": ("4",), "preset": "quikc"}, "did you mean 'quick'.*4"),
        ({"workers": 0}, "workers: expected at least 1; got 0"),
        ({"eval_data": "nowhere"}, "There are no data 'nowhere'"),
    ],
)
def test_mistakes_are_found_before_any_work(run, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        run(**{"synthesizers": "spectral", **options})
    assert not (tmp_path / "out").exists()
