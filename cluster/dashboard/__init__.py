"""A page for people without Grafana, and for listening: a run as it goes on, or afterwards, from its folder alone."""
