"""The shared figures: one scale for what is compared, and nothing global is changed."""

import matplotlib
import numpy as np
import pytest

from optimand.report import figures, style


@pytest.fixture(scope="module")
def fields():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(6, 8))
    return {"a": {"reference": truth, "one": truth + 0.1, "two": truth - 0.5}}


def _images(figure):
    return [image for axes in figure.axes for image in axes.get_images() if axes.get_visible()]


def test_fields_share_their_colour_scale_and_errors_share_another(fields):
    images = _images(figures.fields(fields, reference="reference"))
    limits = [image.get_clim() for image in images]
    assert len(limits) == 5 and len(set(limits[:3])) == 1 and len(set(limits[3:])) == 1
    arrays = fields["a"].values()
    assert limits[0] == (min(a.min() for a in arrays), max(a.max() for a in arrays))
    assert limits[3] == (0, pytest.approx(0.5))


def test_the_relative_error_stands_over_its_map(fields):
    truth = fields["a"]["reference"]
    figure = figures.fields(fields, reference="reference")
    titles = [axes.get_title("left") for axes in figure.axes]
    wanted = 100 * np.linalg.norm(np.full(truth.shape, 0.1)) / np.linalg.norm(truth)
    assert f"error {wanted:.1f} %" in titles


def test_signed_fields_are_centred_on_zero(fields):
    low, high = _images(figures.fields(fields, signed=True))[0].get_clim()
    assert low == -high


def test_a_constant_field_and_an_exact_one_can_be_drawn():
    same = np.ones((3, 3))
    figure = figures.fields({"a": {"reference": same, "one": same}}, reference="reference")
    assert all(low < high for low, high in (image.get_clim() for image in _images(figure)))


def test_the_spread_over_repetitions_is_shaded():
    figure = figures.curves({"one": np.ones(5), "three": np.arange(15.0).reshape(3, 5) + 1})
    assert len(figure.axes[0].collections) == 1 and len(figure.axes[0].lines) == 2


def test_histories_draw_each_label_and_nothing_where_there_is_nothing():
    rows = [{"label": name, "step": n, "value": 1 / n} for name in "ab" for n in (1, 2, 3)]
    assert len(figures.histories(rows).axes[0].lines) == 2
    assert figures.histories([]) is None and figures.histories([{"step": 1}]) is None


def test_scaling_and_bars_are_drawn():
    axes = figures.scaling({"a": ([1, 10], [2, 20])}, xlabel="x", ylabel="y", slope=1.0).axes[0]
    assert (axes.get_xscale(), axes.get_yscale(), len(axes.lines)) == ("log", "log", 2)
    assert len(figures.bars({"g": {"a": [1.0, 2.0], "b": 3.0}}, ylabel="y").axes[0].patches) == 2


def test_the_style_is_left_as_it_was():
    before = dict(matplotlib.rcParams)
    with style.house_style():
        assert matplotlib.rcParams["axes.grid"]
    assert dict(matplotlib.rcParams) == before


def test_curves_have_whole_steps_and_a_logarithmic_axis_only_where_it_has_ticks():
    near, far = (figures.curves({"a": line}, ylabel="loss").axes[0] for line in ([2.0, 1.9, 1.8], [2.0, 0.1, 1e-3]))
    assert (near.get_yscale(), far.get_yscale()) == ("linear", "log")
    assert all(tick == int(tick) for tick in near.get_xticks())
