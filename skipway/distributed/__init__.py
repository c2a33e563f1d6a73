"""Distributed training: collectives, FSDP, process group and launcher."""
