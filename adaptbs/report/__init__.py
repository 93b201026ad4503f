"""Reports on a run: its history, the trade-off between batch sizes, and plots of both."""

from .history import History
from .plot import plot_history, plot_suggestion
from .trade_off import TradeOff, trade_off_at, trade_off_of_run
from .words import in_words

__all__ = [
    "History",
    "TradeOff",
    "in_words",
    "plot_history",
    "plot_suggestion",
    "trade_off_at",
    "trade_off_of_run",
]
