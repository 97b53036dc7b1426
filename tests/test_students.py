"""What a student is to be, and the only way in which one comes to be."""

import pytest
import torch
from torch import nn

from freia_kd import students
from freia_kd.compression import Compressed, Compression, Prune, Quantize, Tucker
from freia_kd.compression.cost import count_macs
from freia_kd.domain import Domain
from freia_kd.errors import ConfigError, UsageError
from freia_kd.students import (
    CALIBRATION_SIZE,
    StudentSpec,
    as_specs,
    build,
    calibration_set,
    seeded_generator,
)
from freia_kd.synthesizers.leaves import Leaves
from freia_kd.teachers import Teacher, build_net

LOW = Tucker(layers={"fc1": 0.4})


class Halve(Compression):
    """A method of one's own, which halves all weights."""

    def apply(self, net, inputs, arch=""):
        copy = self.rebuild(net, {})
        copy.load_state_dict({k: v / 2 for k, v in net.state_dict().items()})
        return Compressed(copy, {"method": self.name, "skipped": {}, "shape": inputs.shape[1:]})

    @classmethod
    def rebuild(cls, net, step):
        import copy

        return copy.deepcopy(net)

    @classmethod
    def describe(cls, step):
        return "weights halved"


FAULTS = [
    ({"methods": ()}, "A student needs at least one method of compression; got none."),
    ({"methods": (LOW, LOW)}, "Each method can be used once; got tucker twice."),
    ({"methods": (Quantize(), Prune())}, "The method quantize comes last; got quantize, prune."),
    ({"methods": (Prune(), Tucker(target="macs", goal=0.5))}, "must be the first; got prune"),
    ({"name": "../evil"}, "a student's name of letters, digits.*got '../evil'"),
    ({"name": "a b"}, "a student's name"),
    (
        {"bn": "mtach"},
        "students.bn: expected 'match' or 'freeze'; got 'mtach'. Did you mean 'match'?",
    ),
    ({"methods": ("tucker",)}, "students.methods: .*instance of Compression"),
    ({"methods": LOW}, "students.methods: .*tuple"),
    ({"methods": "prune"}, "students.methods: .*tuple"),
]


@pytest.mark.parametrize(("fields", "message"), FAULTS)
def test_a_spec_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        StudentSpec(**fields)


def test_faults_come_together():
    with pytest.raises(ConfigError) as error:
        StudentSpec((Quantize(), Prune(), Quantize()), "a/b")
    assert len(error.value.faults) == 3
    with pytest.raises(ConfigError) as error:
        StudentSpec().changed(bm="match", name=3)
    assert "did you mean 'students.bn'" in error.value.faults[0]
    assert error.value.faults[1].startswith("students.name: expected text")


def test_names():
    assert StudentSpec().name == "1"
    assert StudentSpec([LOW]).name == "custom"
    assert StudentSpec((Tucker(target="macs", goal=0.5), Quantize())).name == "macs-0.5-quantize"
    assert StudentSpec((LOW,), "mine").name == "mine"
    assert [s.name for s in as_specs(["1", StudentSpec((LOW,)), "1"])] == ["1", "custom"]
    with pytest.raises(ConfigError, match="Two students are named 'custom'"):
        as_specs([StudentSpec((LOW,)), StudentSpec((Tucker(layers={"fc1": 0.5}),))])
    with pytest.raises(
        ConfigError, match=r"tucker.student: expected '1', '2', '3', 'kegnet-1'.*got '4'"
    ):
        as_specs(["4"])


def test_a_spec_of_a_file_imports_nothing_that_was_not_named():
    path = f"{Halve.__module__}:Halve"
    fields = StudentSpec((LOW, Halve()), "mine", "freeze").to_dict()
    assert fields["methods"][1]["method"] == path
    with pytest.raises(UsageError, match=path):
        StudentSpec.from_dict(fields)
    again = StudentSpec.from_dict(fields, trusted=[path])
    assert [type(m).__name__ for m in again.methods] == ["Tucker", "Halve"]
    assert (again.name, again.bn) == ("mine", "freeze")
    with pytest.raises(ConfigError, match=r"did you mean 'students.name'"):
        StudentSpec.from_dict({**fields, "nmae": "x"}, trusted=[path])


def test_methods_are_applied_in_order_and_the_teacher_stays(teacher):
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    inputs = calibration_set(teacher, size=16)
    student = build(teacher, StudentSpec((LOW, Halve()), "mine"), inputs)
    alone = build(teacher, StudentSpec((LOW,)), inputs)
    assert [step["method"] for step in student.steps] == ["tucker", Halve.name]
    assert student.searches == [None, None]
    assert student.steps[1]["shape"] == [1, 32, 32]  # plain JSON types, as a file has them
    for name, value in student.classifier.state_dict().items():
        assert torch.equal(value, alone.classifier.state_dict()[name] / 2)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.requires_grad for p in student.classifier.parameters())
    assert not student.classifier.training
    assert (student.classifier.domain, student.classifier.arch) == (teacher.domain, "lenet5")


def test_the_same_inputs_give_the_same_student(teacher):
    spec = StudentSpec((LOW, Quantize()), "mine")
    made = [build(teacher, spec, calibration_set(teacher, seed)) for seed in (0, 0, 1)]
    first, again, other = (s.classifier.state_dict() for s in made)
    assert all(torch.equal(v, again[k]) for k, v in first.items())
    assert any(not torch.equal(v, other[k]) for k, v in first.items())


