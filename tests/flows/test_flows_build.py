"""Flows by name, by path and from YAML files, and what is said when they cannot be had."""

import subprocess
import sys

import pytest
import torch

from freia_kd.domain import Domain
from freia_kd.errors import UsageError
from freia_kd.flows import FLOWS, NICE, build_flow
from freia_kd.flows.bases import GaussianBase, SpectralBase
from freia_kd.flows.recipe import build_recipe, read_flow

PLANE, IMAGE = Domain((2,), 3), Domain((1, 8, 8), 3)


@pytest.mark.parametrize("name", ["nice", "glow", "realnvp", "spline"])
@pytest.mark.parametrize("domain", [PLANE, IMAGE, Domain((3, 4, 6), 12)], ids=str)
def test_all_names_take_vectors_and_images(name, domain):
    base = GaussianBase(domain.shape)
    flow = build_flow(name, domain, base, hidden_features=8)
    c = torch.tensor([0, 2, 1])
    x = flow.sample(c)
    assert x.shape == (3, *domain.shape)
    assert flow.log_prob(x, flow.soft(c)).shape == (3,)
    assert flow.base is base
    assert name in list(FLOWS)


@pytest.mark.parametrize("name", ["nice", "glow", "realnvp", "spline"])
def test_flows_over_tables_work_in_the_tables_units(name):
    table = Domain((3,), 2, (750.0, -1.0, 0.0), (300.0, 0.1, 1.0))
    c, made = torch.tensor([0, 1, 1]), []
    for base in (GaussianBase.for_domain(table), GaussianBase((3,))):
        torch.manual_seed(0)
        flow = build_flow(name, table, base, hidden_features=8)
        with torch.no_grad():
            for parameter in flow.parameters():  # an untrained flow would be the identity
                parameter += 0.1 * torch.randn_like(parameter)
        made.append(flow.sample(c, generator=torch.Generator().manual_seed(1)))
    assert torch.allclose(table.normalize(made[0]), made[1], atol=1e-3)


def not_a_flow(domain, base):
    return torch.nn.Identity()


def flow_of_another_domain(domain, base):
    return NICE((5,), domain.classes)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nise", {}, "Unknown flow 'nise'; did you mean 'nice'?"),
        ("nice", {"levels": 2}, "'levels'; known ones are transforms, hidden_features"),
        ("math:pi", {}, "Expected a flow class or a function"),
        ("math:nothing", {}, "has no attribute"),
        ("no_such_module:f", {}, "Cannot import module"),
        (f"{__name__}:not_a_flow", {}, "to give a ConditionalFlow; got Identity"),
        (f"{__name__}:flow_of_another_domain", {}, r"a flow over \(2,\) with 3 classes; got one"),
        (f"{__name__}:not_a_flow", {"steps": 2}, "does not take these options"),
        ("missing.yaml", {}, "Cannot read the flow 'missing.yaml'"),
    ],
)
def test_faults_are_usage_errors(name, options, message):
    with pytest.raises(UsageError, match=message):
        build_flow(name, PLANE, **options)


RECIPE = """
base: {name: spectral, exponents: [2.0, 3.0]}
whiten: true
layers:
  - affine
  - squeeze
  - repeat:
      times: 2
      layers:
        - conv1x1: {rotate: true}
        - permute
        - coupling: {kind: glow, hidden_features: 8}
  - dct
  - split:
      layers:
        - squeeze
        - coupling: {kind: gin, hidden_features: 8}
        - swap
        - coupling: {kind: rnvp, hidden_features: 8, bf16: false}
        - spline: {bins: 4, bound: 4, hidden_features: 8}
        - unsqueeze
  - unsqueeze
  - module: {path: "FrEIA.modules:Flatten"}
  - coupling: {layers: 1, hidden_features: 8}
  - module:
      path: "freia_kd.flows.blocks:ClassAffine"
      conditional: true
      options: {classes: 3}
"""


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_file_with_every_layer(tmp_path, float64):
    (tmp_path / "all.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    flow = build_flow(str(tmp_path / "all.yaml"), IMAGE)
    assert isinstance(flow.base, SpectralBase)
    assert len(flow.base.std) == 2
    assert flow.whiten
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    c = torch.tensor([0, 1, 2])
    z = 0.3 * torch.randn(3, 1, 8, 8)
    u, ladj = flow.decode_unbounded(z, c)
    back, ladj_back = flow.encode_unbounded(u, c)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(ladj_back, -ladj)
    u = u.detach()
    size = u[0].numel()
    jacobian = torch.autograd.functional.jacobian(
        lambda v: flow.encode_unbounded(v[None], c[:1])[0][0], u[0]
    )
    expected = torch.linalg.slogdet(jacobian.reshape(size, size))[1]
    torch.testing.assert_close(ladj_back[0], expected)


def test_repetitions_have_parameters_of_their_own():
    def count(times):
        layers = [{"repeat": {"times": times, "layers": ["swap", "coupling"]}}]
        return sum(p.numel() for p in build_recipe({"layers": layers}, PLANE).parameters())

    assert count(3) == 3 * count(1)


def test_all_faults_of_a_file_are_reported_together(tmp_path):
    (tmp_path / "bad.yaml").write_text("""
base: {name: spectrl}
whitn: true
whiten: 1
layers:
  - affin
  - squeeze: {foo: 1}
  - coupling: {kind: nice, hidden_features: -3, clamp: .inf}
  - repeat: {layers: [conv1x1, {spline: {bins: a}}]}
  - split: {layers: []}
  - module: {path: 3}
  - {affine: {}, squeeze: {}}
""")
    with pytest.raises(UsageError) as caught:
        read_flow(tmp_path / "bad.yaml", IMAGE)
    message = str(caught.value)
    for fault in (
        "base: expected a name among gaussian, spectral",
        "whitn: unknown",
        "whiten: expected a boolean; got 1",
        "layers[0]: expected a layer among affine",
        "layers[1].squeeze.foo: unknown; known ones are none",
        "layers[2].coupling.kind: expected a kind among one-sided",
        "layers[2].coupling.hidden_features: expected a positive integer; got -3",
        "layers[2].coupling.clamp: expected a positive number; got inf",
        "layers[3].repeat.times: missing",
        "layers[3].repeat.layers[1].spline.bins: expected a positive integer; got 'a'",
        "layers[4].split.layers: expected a list of layers; got []",
        "layers[5].module.path: expected a string; got 3",
        "layers[6]: expected a layer among",
    ):
        assert fault in message
    assert "has 13 fault(s)" in message


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["squeeze", "squeeze", "squeeze", "squeeze"], r"layers\[3\].squeeze: does not fit"),
        (["coupling"], "a coupling needs at least 2 channels; squeeze first"),
        ([{"module": {"path": "os:system"}}], "is not a subclass of FrEIA"),
        ([{"module": {"path": "no_such:thing"}}], "code that only the file names"),
        (["dct"], "at least one layer that learns"),
        ([], "expected a list of layers"),
        (None, "expected a list of layers; got None"),
    ],
)
def test_faults_that_show_in_the_building(layers, message):
    with pytest.raises(UsageError, match=message):
        build_recipe({"layers": layers}, IMAGE)


@pytest.mark.parametrize(
    "text", ["layers: [", "- a\n- b", "!!python/object/apply:os.getcwd []", ""], ids=repr
)
def test_files_that_are_no_recipes(tmp_path, text):
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"odd\.yaml"):
        read_flow(tmp_path / "odd.yaml", IMAGE)


def test_the_package_is_cheap_to_import():
    code = "import sys, freia_kd.flows; print([m for m in ('torch', 'FrEIA') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
