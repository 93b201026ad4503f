import math

import matplotlib.pyplot as plt
import pytest

from adaptbs import BatchSizeSuggestion, NoiseScale
from adaptbs.report.history import History
from adaptbs.report.plot import plot_history
from adaptbs.report.style import in_thousands
from adaptbs.report.trade_off import trade_off_at
from adaptbs.timing.step_time import StepTime


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def history(*rows) -> History:
    """Decisions (samples, batch size, noise scale, low, high)."""
    history = History()
    for samples, size, simple, low, high in rows:
        history.add(
            event="decision", samples=samples, batch_size=size, noise_scale=simple, low=low, high=high, lr_factor=1.0
        )
    return history


def plotted(history: History):
    return plot_history(history.decisions(), history.view_columns)


START = (0, 64, None, None, None)


def test_a_run_shows_noise_scale_batch_size_and_factor():
    figure = plotted(history(START, (100, 128, 900.0, 600.0, 1500.0)))
    top, bottom = figure.axes
    assert [text.get_text() for text in top.get_legend().get_texts()] == [
        "90 % band", r"$B_\mathrm{simple}$", "batch size"
    ]  # fmt: skip
    assert list(top.lines[0].get_ydata())[1] == 900
    assert list(top.lines[1].get_ydata()) == [64, 128]
    assert list(bottom.lines[0].get_ydata()) == [1, 1]


@pytest.mark.parametrize(
    "row",
    [
        (100, 128, 9000.0, 5000.0, 20000.0),  # the noise scale far above the batch
        (100, 128, 9.0, 5.0, 20.0),  # and far below
        (100, 128, None, 5000.0, math.inf),  # known to be at least 5000
        (100, 128, None, 0.0, math.inf),  # measured, but nothing can be said
        (100, 128, 0.1, 0.05, 0.2),
        (100, 128, None, None, None),
    ],
)
def test_all_that_is_known_is_in_view(row):
    low, high = plotted(history(START, row)).axes[0].get_ylim()
    shown = [v for v in (*row[1:], 64) if v is not None and 1 <= v < math.inf]
    assert 0 < low < high
    assert low <= min(shown) <= max(shown) <= high


def test_a_run_that_has_not_started_is_drawn_too():
    assert len(plotted(History()).axes) == 2


def found(*curve: NoiseScale, batch_size: int | None) -> BatchSizeSuggestion:
    last = curve[-1]
    samples = tuple(range(100, 100 * len(curve) + 1, 100))
    return BatchSizeSuggestion(last.simple, last.low, last.high, batch_size, samples, curve, loader_batch_size=64)


def test_a_suggestion_shows_noise_scale_and_what_to_use():
    first = NoiseScale(grad_sq=-1.0, trace=900.0, low=50.0, high=math.inf, cautious=90.0, measurements=2)
    second = NoiseScale(grad_sq=3.0, trace=900.0, low=200.0, high=500.0, cautious=250.0, measurements=3)
    top, bottom, _ = found(first, second, batch_size=64).plot().axes
    assert list(top.lines[0].get_ydata()) == [900, 900]
    assert list(top.lines[1].get_ydata()) == [-1, 3]
    assert "use batch size 64" in [text.get_text() for text in bottom.get_legend().get_texts()]


def test_a_suggestion_that_knows_nothing_is_drawn_too():
    lost = NoiseScale(grad_sq=0.0, trace=900.0, low=0.0, high=math.inf, cautious=0.0, measurements=1)
    figure = found(lost, batch_size=None).plot()
    figure.canvas.draw()
    assert len(figure.axes) == 2


def test_doubtful_estimates_are_hollow_and_the_legend_says_why():
    rows = [(100, 64, 900.0, 600.0, math.inf), (200, 128, 900.0, 600.0, 1500.0), (300, 128, None, 70.0, 1e9)]
    made = history(START, *rows)
    for record, doubt in zip(made.records, ("no measurements", "at least low", None, "drifting"), strict=True):
        record["doubt"] = doubt
    top = plotted(made).axes[0]
    hollow = {
        line.get_label(): line.get_xydata().tolist() for line in top.lines if line.get_mfc() == top.get_facecolor()
    }
    assert hollow == {"doubt: at least low": [[100, 900]], "doubt: drifting": [[300, 70]]}


