import pytest
import torch

from freia_kd.domain import DOMAINS, Domain


def test_normalise_follows_the_formula_and_denormalise_inverts_it():
    domain = Domain((3, 4, 4), 10, (0.1, 0.2, 0.3), (0.3, 0.4, 0.5))
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    expected = torch.stack(
        [(x[:, i] - m) / s for i, (m, s) in enumerate(((0.1, 0.3), (0.2, 0.4), (0.3, 0.5)))], 1
    )
    assert torch.allclose(domain.normalize(x), expected)
    assert torch.allclose(domain.denormalize(domain.normalize(x)), x)


def test_json_round_trip():
    for domain in DOMAINS.values():
        assert Domain.from_dict(domain.to_dict()) == domain


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": (1, 2), "classes": 3}, "input shape"),
        ({"shape": (1, 0, 2), "classes": 3}, "positive sizes"),
        ({"shape": (4,), "classes": 1}, "at least 2 classes"),
        ({"shape": (3, 8, 8), "classes": 2, "mean": (0.1, 0.2)}, "mean with 1 or 3"),
        ({"shape": (3, 8, 8), "classes": 2, "std": (0.0,)}, "positive std"),
        ({"shape": (4,), "classes": 2, "std": (float("inf"),)}, "positive std"),
        ({"shape": (4,), "classes": 2, "mean": (float("nan"),)}, "finite means"),
        ({"shape": (4,), "classes": 2, "colour": 1}, "Not a domain"),
    ],
)
def test_faults_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Domain.from_dict(fields)


def test_a_wrong_input_shape_is_refused():
    with pytest.raises(ValueError, match=r"Expected inputs with shape \(B, 1, 32, 32\)"):
        DOMAINS["mnist"].normalize(torch.zeros(2, 1, 28, 28))


@pytest.mark.parametrize(
    ("mean", "std", "measured"),
    [
        ((0.1307,), (0.3081,), True),
        ((0.4, 0.5, 0.4), (0.2, 0.2, 0.3), True),
        ((0.0,), (1.0,), False),
        ((0.0,), (1 / 255,), False),
        ((0.5,), (0.5,), False),
        ((0.5, 0.5, 0.0), (0.2,), False),
    ],
)
def test_whether_statistics_were_measured(mean, std, measured):
    assert Domain((3, 4, 4), 2, mean, std).is_measured == measured
    assert Domain((3,), 2, mean, std).is_measured


@pytest.mark.parametrize(
    ("mean", "std", "meant"),
    [
        ((77.9,), (82.5,), "mean 0.3055 and std 0.3235"),
        ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), "mean 0.4851,0.4561,0.4059 and std 0.229,0."),
        ((0.3,), (82.5,), "mean 0.3 and std 0.3235"),
        ((77.9,), (0.3,), "mean 0.3055 and std 0.3"),
        ((-0.1,), (0.3,), None),
        ((0.3,), (0.7,), None),
        ((0.3,), (2.0,), "std 0.007843"),
    ],
)
def test_statistics_that_no_pixels_have_are_refused_with_those_meant(mean, std, meant):
    with pytest.raises(ValueError, match="Expected means between 0 and 1 and stds") as caught:
        Domain((len(mean), 8, 8), 2, mean, std)
    said = str(caught.value)
    assert ("of pixels from 0 to 255" in said) == (meant is not None)
    assert (meant or "") in said


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (0.0, 1.0),
        (0.5, 0.5),
        (0.0, 1 / 255),
        (0.0, 0.0039),
        (0.485, 1 / 255),
        (0.13, 1.0),
        (1.0, 0.01),
    ],
)
def test_statistics_in_use_are_not_refused(mean, std):
    Domain((1, 8, 8), 2, (mean,), (std,))
    Domain((4,), 2, (-77.9,), (82.5,))  # vectors have any


def test_a_std_below_a_grey_level_is_refused_with_the_one_meant():
    """Seen to fail: a std that was divided by 255 twice distilled a saturated teacher."""
    with pytest.raises(ValueError, match=r"once too often; times 255 .* mean 0\.3 and std 0\.3239"):
        Domain((1, 8, 8), 10, (0.3,), (0.00127,))
    with pytest.raises(ValueError, match=r"mean 0\.306 and std 0\.3239"):
        Domain((1, 8, 8), 10, (0.0012,), (0.00127,))
    with pytest.raises(ValueError, match="Expected mean with 1 entry; got"):
        Domain((1, 8, 8), 10, (77, 9), (0.3,))


@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.55), (1.5, 0.3), (-0.1, 0.3), (0.3, 0.003)])
def test_statistics_just_beyond_what_pixels_have_are_refused(mean, std):
    with pytest.raises(ValueError, match=r"Expected means between 0 and 1 and stds from 0\.0035"):
        Domain((1, 8, 8), 10, (mean,), (std,))
