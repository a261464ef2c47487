"""What Prometheus and Grafana are given: alert rules and a dashboard, each from one source in code."""
