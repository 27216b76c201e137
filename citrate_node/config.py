"""Reads presets and node configurations: TOML in, checked values out.

An unknown key is an error that names it: a misspelt limit must not silently be the default.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .protocol.preset import Preset, preset_from


def load_preset(name_or_path: str) -> Preset:
    """A preset by name (`devnet`, `minimal`) or by the path of a TOML file.

    Raises ConfigError for a name that does not exist, PresetError for numbers that cannot hold together.
    """
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        return preset_from(read_toml(Path(name_or_path)))
    source = resources.files("citrate_node") / "presets" / f"{name_or_path}.toml"
    if not source.is_file():
        names = sorted(
            entry.name.removesuffix(".toml")
            for entry in (resources.files("citrate_node") / "presets").iterdir()
            if entry.name.endswith(".toml")
        )
        raise ConfigError(
            f"there is no preset {name_or_path!r}\n  choose one of {', '.join(names)}, or give a .toml file"
        )
    return preset_from(tomllib.loads(source.read_text()))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError where it is absent, unreadable or not TOML."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
