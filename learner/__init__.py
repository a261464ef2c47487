"""The learning side: losses, FSDP ranks, checkpoints, and the publisher of new weights."""