def test_a_spec_is_checked_on_noise_that_nobody_notices(teacher):
    state = torch.get_rng_state()
    StudentSpec((LOW, Quantize()), "mine").check(teacher)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UsageError, match="No layer matches 'fc9'"):
        StudentSpec((Tucker(layers={"fc9": 0.5}),)).check(teacher)
    with pytest.raises(UsageError, match=r"(?i)cannot reach"):
        StudentSpec((Tucker(target="params", goal=1e-4),)).check(teacher)


def test_the_calibration_set_is_noise_of_the_domain(teacher):
    state = torch.get_rng_state()
    inputs = calibration_set(teacher, 3)
    assert inputs.shape == (CALIBRATION_SIZE, 1, 32, 32)
    assert 0 <= inputs.min() < inputs.max() <= 1
    assert torch.equal(inputs, calibration_set(teacher, 3))
    assert not torch.equal(inputs, calibration_set(teacher, 4))
    assert torch.equal(torch.get_rng_state(), state)
    noise = Leaves()
    noise.fit(teacher)
    other = noise.draw(CALIBRATION_SIZE, seeded_generator(3, "calibration set"))
    assert torch.equal(inputs, other)


def test_a_large_net_is_calibrated_on_fewer_inputs(teacher, monkeypatch):
    each = count_macs(teacher, teacher.domain.shape)
    assert len(calibration_set(teacher)) == students.CALIBRATION_SIZE
    monkeypatch.setattr(students, "CALIBRATION_MACS", 100 * each)
    assert len(calibration_set(teacher)) == 100
    monkeypatch.setattr(students, "CALIBRATION_MACS", each)
    assert len(calibration_set(teacher)) == students.MIN_CALIBRATION
    assert len(calibration_set(teacher, size=5)) == 5


def test_vectors_are_calibrated_in_the_teachers_units():
    domain = Domain((3,), 2, (100.0, 0.0, -5.0), (10.0, 1.0, 0.1))
    teacher = Teacher(build_net("mlp", domain), domain, "mlp")
    inputs = domain.normalize(calibration_set(teacher))
    assert inputs.shape == (CALIBRATION_SIZE, 3)
    torch.testing.assert_close(inputs.mean(0), torch.zeros(3), atol=0.2, rtol=0)
    torch.testing.assert_close(inputs.std(0), torch.ones(3), atol=0.15, rtol=0)


def test_random_numbers_depend_on_the_seed_and_the_purpose():
    def draw(*arguments):
        return torch.rand(3, generator=seeded_generator(*arguments)).tolist()

    assert draw(0, "flow") == draw(0, "flow")
    assert len({tuple(draw(*a)) for a in ((0, "flow"), (1, "flow"), (0, "set"), (10, "flow"))}) == 4


def test_a_layer_without_a_gain_is_no_student():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    teacher = Teacher(net, Domain((1, 2, 2), 4), "small")
    with pytest.raises(UsageError, match="No layer would gain"):
        build(teacher, StudentSpec((Tucker(layers={"1": 0.9}),)), torch.rand(4, 1, 2, 2))


def test_a_new_net_is_of_the_seed_and_leaves_the_global_one_alone(teacher):
    spec = StudentSpec(arch="resnet14")
    state = torch.random.get_rng_state()
    made = [spec.start(teacher, seed).classifier for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    first, again, other = (m.net.conv1.weight for m in made)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    student = build(teacher, spec, calibration_set(teacher, size=16), seed=1)
    assert torch.equal(student.classifier.net.conv1.weight, other)
    assert (student.classifier.arch, student.steps) == ("resnet14", [])
    assert student.classifier.domain == teacher.domain
    assert all(p.requires_grad for p in student.classifier.parameters())


def test_specs_of_new_nets():
    spec = StudentSpec(arch="my.nets:Small")
    assert (spec.name, spec.methods, spec.parts) == ("small", (), ["new"])
    assert StudentSpec.from_dict(spec.to_dict(), trusted=["my.nets:Small"]) == spec
    with pytest.raises(UsageError, match=r"my\.nets:Small, which is code of its own"):
        StudentSpec.from_dict(spec.to_dict())
    both = StudentSpec((Quantize(),), arch="lenet5")
    assert (both.name, both.parts) == ("lenet5-quantize", ["new", "quantize"])
    with pytest.raises(ConfigError, match="must be the first; got new, tucker"):
        StudentSpec((Tucker(target="macs", goal=0.5),), arch="lenet5")
    with pytest.raises(ConfigError, match="at least one method"):
        StudentSpec((), arch=None)


class Dense(nn.Sequential):
    """A net whose constructor takes what the domain says, by the usual names."""

    def __init__(self, num_classes, in_channels=3):
        super().__init__(nn.Conv2d(in_channels, 4, 8, 8), nn.Flatten(), nn.Linear(64, num_classes))


class Narrow(nn.Linear):
    """A net for other inputs."""

    def __init__(self):
        super().__init__(3, 10)


def test_a_new_net_fits_the_domain_or_is_refused(teacher):
    net = StudentSpec(arch=f"{__name__}:Dense").start(teacher).classifier.net
    assert (net[0].in_channels, net[-1].out_features) == (1, 10)
    with pytest.raises(UsageError, match=r"Narrow does not fit the teacher: .*rejects"):
        StudentSpec(arch=f"{__name__}:Narrow").check(teacher)
    with pytest.raises(UsageError, match="resnet15"):
        StudentSpec(arch="resnet15").check(teacher)
