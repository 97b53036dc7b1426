"""The blocks in bare FrEIA graphs, at their numerical limits, and under PyTorch's tools."""

from functools import partial

import numpy as np
import pytest
import torch
from FrEIA.framework import ConditionNode, GraphINN, InputNode, Node, OutputNode, SequenceINN
from FrEIA.modules import AffineCouplingOneSided
from torch import nn

from freia_kd.flows.blocks import (
    DCT,
    AffineCoupling,
    ClassAffine,
    Conv1x1,
    Partial,
    Permute,
    Squeeze,
    label_dims,
    pack_labels,
    unpack_labels,
)
from freia_kd.flows.compose import INN
from freia_kd.flows.rational_quadratic import SplineCoupling, rational_quadratic
from freia_kd.flows.squash import BoundedLogit, Linear, ShrunkLogit
from freia_kd.flows.subnets import ConvSubnet, DenseSubnet


def blocks():
    """One of each, on images with shape (4, 4, 4), and conditioned where it may be."""
    dims = [(4, 4, 4)]
    plane = [(1, 4, 4)]
    subnet = {"subnet_constructor": lambda c_in, c_out: nn.Conv2d(c_in, c_out, 1)}
    coupled = partial(ConvSubnet, classes=3, planes=0, hidden_features=4)
    return {
        "logit": BoundedLogit(dims),
        "tailed": BoundedLogit(dims, tail=4.0),
        "shrunk": ShrunkLogit(dims),
        "linear": Linear(dims),
        "coupling": AffineCoupling(dims, [(3,)], subnet_constructor=coupled),
        "affine": ClassAffine(dims, plane, classes=3),
        "affine-alone": ClassAffine(dims),
        "conv1x1": Conv1x1(dims),
        "dct": DCT(dims),
        "permute": Permute(dims, permutation=[3, 1, 0, 2]),
        "squeeze": Squeeze(dims),
        "unsqueeze": Squeeze(dims, undo=True),
        "partial": Partial(dims, [(3,)], keep=2, inner=INN([(2, 4, 4)], classes=3).affine()),
        "spline": SplineCoupling(dims, plane, **subnet),
    }


@pytest.mark.parametrize("name", blocks())
def test_blocks_follow_the_contract_of_freia(name):
    block = blocks()[name]
    x = torch.rand(2, 4, 4, 4)
    labels = torch.eye(3)[:2]
    raw = block.dims_c == [(3,)]
    labels = [labels if raw else pack_labels(labels, (4, 4, 4))]
    (dims,) = block.output_dims([(4, 4, 4)])
    for jac in (True, False):
        (y,), ladj = block([x], c=labels, jac=jac)
        assert tuple(y.shape) == (2, *dims)
        assert isinstance(ladj, torch.Tensor)
        assert ladj.shape == (2,)
        (back,), ladj_back = block([y], c=labels, rev=True, jac=jac)
        torch.testing.assert_close(back, x)
        torch.testing.assert_close(ladj_back, -ladj)
    if not block.dims_c:
        assert torch.equal(block([x])[0][0], block([x], c=labels)[0][0])
    assert all(p.is_floating_point() for p in block.parameters())


def test_blocks_in_bare_freia_graphs():
    """A branching graph, with labels at two resolutions, without the rest of this package."""
    image = InputNode(1, 8, 8, name="image")
    coarse, vector = ConditionNode(*label_dims(5, (4, 4, 4))), ConditionNode(5)
    squeezed = Node(image, Squeeze, {})
    subnet = {"classes": 5, "planes": 1, "hidden_features": 8}
    coupled = Node(
        squeezed,
        AffineCouplingOneSided,
        {"subnet_constructor": lambda i, o: ConvSubnet(i, o, **subnet)},
        conditions=coarse,
    )
    mixed = Node(coupled, Conv1x1, {})
    transformed = Node(mixed, DCT, {})
    scaled = Node(transformed, ClassAffine, {"classes": 5}, conditions=coarse)
    nodes = [image, coarse, vector, squeezed, coupled, mixed, transformed, scaled]
    graph = GraphINN([*nodes, OutputNode(scaled)])
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, labels = torch.randn(3, 1, 8, 8), torch.eye(5)[:3]
    c = [pack_labels(labels, (4, 4, 4)), labels]
    z, ladj = graph(x, c=c)
    back, ladj_back = graph(z, c=c, rev=True)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ladj_back, -ladj)


def test_labels_fit_every_resolution():
    labels = torch.randn(4, 100)
    for dims in ((3, 32, 32), (48, 4, 4), (1, 1, 1), (7,)):
        packed = pack_labels(labels, dims)
        assert tuple(packed.shape[1:]) == label_dims(100, dims)
        assert len(dims) == 1 or packed.shape[2:] == dims[1:]
        assert torch.equal(unpack_labels(packed, 100), labels)


