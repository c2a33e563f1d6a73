"""Several processes: collectives, FSDP, launching."""
