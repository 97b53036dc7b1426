"""Options are checked whole: choices, ranges, and all faults of a config at once."""

import subprocess
import sys
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import pytest

from freia_kd.compression import Prune, Quantize, Tucker
from freia_kd.config import (
    PRESETS,
    Config,
    Count,
    Decay,
    DistillationOptions,
    Natural,
    NonNegative,
    Positive,
    Preset,
    PresetName,
    Probability,
    Share,
    Size,
    collect_faults,
    get_preset,
)
from freia_kd.errors import ConfigError, UsageError
from freia_kd.students import StudentSpec
from freia_kd.synthesizers import SYNTHESIZERS, build_synthesizers, get_synthesizer
from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions


@dataclass(frozen=True)
class Example(Config):
    """One option of each kind."""

    title: ClassVar[str] = "example"
    count: Count = 1
    size: Size = 2
    natural: Natural = 0
    positive: Positive = 1.0
    non_negative: NonNegative = 0.0
    share: Share = 0.5
    probability: Probability = 1.0
    decay: Decay = 0.0
    choice: Literal["left", "right"] = "left"
    flag: bool = False
    text: str = ""
    maybe: Count | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    training: DistillationOptions = field(default_factory=DistillationOptions)


FAULTS = [
    ("count", 0, "expected at least 1; got 0."),
    ("count", 1.5, "expected an integer; got 1.5."),
    ("count", True, "expected an integer; got True."),
    ("count", "1", "expected an integer; got '1'."),
    ("count", None, "expected an integer; got None."),
    ("size", 1, "expected at least 2; got 1."),
    ("natural", -1, "expected at least 0; got -1."),
    ("positive", 0.0, "expected more than 0"),
    ("positive", float("nan"), "expected a finite number; got nan."),
    ("positive", float("inf"), "expected a finite number; got inf."),
    ("positive", None, "expected a number; got None."),
    ("non_negative", -1e-9, "expected at least 0"),
    ("share", 1.0, "expected less than 1"),
    ("share", 0.0, "expected more than 0"),
    ("probability", 1.1, "expected at most 1"),
    ("decay", 1.0, "expected less than 1"),
    ("choice", "lefft", "expected 'left' or 'right'; got 'lefft'. Did you mean 'left'?"),
    ("choice", "up", "expected 'left' or 'right'; got 'up'."),
    ("choice", None, "expected 'left' or 'right'; got None."),
    ("flag", 1, "expected true or false; got 1."),
    ("text", 3, "expected text; got 3."),
    ("maybe", 0, "expected at least 1; got 0."),
    ("pair", (1.0,), "got (1.0,)."),
    ("training", {"steps": 4}, "got {'steps': 4}."),
]


@pytest.mark.parametrize(("name", "value", "message"), FAULTS)
def test_every_kind_of_option_is_checked(name, value, message):
    for make in (lambda: Example(**{name: value}), lambda: Example().changed(**{name: value})):
        with pytest.raises(ConfigError) as error:
            make()
        (fault,) = error.value.faults
        assert fault.startswith(f"example.{name}: ")
        assert message in fault


def test_what_makes_sense_is_taken():
    found = Example(3, 2, 0, 2, 0, 0.1, 0, 0.9, "right", True, "x", 4, (1.0, 2.0))
    assert (found.positive, found.maybe) == (2, 4)
    assert Example(maybe=None).maybe is None


def test_all_faults_are_reported_together():
    with pytest.raises(ConfigError) as error:
        Example(count=0, choice="rigt", share=2.0)
    assert [f.split(":")[0] for f in error.value.faults] == [
        *("example.count", "example.share", "example.choice")
    ]
    assert "Did you mean 'right'?" in str(error.value)
    for make in (Example().changed, lambda **fields: Example.from_dict(fields)):
        with pytest.raises(ConfigError) as error:
            make(cuont=3, size=0, nonsense=1)
        first, second, third = error.value.faults
        assert "Unknown option 'example.cuont'; did you mean 'example.count'?" in first
        assert "Unknown option 'example.nonsense'" in second
        assert third == "example.size: expected at least 2; got 0."
    assert issubclass(ConfigError, UsageError)


def test_faults_between_fields_come_once_every_field_is_right():
    with pytest.raises(ConfigError, match=r"^tucker: expected one of a paper's student"):
        Tucker(student="1", layers={"all": 0.5})
    with pytest.raises(ConfigError) as error:
        DistillationOptions(divergence="hinge", steps=0)
    assert error.value.faults == ("student.steps: expected at least 1; got 0.",)


def test_blocks_of_faults_are_collected():
    def all_blocks():
        with collect_faults(["Zero."]) as collected:
            with collected:
                Example(count=0)
            with collected:
                Example(size=0)
            with collected:
                Example()

    with pytest.raises(ConfigError) as error:
        all_blocks()
    assert [f.split(":")[0] for f in error.value.faults] == [
        "Zero.",
        "example.count",
        "example.size",
    ]
    with collect_faults() as collected, collected:
        Example()
    with pytest.raises(ZeroDivisionError), collect_faults() as collected, collected:
        1 / 0  # noqa: B018


