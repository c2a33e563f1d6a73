"""Console table of a run: one row per epoch, at most 100 characters wide."""

from skipway.training.losses import Task
from skipway.training.trainer import State

__all__ = ["format_header", "format_row", "format_speed"]


def format_header(task: Task) -> str:
    """Return the header line of the table."""
    metric = {"accuracy": "acc"}.get(task.primary_metric, task.primary_metric)
    speed = f"{'img' if task.samples == 'images' else task.samples}/s"
    return (
        f"{'epoch':>9}  {f'train loss/{metric}':>15}  {f'val loss/{metric}':>15}  {speed:>7}  {'data wait':>9}  "
        f"{'time':>7}  {'ETA':>7}"
    )


def format_row(state: State, epochs: int, task: Task) -> str:
    """Return the row of the last epoch. A star marks the best epoch so far."""
    row, metric = state.history[-1], task.primary_metric
    seconds_left = row["seconds"] * (epochs - state.epoch) if row["lr"] and state.status == "running" else 0.0
    train = f"{row['train_loss']:.3f} {_format_metric(task, row[f'train_{metric}'], 1):>7}"
    val = f"{row['val_loss']:.3f} {_format_metric(task, row[f'val_{metric}'], 2):>7}"
    best = "*" if row["epoch"] == state.best["epoch"] else " "
    epoch, eta = f"{row['epoch']}/{epochs}", _clock(seconds_left) if seconds_left else ""
    return (
        f"{epoch:>9}  {train:>15}  {val:>15}{best} {row['samples_per_second']:>7,.0f}  "
        f"{row['data_time_fraction']:>9.0%}  {_clock(row['seconds']):>7}  {eta:>7}"
    ).rstrip()


def format_speed(state: State, task: Task) -> str:
    """Return throughput, loss and metric of the current epoch. A narrow terminal may cut off the end."""
    seconds = max(state.seconds, 1e-9)
    metric = _format_metric(task, state.metric_sum / state.seen, 1)
    return (
        f"{state.seen / seconds:,.0f} {task.samples}/s, {state.data_seconds / seconds:.0%} waiting, "
        f"loss {state.loss / state.seen:.3f}, {task.primary_metric} {metric}"
    )


def _format_metric(task: Task, value: float, digits: int) -> str:
    return f"{value:.{digits}%}" if task.primary_metric == "accuracy" else f"{value:.{digits + 2}f}"


def _clock(seconds: float) -> str:
    """Format seconds as minutes and seconds, with hours if needed.

    >>> _clock(7.4), _clock(200), _clock(7500)
    ('0:07', '3:20', '2:05:00')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
