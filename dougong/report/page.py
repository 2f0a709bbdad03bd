"""The page around it all: one file, no request to anywhere, light and dark, English and Chinese."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from dougong.report.text import Label, escape, label, plain

# The page may use what stands in it and nothing else, whatever its data says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

_SCRIPT = """
const root = document.documentElement, button = document.getElementById('language');
function speak(language) { root.lang = language; button.textContent = language === 'zh' ? 'English' : '中文'; }
button.hidden = false;
button.onclick = () => speak(root.lang === 'zh' ? 'en' : 'zh');
speak((navigator.language || 'en').startsWith('zh') ? 'zh' : 'en');
"""


@dataclass(frozen=True)
class Section:
    """A heading and the HTML below it, as the other functions of this package return it."""

    title: Label
    body: Sequence[str]


def page(title: Label, sections: Sequence[Section], subtitle: Label = "") -> str:
    """The whole document. Titles are escaped; the sections' bodies are HTML already."""
    style = resources.files("dougong.report").joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#part-{i}">{label(each.title)}</a>' for i, each in enumerate(sections))
    body = "".join(
        f'<section id="part-{index}"><h2>{label(each.title)}</h2>{"".join(each.body)}</section>'
        for index, each in enumerate(sections)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(plain(title))}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{label(title)}</h1><button id="language" hidden></button><p>{label(subtitle)}</p><nav>{links}</nav></header>
<main>{body}</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""
