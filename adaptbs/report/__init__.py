"""Reports on a run: its history and summary, the trade-off between batch sizes, and plots of both."""

from .history import History
from .plot import plot_history, plot_suggestion
from .style import BLUE, GREY, ORANGE, in_style, in_thousands, plain_numbers
from .summary import RunSummary, summary_of_run
from .trade_off import TradeOff, trade_off_at, trade_off_of_run
from .words import in_words

__all__ = [
    "BLUE",
    "GREY",
    "ORANGE",
    "History",
    "RunSummary",
    "TradeOff",
    "in_style",
    "in_thousands",
    "in_words",
    "plain_numbers",
    "plot_history",
    "plot_suggestion",
    "summary_of_run",
    "trade_off_at",
    "trade_off_of_run",
]
