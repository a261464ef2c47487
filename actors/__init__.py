"""The acting side: rollouts write summaries, judges and teachers score them; engine.py alone touches vLLM."""
