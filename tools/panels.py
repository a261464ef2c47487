"""Ask a Prometheus every query of the Grafana dashboard, and say which it has an answer to.

    python tools/panels.py http://127.0.0.1:9090

A line without data is no fault by itself: a run without a teacher has none to wait for, and nothing may have been
dropped. A panel of which no line has data, in a run that does what the panel shows, is one.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.parse
import urllib.request

from cluster.monitoring.dashboard import dashboard
from cluster.monitoring.grafana import TimeSeries


def answered(address: str, query: str) -> int:
    """How many series the query gives."""
    question = urllib.parse.urlencode({"query": query.replace("$session", ".*")})
    with urllib.request.urlopen(f"{address}/api/v1/query?{question}", timeout=30) as page:
        return len(json.load(page)["data"]["result"])


def main() -> int:
    """Returns the exit status: 1 where a panel is empty."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of Prometheus, such as http://127.0.0.1:9090")
    address = parser.parse_args().address.rstrip("/")
    empty = []
    try:
        for panel in (panel for panel in dashboard().panels if isinstance(panel, TimeSeries)):
            found = {target.legend_format: answered(address, target.expr) for target in panel.targets}
            missing = [legend for legend, series in found.items() if not series]
            print(f"{panel.title}: {sum(found.values())} series" + (f"; none: {', '.join(missing)}" if missing else ""))
            if not any(found.values()):
                empty.append(panel.title)
    except urllib.error.URLError as error:
        print(f"{address} does not answer ({error}); name a running Prometheus", file=sys.stderr)
        return 2
    print(f"empty: {', '.join(empty)}" if empty else "every panel has data")
    return bool(empty)


if __name__ == "__main__":
    sys.exit(main())
