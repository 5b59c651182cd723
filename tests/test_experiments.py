"""The experiments of docs/experiments: what is measured agrees with what the papers and closed forms say."""

from __future__ import annotations

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad

SCRIPTS = Path(__file__).resolve().parent.parent / "docs" / "experiments"

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the experiments are not part of this copy")


def load(name: str):
    """A script as a module, under a name that hides no other."""
    spec = importlib.util.spec_from_file_location(f"experiments_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def collapse():
    return load("collapse")


@pytest.fixture(scope="module")
def cosine():
    return load("cosine")


# Biroli et al., arXiv 2402.18491 ------------------------------------------------------------------------------------

DIM, NUM_POINTS = 256, 20_000  # the smallest dimension of the paper's Figs. 2 and 3, and its number of points


@pytest.fixture(scope="module")
def curves(collapse):
    return collapse.measure(
        DIM, NUM_POINTS, num=256, depths=(0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.2, 1.8), grid=(0.7, 0.9, 1.1, 1.3)
    )


def gaussian(y, mean, variance):
    return np.exp(-((y - mean) ** 2) / (2.0 * variance)) / np.sqrt(2.0 * np.pi * variance)


@pytest.mark.parametrize("dim", [256, 1024, 4096])
def test_the_closed_form_of_the_collapse_time_is_where_the_entropies_meet(collapse, dim):
    t = collapse.collapse_time(NUM_POINTS, dim)
    delta = 1.0 - np.exp(-2.0 * t)
    separated = np.log(NUM_POINTS) / dim + 0.5 + 0.5 * np.log(2.0 * np.pi * delta)
    cluster = 0.5 + 0.5 * np.log(2.0 * np.pi * (delta + collapse.SIGMA**2 * np.exp(-2.0 * t)))
    assert separated == pytest.approx(cluster, abs=1e-12)
    assert collapse.depth_of_time(t, NUM_POINTS, dim) == pytest.approx(1.0)
    assert collapse.excess_entropy_limit(2.0 * t, NUM_POINTS, dim) > collapse.excess_entropy_limit(t, NUM_POINTS, dim)
    assert collapse.excess_entropy_limit(0.9 * t, NUM_POINTS, dim) == 0.0


def test_the_process_is_that_of_the_paper(collapse):
    rng = np.random.default_rng(0)
    points, x, tau = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)), 0.8
    delta = 1.0 - np.exp(-2.0 * tau)
    squares = ((x[:, None] - points * np.exp(-tau)) ** 2).sum(axis=-1)
    density = np.exp(-squares / (2.0 * delta)).mean(axis=1) / (2.0 * np.pi * delta) ** 1.5
    assert collapse.field_of(points).log_density(x, np.exp(-tau)) == pytest.approx(np.log(density))


