import io
import warnings

import hypothesis.extra.numpy as hnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import wmlib as wm
from wmlib.lab import figures


@pytest.fixture(autouse=True)
def restored_style():
    with mpl.rc_context():
        yield
    plt.close("all")


def _drawn() -> bytes:
    fig, ax = plt.subplots()
    figures.accuracy_curve(ax, [0.01, 0.1, 1.0], [[0.4, 0.5, 0.6], [0.42, 0.5, 0.7]], method="ellipse")
    ax.set_xlabel("fraction")
    file = io.BytesIO()
    fig.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def test_the_same_data_give_the_same_file():
    figures.use_style()
    assert _drawn() == _drawn()


def test_figures_are_opaque_and_carry_no_fonts():
    figures.use_style()
    svg = _drawn().decode()
    assert figures.GROUND.lower() in svg
    assert "<text" not in svg


def test_the_style_does_not_depend_on_what_was_set_before():
    figures.use_style()
    first = _drawn()
    mpl.rcParams["font.size"] = 30
    figures.use_style()
    assert _drawn() == first


def test_every_method_has_a_colour_of_its_own():
    methods = {"ellipse", "ellipse, no metric", "line", "line, no metric", "none", "concat", "embed", "film"}
    assert set(figures.METHOD_COLOURS) == methods
    # All manifolds share the colour that says "no metric".
    without = {colour for name, colour in figures.METHOD_COLOURS.items() if name.endswith("no metric")}
    assert len(without) == 1
    for table in (figures.METHOD_COLOURS, figures.PATH_COLOURS):
        own = [colour for name, colour in table.items() if not name.endswith("no metric")]
        assert len({*own, *without}) == len(own) + (table is figures.METHOD_COLOURS)


def luminance(colour):
    """The relative luminance of WCAG 2.2."""
    parts = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize("name", ["PALETTE", "METHOD_COLOURS", "PATH_COLOURS", "VERDICT_COLOURS"])
def test_every_colour_has_a_contrast_of_three_to_one(name):
    table = getattr(figures, name)
    for colour in table if name == "PALETTE" else table.values():
        assert (luminance(figures.GROUND) + 0.05) / (luminance(colour) + 0.05) >= 3, colour


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(
        float, hnp.array_shapes(min_dims=1, max_dims=3, min_side=2, max_side=6), elements=st.floats(-1e3, 1e3, width=16)
    ),
    st.floats(0.5, 0.999),
)
def test_an_interval_is_that_of_scipy(values, confidence):
    low, high = figures.t_interval(values, confidence=confidence)
    assert low.shape == high.shape == values.shape[1:]
    spread = np.ptp(values, axis=0) > 0
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of runs that all agree
        other = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    np.testing.assert_allclose(low[spread], np.asarray(other.low)[spread], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(high[spread], np.asarray(other.high)[spread], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose((low - values[0])[~spread], 0, atol=1e-9)
    np.testing.assert_allclose((high - values[0])[~spread], 0, atol=1e-9)


@pytest.mark.parametrize(("seeds", "confidence"), [(3, 0.95), (5, 0.95), (20, 0.9)])
def test_an_interval_covers_the_mean_as_often_as_it_says(seeds, confidence):
    draws = np.random.default_rng(1).normal(size=(seeds, 10_000))  # ten thousand experiments
    low, high = figures.t_interval(draws, confidence=confidence)
    assert ((low <= 0) & (high >= 0)).mean() == pytest.approx(confidence, abs=0.01)


def test_one_run_has_no_interval_and_a_curve_no_band():
    assert np.isnan(figures.t_interval([1.0])).all()
    assert np.isnan(figures.t_interval(np.ones((1, 3)))).all()
    fig, ax = plt.subplots()
    figures.accuracy_curve(ax, np.arange(3.0), np.ones((1, 3)), method="none")
    fig.canvas.draw()
    assert len(ax.lines) == 1


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        ([], {}, "at least one run"),
        (1.0, {}, "at least one run"),
        ([1.0, np.nan], {}, "not finite"),
        ([1.0, 2.0], {"confidence": 1.0}, "between 0 and 1"),
    ],
)
def test_an_interval_of_nonsense_is_refused(values, options, said):
    with pytest.raises(ValueError, match=said):
        figures.t_interval(np.asarray(values), **options)


def test_a_curve_shows_the_mean_and_its_band():
    fig, ax = plt.subplots()
    figures.accuracy_curve(ax, np.array([1.0, 2.0]), np.array([[0.0, 1.0], [2.0, 3.0]]), method="film", label="FiLM")
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_ydata(), [1.0, 2.0])
    assert line.get_color() == figures.METHOD_COLOURS["film"]
    assert line.get_label() == "FiLM"
    assert len(ax.collections) == 1


