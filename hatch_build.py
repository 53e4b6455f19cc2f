"""Put `frontend/` and `sample_checkpoints/` into standard wheels; an editable install reads them from the checkout."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"]["frontend"] = "moescope_server/_frontend"
            build_data["force_include"]["sample_checkpoints"] = "moescope_server/_samples"
