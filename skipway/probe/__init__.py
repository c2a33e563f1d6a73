"""Analysis of a network: summary, lint, signal flow, ablation, loss landscape and diagram."""

from skipway.probe.ablation import lesion
from skipway.probe.block_stats import batches_accuracy, batches_loss
from skipway.probe.diagram import diagram
from skipway.probe.loss_landscape import landscape
from skipway.probe.signal_flow import Flows, flow
from skipway.probe.summary import summary

__all__ = ["Flows", "batches_accuracy", "batches_loss", "diagram", "flow", "landscape", "lesion", "summary"]