def test_a_curve_of_the_wrong_shape_or_an_unknown_method_is_refused():
    fig, ax = plt.subplots()
    with pytest.raises(ValueError, match=r"\(runs, points\)"):
        figures.accuracy_curve(ax, np.arange(3.0), np.zeros((2, 4)), method="none")
    with pytest.raises(ValueError, match="has no colour"):
        figures.accuracy_curve(ax, np.arange(4.0), np.zeros((2, 4)), method="other")


def test_the_principal_plane_of_an_ellipse_holds_all_of_it():
    rng = np.random.default_rng(4)
    phase = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    centre, first, second = rng.normal(size=(3, 200))
    points = centre + np.cos(phase)[:, None] * first + np.sin(phase)[:, None] * second
    found, axes, share = figures.principal_plane(points)
    np.testing.assert_allclose(found, centre, atol=1e-9)
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-9)
    assert share == pytest.approx(1)
    np.testing.assert_allclose(found + (points - found) @ axes.T @ axes, points, atol=1e-9)


def test_a_plane_needs_points():
    with pytest.raises(ValueError, match="at least 2"):
        figures.principal_plane(np.zeros((1, 5)))


def test_paths_are_drawn_in_their_common_plane_without_changing_their_lengths():
    rng = np.random.default_rng(5)
    plane = np.linalg.qr(rng.normal(size=(30, 2)))[0].T
    flat = {name: np.cumsum(np.vstack([np.zeros(2), rng.normal(size=(4, 2))]), axis=0) for name in ("a", "b")}
    _, ax = plt.subplots()
    share = figures.paths_in_plane(ax, {k: v @ plane for k, v in flat.items()}, {"a": "#111111", "b": "#222222"})
    assert share == pytest.approx(1)
    for name, line in zip(flat, ax.lines[::2], strict=True):
        steps = np.linalg.norm(np.diff(np.transpose(line.get_data()), axis=0), axis=1)
        np.testing.assert_allclose(steps, np.linalg.norm(np.diff(flat[name], axis=0), axis=1), rtol=1e-9)
        assert line.get_label() == name
    assert [line.get_color() for line in ax.lines[::2]] == ["#111111", "#222222"]
    plt.close()


def test_flat_paths_are_drawn_as_they_are_and_unequal_ones_refused():
    _, ax = plt.subplots()
    figures.paths_in_plane(ax, {"a": [[0, 0], [3, 1], [4, 4]]})
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 3, 4])
    with pytest.raises(ValueError, match="same number of coordinates"):
        figures.paths_in_plane(ax, {"a": np.zeros((3, 2)), "b": np.zeros((3, 5))})
    plt.close()


class TestManifoldInPlane:
    HISTORY = np.random.default_rng(0).normal(size=(3, 3, 2))

    def test_draws_a_curve_for_each_time_and_dots_on_the_last(self):
        fig, ax = plt.subplots()
        dots = figures.manifold_in_plane(ax, wm.Ellipse(), self.HISTORY, dots=4, scale=360)
        assert len(ax.lines) == 3
        centre, a, b = self.HISTORY[-1]
        np.testing.assert_allclose(dots.get_offsets(), [centre + a, centre + b, centre - a, centre - b], atol=1e-6)
        np.testing.assert_allclose(dots.get_array(), [0, 90, 180, 270])
        turn = 2 * np.pi * np.linspace(0, 1, 181)[:, None]
        centre, a, b = self.HISTORY[1]
        expected = centre + a * np.cos(turn) + b * np.sin(turn)
        np.testing.assert_allclose(ax.lines[1].get_xydata(), expected, atol=1e-5)

    def test_later_curves_are_darker(self):
        fig, ax = plt.subplots()
        figures.manifold_in_plane(ax, wm.Ellipse(), self.HISTORY)
        shades = [mpl.colors.to_rgb(line.get_color())[0] for line in ax.lines]
        assert shades == sorted(shades, reverse=True)
        assert len(set(shades)) == 3

    def test_refuses_what_is_no_curve(self):
        fig, ax = plt.subplots()
        with pytest.raises(ValueError, match="one number"):
            figures.manifold_in_plane(ax, wm.Sphere(1), np.zeros((2, 4, 2)))
        with pytest.raises(ValueError, match="history"):
            figures.manifold_in_plane(ax, wm.Line(), self.HISTORY)
        with pytest.raises(ValueError, match="history"):
            figures.manifold_in_plane(ax, wm.Ellipse(), self.HISTORY[:0])
