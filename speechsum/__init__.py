"""Teach audio LLMs to summarise speech with reinforcement learning: shared types, config and data."""

__version__ = "0.1.0"