def test_dct_is_that_of_scipy():
    from scipy.fft import dct, dctn

    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    (y,), _ = DCT([(3, 4, 6)]).double()([x])
    expected = dctn(x.numpy(), axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-5)
    v = torch.randn(2, 5, dtype=torch.float64)
    (w,), _ = DCT([(5,)]).double()([v])
    np.testing.assert_allclose(w.numpy(), dct(v.numpy(), norm="ortho"), atol=1e-5)


def test_conv1x1_starts_as_asked_and_agrees_with_slogdet():
    matrix = torch.linalg.qr(torch.randn(6, 6))[0] * 1.5
    matrix[0] *= -1
    block = Conv1x1([(6, 5, 5)], initial=matrix)
    torch.testing.assert_close(block.matrix(), matrix)
    torch.testing.assert_close(block.matrix(inverse=True) @ matrix, torch.eye(6))
    x = torch.randn(2, 6, 5, 5)
    (y,), ladj = block([x])
    torch.testing.assert_close(y, torch.einsum("ij,bjhw->bihw", matrix, x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ladj, 25 * torch.linalg.slogdet(matrix)[1].expand(2))


def test_spline_agrees_with_nflows():
    nflows = pytest.importorskip("nflows.transforms.splines")
    torch.manual_seed(0)
    x = 2.5 * torch.randn(50, dtype=torch.float64)
    parameters = 2 * torch.randn(50, 3 * 6 - 1, dtype=torch.float64)
    for rev in (False, True):
        y, ladj = rational_quadratic(x, parameters, 3.0, rev)
        # nflows adds its minimum to softplus(d); ours also shifts d so that 0 means 1.
        expected = nflows.unconstrained_rational_quadratic_spline(
            x,
            parameters[:, :6],
            parameters[:, 6:12],
            parameters[:, 12:] + np.log(np.expm1(1 - 1e-3)),
            inverse=rev,
            tail_bound=3.0,
        )
        torch.testing.assert_close(y, expected[0])
        torch.testing.assert_close(ladj, expected[1])


def test_nothing_touches_global_random_state():
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002 - the one FrEIA reseeds
    Permute([(4,)], permutation=[1, 0, 3, 2])
    Conv1x1([(4, 2, 2)])
    from freia_kd.flows.glow import rotation
    from freia_kd.flows.nice import halves

    assert torch.equal(rotation(4, 1), rotation(4, 1))
    assert torch.equal(halves(4, 0), halves(4, 0))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BoundedLogit([(2,)], alpha=0.5), "Expected 0 < alpha < 0.5; got 0.5"),
        (lambda: BoundedLogit([(2,)], tail=-1.0), "Expected a tail from 0 to 10"),
        (lambda: ClassAffine([(2,)], classes=3), "Expected classes and dims_c, or neither"),
        (lambda: ClassAffine([(2,)], [(3,)]), "Expected classes and dims_c, or neither"),
        (lambda: Conv1x1([(2,)], initial=torch.eye(3)), r"shape \(2, 2\); got \(3, 3\)"),
        (lambda: Conv1x1([(2,)], initial=torch.ones(2, 2)), "got a singular one"),
        (lambda: Permute([(3,)], permutation=[0, 0, 1]), "Expected a permutation of 3 channels"),
        (lambda: Squeeze([(1, 3, 4)]), "an even height and width; got"),
        (lambda: Squeeze([(3, 4, 4)], undo=True), "a multiple of 4 channels"),
        (lambda: DCT([(2,), (2,)]), "Expected one input; got 2"),
        (
            lambda: Partial([(4, 2, 2)], keep=1, inner=INN([(2, 2, 2)])),
            r"Expected an inner net for \(3, 2, 2\)",
        ),
        (
            lambda: SplineCoupling([(4,)], subnet_constructor=nn.Linear, bins=1),
            "Expected a positive bound and 2 to 999 bins",
        ),
        (lambda: DenseSubnet(2, 4, classes=3), "3 channels for the packed labels"),
        (lambda: DenseSubnet(2, 4, layers=0), "at least one hidden layer"),
    ],
)
def test_wrong_arguments_say_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_missing_conditions_say_what_was_expected():
    with pytest.raises(ValueError, match="Expected one condition"):
        ClassAffine([(2,)], [(3,)], classes=3)([torch.ones(1, 2)])
    with pytest.raises(ValueError, match="Expected one condition"):
        INN([(2,)], classes=3).affine()([torch.ones(1, 2)])


def test_blocks_append_to_a_bare_sequence():
    inn = SequenceINN(4)
    inn.append(ClassAffine, cond=0, cond_shape=(3,), classes=3)
    inn.append(Conv1x1)
    inn.append(
        AffineCouplingOneSided,
        cond=0,
        cond_shape=(3,),
        subnet_constructor=lambda c_in, c_out: DenseSubnet(c_in, c_out, classes=3),
    )
    x = torch.randn(2, 4)
    z, _ = inn(x, c=[torch.eye(3)[:2]])
    torch.testing.assert_close(inn(z, c=[torch.eye(3)[:2]], rev=True)[0], x)
