"""Looking inside a network: plain values first. Functions by their own names: sw.probe.flow, sw.probe.lesion ..."""

# Bound here at once, since each has the name of its file, which Python would put in its place.
from skipway.probe.diagram import diagram
from skipway.probe.flow import Flows, flow
from skipway.probe.landscape import landscape
from skipway.probe.lesion import lesion
from skipway.probe.measure import batches_accuracy, batches_loss
from skipway.probe.summary import summary

__all__ = ["Flows", "batches_accuracy", "batches_loss", "diagram", "flow", "landscape", "lesion", "summary"]
