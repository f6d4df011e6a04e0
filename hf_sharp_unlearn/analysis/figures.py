"""Figures without a display."""

from typing import Any


def new_figure(width: float = 6.4, height: float = 4.0) -> Any:
    """A matplotlib figure of width x height inches that needs no display and leaves pyplot's state alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