def test_each_view_has_a_panel_on_the_scale_of_the_plain_one():
    made = History(views=("adam", "group 0"))
    row = {"noise_scale": 900.0, "low": 600.0, "high": 1500.0, "noise_scale_adam": 9000.0, "low_adam": 5000.0}
    made.add(event="decision", samples=1, batch_size=64, lr_factor=1.0, high_adam=20000.0, **row)
    plain, adam, group, _ = plotted(made).axes
    assert (adam.get_title(loc="left"), group.get_title(loc="left")) == ("Noise scale: adam", "Noise scale: group 0")
    assert list(adam.lines[0].get_ydata()) == [9000]
    assert plain.get_ylim() == adam.get_ylim() == group.get_ylim()
    assert adam.get_ylim()[1] >= 20000


def labels(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_trade_off_shows_three_curves_that_meet_at_the_base():
    found = trade_off_at(1000.0, 700.0, 1500.0, base_batch_size=64, largest=4096, step_time=StepTime(0.004, 1e-5))
    axes = found.plot().axes[0]
    assert labels(axes) == ["steps", "samples", "time", "noise scale"]
    for line in axes.lines[:3]:
        assert dict(line.get_xydata().tolist())[64] == 1
    assert list(axes.lines[0].get_ydata()) == found.to_dict()["steps"]
    bottom, top = axes.get_ylim()
    assert bottom < found.rows[-1].steps.low and found.rows[-1].samples.high < top


def test_a_trade_off_of_an_unresolved_noise_scale_shows_bands_only():
    axes = trade_off_at(None, 700.0, math.inf, base_batch_size=64, largest=4096).plot().axes[0]
    axes.figure.canvas.draw()
    assert labels(axes) == ["steps", "samples"]
    assert len(axes.lines) == 2  # the lines at 1 and at the base


def test_a_run_shows_what_decides_the_passes_and_where_no_upper_limit_is_known():
    made = history(START, (100, 128, 90.0, 60.0, 150.0), (250, 128, 200.0, 70.0, math.inf))
    figure = plot_history(made.decisions(), made.view_columns, confidence=0.8, critical=4, pass_samples=100)
    top = figure.axes[0]
    curves = {line.get_label(): line for line in top.lines}
    assert "80 % band" in labels(top)
    assert list(curves["critical batch,\n4 times $B_\\mathrm{simple}$"].get_ydata())[1:] == [360, 800]
    upright = [line for line in top.lines if len(line.get_xdata()) == 2 and len(set(line.get_xdata())) == 1]
    assert [line.get_xdata()[0] for line in upright] == [100, 200]
    assert list(curves["no upper limit"].get_xdata()) == [250]


def test_the_finders_picture_has_the_trade_off_and_one_answer():
    second = NoiseScale(grad_sq=3.0, trace=900.0, low=200.0, high=500.0, cautious=250.0, measurements=3)
    suggestion = found(*[second] * 9, batch_size=128)
    *_, trade_off = suggestion.plot().axes
    assert "use batch size 128" in labels(trade_off)
    assert "\nTo use: 128. " in repr(suggestion.trade_off())
    assert str(suggestion) == "batch size 128; noise scale 300 (200 to 500)"


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_pictures_keep_the_users_background(style):
    with plt.style.context(style):
        figure = plotted(history(START, (100, 128, 900.0, 600.0, 1500.0)))
        assert figure.get_facecolor() == plt.figure().get_facecolor()


def test_thousands_are_written_out():
    axes = plt.figure().add_subplot()
    in_thousands(axes)
    label = axes.xaxis.get_major_formatter()
    assert [label(x) for x in (0, 250, 20_000, 1_000_000, 1_200_000)] == ["0", "0.25k", "20k", "1,000k", "1,200k"]
    assert [label(x) for x in (2.5e7, 1.5e9, 2e12)] == ["25M", "1,500M", "2e+12"]


def test_a_long_doubt_leaves_the_panel_its_room():
    made = history(START, (100, 128, 900.0, 600.0, 1500.0))
    made.records[-1]["doubt"] = "a long doubt about the loop, as another library's callback may bring " * 2
    top = plotted(made).axes[0]
    lines = [line for text in top.get_legend().get_texts() for line in text.get_text().splitlines()]
    assert max(map(len, lines)) <= 36
    assert top.get_position().width > 0.4


def test_noise_scales_beyond_all_datasets_do_not_press_the_others_into_a_line(recwarn):
    figure = plotted(history(START, (100, 128, 1.7e308, 1e300, 1.7e308), (200, 128, 900.0, 600.0, 1500.0)))
    bottom, top = figure.axes[0].get_ylim()
    assert (bottom, top) == (32, 2**51)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert max(map(len, labels)) < 10
    assert not recwarn.list
