"""Colours: both modes know the same roles, text is readable, and the shipped theme agrees."""

from __future__ import annotations

import tomllib

import pytest

from dgsgpt.ui.app import app_root
from dgsgpt.ui.theme import DARK, LIGHT, Palette, rgba


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def settings() -> dict[str, dict]:
    return tomllib.loads((app_root() / ".streamlit" / "config.toml").read_text(encoding="utf-8"))


def test_both_modes_have_the_same_roles() -> None:
    assert LIGHT.roles.keys() == DARK.roles.keys()


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_has_contrast_on_page_and_tint(palette: Palette) -> None:
    for role in ("ink", "ink2", "ink3", "good", "warn", "bad", "idle", "tintink"):
        assert contrast(palette[role], palette["bg"]) >= 4.5, role
    for role in ("good", "warn", "bad", "idle"):
        assert contrast(palette[role], palette[role + "bg"]) >= 4.5, role
    assert contrast(palette["tintink"], palette["tint"]) >= 4.5


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_run_colours_stand_out_and_differ(palette: Palette) -> None:
    assert len(set(palette.runs)) == 8
    assert all(contrast(color, palette["bg"]) >= 3 for color in palette.runs)
    assert {(palette.run(slot), palette.dash(slot)) for slot in range(40)} == {
        (color, dash) for color in palette.runs for dash in ("solid", "dash", "dot", "dashdot", "longdash")
    }


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_shipped_theme_uses_the_same_colours(palette: Palette) -> None:
    theme = settings()["theme"][palette.mode]
    assert theme["backgroundColor"] == palette["bg"]
    assert theme["textColor"] == palette["ink"]
    assert theme["borderColor"] == palette["line"]
    assert tuple(theme["chartCategoricalColors"][:8]) == palette.runs
    assert len(theme["chartCategoricalColors"]) >= 10  # fewer, and plotly ignores them all
    assert tuple(theme["chartSequentialColors"]) == palette.sequential


def test_shipped_server_settings_are_safe() -> None:
    server, browser = settings()["server"], settings()["browser"]
    assert server["address"] == "127.0.0.1"
    assert server["allowedHosts"] == ["localhost", "127.0.0.1"]
    assert server["enableXsrfProtection"] is True
    assert server["enableCORS"] is True
    assert server["enableStaticServing"] is False
    assert server["enableAgentApi"] is False
    assert browser["gatherUsageStats"] is False


def test_rgba_reads_hex() -> None:
    assert rgba("#1f6fd6", 0.3) == "rgba(31,111,214,0.3)"
