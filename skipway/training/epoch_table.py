"""Console table of a run: one row per epoch, at most 100 characters wide."""

from skipway.training.losses import Task
from skipway.training.trainer import Settings, State
from skipway.utils.primary_metric import PRIMARY_METRICS

__all__ = ["format_header", "format_row", "format_speed"]


def format_header(task: Task) -> str:
    """Return the header line of the table."""
    metric = PRIMARY_METRICS[task.primary_metric]
    train = metric.short if metric.train_name == metric.name else metric.train_name
    speed = f"{'img' if task.samples == 'images' else task.samples}/s"
    return (
        f"{'epoch':>9}  {f'train loss/{train}':>15}  {f'val loss/{metric.short}':>15}  {speed:>7}  {'data wait':>9}  "
        f"{'time':>7}  {'ETA':>7}"
    )


def format_row(state: State, settings: Settings, task: Task) -> str:
    """Return the row of the last epoch. A star marks the best epoch so far, unless the run keeps the last one."""
    row, metric = state.history[-1], PRIMARY_METRICS[task.primary_metric]
    seconds_left = row["seconds"] * (settings.epochs - state.epoch) if row["lr"] and state.status == "running" else 0.0
    train = f"{row['train_loss']:.3f} {metric.text(row[f'train_{metric.train_name}'], 1):>7}"
    val = f"{row['val_loss']:.3f} {metric.text(row[f'val_{metric.name}'], 2):>7}"
    is_best = settings.kept_epoch == "best" and row["epoch"] == state.best["epoch"]
    best = "*" if is_best else " "
    epoch, eta = f"{row['epoch']}/{settings.epochs}", _clock(seconds_left) if seconds_left else ""
    return (
        f"{epoch:>9}  {train:>15}  {val:>15}{best} {row['samples_per_second']:>7,.0f}  "
        f"{row['data_time_fraction']:>9.0%}  {_clock(row['seconds']):>7}  {eta:>7}"
    ).rstrip()


def format_speed(state: State, task: Task) -> str:
    """Return throughput, loss and metric of the current epoch. A narrow terminal may cut off the end."""
    seconds = max(state.seconds, 1e-9)
    metric = PRIMARY_METRICS[task.primary_metric]
    return (
        f"{state.seen / seconds:,.0f} {task.samples}/s, {state.data_seconds / seconds:.0%} waiting, "
        f"loss {state.loss / state.seen:.3f}, {metric.train_name} {metric.text(state.metric_sum / state.seen, 1)}"
    )


def _clock(seconds: float) -> str:
    """Format seconds as minutes and seconds, with hours if needed.

    >>> _clock(7.4), _clock(200), _clock(7500)
    ('0:07', '3:20', '2:05:00')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
