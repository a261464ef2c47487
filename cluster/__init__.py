"""The running system: the driver composes actors and learner here, and nobody imports it back."""
