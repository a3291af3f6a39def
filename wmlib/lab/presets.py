"""The scale of an experiment, chosen by an environment variable."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

_PRESETS = ("quick", "cpu", "paper")


@dataclasses.dataclass(frozen=True)
class Preset:
    """The scale of an experiment: `name`, the number of `seeds`, and the chapter's own `settings`, read as attributes."""

    name: str
    seeds: int
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check_seeds(self.name, self.seeds)

    def __getattr__(self, name: str) -> Any:
        settings = self.__dict__.get("settings", {})  # a copy is made before it has any
        if name not in settings:
            has = ", ".join(["name", "seeds", *settings])
            raise AttributeError(f"the preset has no setting {name!r}; it has {has}")
        return settings[name]


def preset(**scales: Mapping[str, Any]) -> Preset:
    """Choose the scale of an experiment by the environment variable `WMLIB_PRESET`, "cpu" if unset.

    **Arguments:** a mapping of settings for each of `quick` (seconds; what the tests run), `cpu` (two cores for at
    most about 100 minutes; what the published figures show) and `paper` (the paper's own scale, for a GPU). Each has
    `seeds`, a whole number of at least 1.

    **Raises:** `ValueError` if `WMLIB_PRESET` names no given scale, or a scale lacks `seeds`.

    **Example:** `scale = wm.preset(quick=dict(seeds=1, epochs=1), cpu=dict(seeds=5, epochs=10))`, then `scale.epochs`.
    """
    unknown = set(scales) - set(_PRESETS)
    if unknown or not scales:
        raise ValueError(f"presets are named {', '.join(_PRESETS)}, got {sorted(unknown) or 'none'}")
    name = os.environ.get("WMLIB_PRESET", "cpu")
    if name not in scales:
        raise ValueError(f"WMLIB_PRESET is {name!r}; this experiment has {', '.join(scales)}")
    settings = dict(scales[name])
    return Preset(name, _check_seeds(name, settings.pop("seeds", None)), settings)


def _check_seeds(name: str, seeds: Any) -> int:
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise ValueError(f"the preset {name!r} needs seeds, a whole number of at least 1, got {seeds!r}")
    return seeds