@pytest.mark.parametrize(
    "config",
    [
        Example(pair=(0.5, 2.0)),
        DistillationOptions(learning_rate=None, patience=3),
        BDNFOptions(steps=3),
        Tucker(layers={"conv*": (3, 4), "fc": 0.5}),
        Prune(keep=("a", "b")),
        Quantize(),
        StudentSpec((Tucker(target="macs", goal=0.5), Prune(), Quantize()), bn="freeze"),
    ],
    ids=lambda config: type(config).__name__,
)
def test_options_survive_a_file(config):
    import json

    fields = json.loads(json.dumps(config.to_dict()))
    if isinstance(config, Example):  # a nested one is its owner's to restore
        fields["training"] = DistillationOptions.from_dict(fields["training"])
    again = type(config).from_dict(fields)
    assert again.to_dict() == config.to_dict()
    if not isinstance(config, Tucker):  # whose ranks are lists in a file
        assert again == config
    assert config.changed() == config


def test_synthesizers_report_all_faults_of_all_of_them():
    options = {"bdnf.stesp": 1, "bdnf.batch_size": 0, "kegnet.steps": 0, "dfad.steps": 3, "boat": 1}
    with pytest.raises(ConfigError) as error:
        build_synthesizers("bdnf+kegnet", "quick", options)
    text = str(error.value)
    assert "Unknown option 'bdnf.stesp'; did you mean 'bdnf.steps'?" in text
    assert "Unknown option 'boat'" in text
    assert "Unknown option 'dfad.steps'" in text
    assert "bdnf.batch_size: expected at least 1; got 0." in text
    assert "kegnet.steps: expected at least 1; got 0." in text
    assert len(error.value.faults) == 5


def test_an_option_without_a_dot_goes_to_all_that_have_it():
    flow, net, noise = build_synthesizers("bdnf+kegnet+spectral", "quick", {"steps": 7})
    assert (flow.options.steps, net.options.steps) == (7, 7)
    assert not hasattr(noise.options, "steps")
    mine = BDNF(BDNFOptions(steps=3))
    kept, other = build_synthesizers([mine, "kegnet"], "quick", {"kegnet.steps": 9})
    assert kept is mine
    assert other.options.steps == 9


def test_synthesizers_come_once_and_exist():
    with pytest.raises(UsageError, match=r"Expected different synthesizers; got bdnf.bdnf"):
        build_synthesizers(["bdnf", BDNF()])
    with pytest.raises(UsageError, match="got none"):
        build_synthesizers([])
    with pytest.raises(UsageError, match="did you mean 'kegnet'"):
        build_synthesizers("kegnt")
    with pytest.raises(UsageError, match="Expected a subclass of Synthesizer"):
        build_synthesizers("freia_kd.domain:Domain")


@pytest.mark.parametrize("name", list(SYNTHESIZERS))
def test_an_unknown_preset_lists_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"Unknown preset 'mini'.* quick, standard, best, paper"):
        get_synthesizer(name).build("mini")
    assert set(get_synthesizer(name).presets) <= set(get_args(PresetName))


def test_presets():
    assert list(PRESETS) == list(get_args(PresetName))
    for name in PRESETS:
        assert get_preset(name).name == name
    assert get_preset(Preset("quick", 5)).set_size == 5
    with pytest.raises(ConfigError, match="Unknown preset 'qiuck'; did you mean 'quick'"):
        get_preset("qiuck")
    with pytest.raises(ConfigError, match=r"preset.name: expected 'quick', 'standard'"):
        Preset("mini")
    with pytest.raises(ConfigError, match=r"preset.heldout_size: expected at least 2"):
        Preset("quick", heldout_size=1)


def test_options_are_checked_without_torch():
    code = (
        "import sys; from freia_kd.config import DistillationOptions, get_preset;"
        "DistillationOptions(steps=3); get_preset('paper'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


def test_a_net_is_small_up_to_a_million_multiply_accumulates():
    counts = [
        (get_preset("standard").count, 131_072, 65_536),
        (get_preset("quick").count, 13_107, 3_277),
        (Preset(share=1 / 10).count, 13_107, 6_554),
        (get_preset("best").count, 262_144, 262_144),
    ]
    for count, small, large in counts:
        assert (count(1_000_000), count(1_000_001)) == (small, large)


@pytest.mark.parametrize(
    ("name", "small", "large"),
    [
        ("standard", (6_000, 256, 200), (8_000, 64, 800)),
        ("quick", (600, 256, 200), (400, 64, 800)),
        ("best", (8_000, 256, 200), (8_000, 256, 200)),
        ("paper", (5_000, 256, 200), (5_000, 256, 200)),
    ],
)
def test_students_of_large_teachers_take_more_and_smaller_steps(name, small, large):
    preset = get_preset(name)
    for macs, sizes in ((1_000_000, small), (1_000_001, large)):
        options = preset.training.sized(macs, preset.share_of(macs))
        assert (options.steps, options.batch_size, options.check_every) == sizes


def test_sizes_that_are_given_stay_and_checks_follow_the_batch():
    options = DistillationOptions(steps=7, batch_size=100_000).sized(10**8, 1 / 20)
    assert (options.steps, options.batch_size, options.check_every) == (7, 100_000, 1)
    assert DistillationOptions(check_every=9).sized(1).check_every == 9