def test_the_finite_n_prediction_against_its_definition(collapse):
    """Random energies drawn, for one cluster and half the points, at a depth on each side of the transition."""
    rng = np.random.default_rng(0)
    num, trials = 1_000, 4_000
    v, u = rng.standard_normal((trials, num // 2 - 1)), rng.standard_normal((trials, 1))
    for depth in (0.4, 1.1):
        tau = collapse.time_of_depth(depth, num, 10**6)  # so many dimensions that the cluster is never in doubt
        lam = 2.0 * depth * np.log(num)
        others = np.exp(-lam + np.sqrt(lam) * (u + v)).sum(axis=1)
        for predicted, drawn in (
            (collapse.excess_entropy_finite(tau, num, 10**6), np.log1p(others) / np.log(num)),
            (collapse.same_point_finite(tau, num, 10**6), 1.0 / (1.0 + others)),
        ):
            assert predicted == pytest.approx(drawn.mean(), abs=5.0 * drawn.std() / np.sqrt(trials))


def test_collapse_happens_at_the_published_time(collapse, curves):
    row = collapse.summary(curves, NUM_POINTS)
    assert row.collapse == pytest.approx(1.2988, abs=1e-4)
    assert row.vanishing == pytest.approx(row.collapse, rel=0.03)
    assert row.vanishing == pytest.approx(row.finite, rel=0.02)
    assert row.half == pytest.approx(row.half_finite, rel=0.03)


def test_the_excess_entropy_follows_its_closed_forms(collapse, curves):
    for tau, at in zip(curves.taus, curves.collapse, strict=True):
        value, error = at.by_entropy
        # Finite n takes away the entropy of two classes, and rounds the corner at t_C off.
        limit = collapse.excess_entropy_limit(tau, NUM_POINTS, DIM)
        assert abs(value - limit) < np.log(2.0) / np.log(NUM_POINTS) + 0.05
        assert abs(value - collapse.excess_entropy_finite(tau, NUM_POINTS, DIM)) < 4.0 * error + 0.01
        # The definition, by the density of P_t, and the entropy of the weights are the same number.
        assert abs(at.difference[0]) < 4.0 * at.difference[1]
        assert at.by_density[0] - value == pytest.approx(at.difference[0])
        same, error = at.same_point
        assert abs(same - collapse.same_point_finite(tau, NUM_POINTS, DIM)) < 4.0 * error + 0.01
    excess = [at.by_entropy[0] for at in curves.collapse]
    assert np.all(np.diff(excess) < 0.0) and excess[-1] < 0.01


def test_speciation_follows_eq_6(collapse, curves):
    for tau, (value, error) in zip(curves.speciation_taus, curves.same_class, strict=True):
        centre, spread = np.sqrt(DIM) * np.exp(-tau), 1.0 - np.exp(-2.0 * tau) + np.exp(-2.0 * tau)

        def integrand(y, centre=centre, spread=spread):
            plus, minus = gaussian(y, centre, spread), gaussian(y, -centre, spread)
            return 0.5 * (plus**2 + minus**2) / (plus + minus)

        exact = quad(integrand, -centre - 8.0, centre + 8.0, points=(-centre, centre))[0]
        assert collapse.same_class_limit(tau, DIM) == pytest.approx(exact, abs=1e-6)
        assert abs(value - exact) < 4.0 * error + 0.01


def test_speciation_time(collapse, curves):
    t_s = collapse.speciation_time(DIM)
    assert collapse.same_class_limit(t_s, DIM) == pytest.approx(collapse.PHI_AT_T_S, abs=2e-4)
    assert collapse.summary(curves, NUM_POINTS).crossing == pytest.approx(t_s, rel=0.02)
    # log(Lambda)/2 with the largest eigenvalue of the data, which has the variance of a cluster in it.
    assert collapse.speciation_time(curves.eigenvalue) == pytest.approx(t_s, rel=0.005)


def test_clones_of_the_backward_equation(collapse):
    num, taus = 400, collapse.speciation_time(64) * np.array([0.8, 1.2])
    shares = collapse.measure_clones(64, taus, num, step=0.05)
    for tau, share in zip(taus, shares, strict=True):
        exact = collapse.same_class_limit(tau, 64)
        assert abs(share - exact) < 4.0 * np.sqrt(exact * (1.0 - exact) / num)


def test_the_deterministic_flow_has_chosen_by_the_collapse_time(collapse):
    mixture = collapse.gaussian_mixture(64, 1_000)
    taus, shares = collapse.measure_choice(collapse.field_of(mixture.points), 50)
    assert np.all(shares[taus < 0.9 * collapse.collapse_time(1_000, 64)] > 0.95)
    assert shares[0] < 0.9


# Bertrand et al., arXiv 2506.03719 ----------------------------------------------------------------------------------

TIMES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
SIDES = (4, 8, 16, 32)


@pytest.fixture(scope="module")
def patches(cosine):
    return cosine.crops(1_000)


@pytest.fixture(scope="module")
def alignments(cosine, patches):
    return {side: cosine.measure(str(side), cosine.subsampled(patches, side), TIMES, num=128) for side in SIDES}


@pytest.fixture(scope="module")
def moons(cosine):
    return cosine.measure("moons", cosine.two_moons(5_000), (*TIMES, 0.99, 0.9999), num=128)


def test_patches_are_pieces_of_the_photographs(cosine, patches):
    assert patches.shape == (1_000, 32, 32, 3) and patches.dtype == np.float32
    assert -1.0 <= patches.min() < -0.9 and 0.9 < patches.max() <= 1.0
    assert len(np.unique(patches.reshape(1_000, -1), axis=0)) > 990
    assert np.array_equal(cosine.subsampled(patches, 32), patches)
    assert cosine.subsampled(patches, 8).shape == (1_000, 8, 8, 3)


def test_at_the_start_the_cosine_is_that_with_the_mean_of_the_data(cosine, patches, alignments):
    for side, measured in alignments.items():
        assert measured.cosines[0] == pytest.approx(cosine.start(cosine.subsampled(patches, side), 128), abs=1e-5)


def test_the_target_stops_being_random_sooner_in_more_dimensions(cosine, alignments):
    share = {side: cosine.aligned(measured) for side, measured in alignments.items()}
    mean = {side: measured.cosines.mean(axis=1) for side, measured in alignments.items()}
    for small, large in pairwise(SIDES):
        assert np.all(share[large][1:-1] >= share[small][1:-1])
        assert np.all(mean[large][1:] >= mean[small][1:] - 1e-3)
    for side in SIDES[1:]:
        assert np.all(np.diff(share[side]) >= 0.0)
        assert np.all(np.diff(mean[side]) >= -1e-3)
    # "Before t = 0.2" for 3,072 dimensions.
    assert share[32][TIMES.index(0.2)] > 0.98
    assert mean[32][TIMES.index(0.2)] > 0.98
    assert mean[4][TIMES.index(0.2)] < 0.92


def test_on_two_moons_it_stays_random(cosine, moons):
    share, mean = cosine.aligned(moons), moons.cosines.mean(axis=1)
    assert np.all(share[: len(TIMES)] < 0.65)
    assert np.all(mean[: len(TIMES)] < 0.85)
    assert share[-1] > 0.98 and mean[-1] > 0.99


def test_points_cannot_be_told_apart_before_the_gaussian_bound(cosine, patches, alignments):
    for side, measured in alignments.items():
        data = cosine.subsampled(patches, side)
        eigenvalues = cosine.spectrum(data)
        bound = [1.0 - cosine.told(eigenvalues, t) / np.log(len(data)) for t in TIMES]
        assert np.all(measured.entropy > np.array(bound) - 0.03)
        assert np.all(measured.entropy[measured.times < 0.9 * measured.earliest] > 0.0)
        assert measured.entropy[0] == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["collapse", "cosine"])
def test_the_scripts_run(name, request, tmp_path, capsys):
    request.getfixturevalue(name).main(["--quick", "--out", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "measured" in (text := capsys.readouterr().out) or "half above 0.9" in text
