"""Export: fusion for inference, quantization, ONNX, torch.export, OpenVINO, and preprocessing in the graph."""

from skipway.export.export_model import Exported, fuse, onnx, program

__all__ = ["Exported", "fuse", "onnx", "program"]
