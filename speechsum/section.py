"""The base of every table of a recipe, and the number types that the tables share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _no_built_in_resource(resources: dict[str, float]) -> dict[str, float]:
    if built_in := sorted({"CPU", "GPU", "memory", "object_store_memory"} & resources.keys()):
        raise ValueError(f"resources names {built_in[0]!r}, which Ray counts itself; keep to names of your own")
    return resources


Resources = Annotated[dict[str, Annotated[float, Field(gt=0)]], AfterValidator(_no_built_in_resource)]
"""Custom Ray resources that one actor takes, such as {"rollout": 1}: it runs only on a node that offers them."""


class Section(BaseModel):
    """Frozen, and keys it does not know are refused.

    What is wrong may be a secret, so errors do not quote it; `config` quotes again what can be none.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), hide_input_in_errors=True
    )
