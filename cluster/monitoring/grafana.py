"""The part of Grafana's dashboard model (schema 39) that we use, as frozen types."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cluster.kuberay.objects import Part

Unit = Literal["s", "bytes", "decgbytes", "percentunit", "short", "suffix: tokens/s", "suffix: s/s", "suffix: nats"]


class Datasource(Part):
    """The Prometheus that the reader has chosen above the panels."""

    type: Literal["prometheus"] = "prometheus"
    uid: Literal["${datasource}"] = "${datasource}"


class Target(Part):
    """One query; `ref_id` tells those of a panel apart, `legend_format` names its lines by their labels."""

    ref_id: str
    expr: str
    legend_format: str
    datasource: Datasource = Datasource()


class Place(Part):
    """Where a panel stands, in a grid 24 wide."""

    x: int
    y: int
    w: int
    h: int


class Stacking(Part):
    """Whether the lines of a panel add up."""

    mode: Literal["none", "normal"] = "none"


class Drawing(Part):
    """How lines are drawn."""

    fill_opacity: int = 10
    stacking: Stacking = Stacking()


class Defaults(Part):
    """Of all lines of a panel."""

    unit: Unit
    min: int | None = 0
    custom: Drawing = Drawing()


class FieldConfig(Part):
    """Of a panel's lines."""

    defaults: Defaults
    overrides: tuple[()] = ()


class TimeSeries(Part):
    """A panel of lines over time."""

    id: int
    type: Literal["timeseries"] = "timeseries"
    title: str
    description: str
    datasource: Datasource = Datasource()
    grid_pos: Place
    field_config: FieldConfig
    targets: tuple[Target, ...]


class Row(Part):
    """A heading above panels."""

    id: int
    type: Literal["row"] = "row"
    title: str
    collapsed: Literal[False] = False
    grid_pos: Place
    panels: tuple[()] = ()


class DatasourceVariable(Part):
    """Which Prometheus."""

    name: Literal["datasource"] = "datasource"
    type: Literal["datasource"] = "datasource"
    query: Literal["prometheus"] = "prometheus"


class VariableQuery(Part):
    """Where the choices of a variable come from."""

    query: str
    ref_id: str


class QueryVariable(Part):
    """A choice of label values; `refresh` 2 looks for new ones whenever the time range changes."""

    name: str
    label: str
    type: Literal["query"] = "query"
    datasource: Datasource = Datasource()
    query: VariableQuery
    include_all: Literal[True] = True
    multi: Literal[True] = True
    refresh: Literal[2] = 2


class Templating(Part):
    """What the reader chooses."""

    list: tuple[DatasourceVariable | QueryVariable, ...]


class TimeRange(Part):
    """What is shown at first."""

    from_: str = Field(alias="from")
    to: Literal["now"] = "now"


class Dashboard(Part):
    """A whole dashboard, as Grafana imports it."""

    uid: str
    title: str
    tags: tuple[str, ...]
    schema_version: Literal[39] = 39
    editable: bool = True
    refresh: str
    time: TimeRange
    templating: Templating
    panels: tuple[Row | TimeSeries, ...]
