"""Reports as one HTML file that asks for nothing: no script, no network, readable on a phone and on paper."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2126;--soft:#57606a;--paper:#fff;--line:#d5dae0;--tint:#f3f5f7;--bad:#b3261e;
--good:#1d7a3c}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7ea;--soft:#a3acb5;--paper:#15181b;--line:#3a4148;--tint:#20252a;
--bad:#ff8a80;--good:#7bd698}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:68rem;margin:0 auto;
padding:1rem;overflow-wrap:break-word}
h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0 1rem}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem;border-bottom:1px solid var(--line);padding-bottom:.2rem}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
p,ul{margin:.5rem 0}ul{padding-left:1.2rem}
small,.soft,figcaption{color:var(--soft);font-size:.875rem}
.scroll{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-size:.875rem}
th,td{padding:.25rem .7rem .25rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-weight:600}
th,td{white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.facts td{white-space:normal;overflow-wrap:anywhere}
.facts td:first-child{overflow-wrap:normal;color:var(--soft);min-width:8rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(14rem,1fr));gap:.7rem;margin:1rem 0}
.card{background:var(--tint);border:1px solid var(--line);border-radius:.5rem;padding:.6rem .8rem}
.card b{display:block;font-size:1.5rem;line-height:1.2}
.bad{color:var(--bad)}.good{color:var(--good)}
figure{margin:.8rem 0}
svg{display:block;max-width:100%;height:auto}
figure svg text:not([fill]){fill:currentColor}
figure svg .ground{fill:none}
@media screen and (prefers-color-scheme:dark){figure svg .off{fill:var(--tint);stroke:var(--line)}}
svg.wide{width:100%;max-width:36rem;height:auto}
@media print{body{max-width:none;font-size:10pt;padding:0}h2,h3{break-after:avoid}tr,figure,.card{break-inside:avoid}
.scroll{overflow:visible}table{font-size:8pt}th,td{padding-right:.35rem;white-space:normal}
:root{color-scheme:light;--ink:#000;--soft:#444;--paper:#fff;--line:#bbb;--tint:#f3f5f7;--bad:#b3261e;--good:#1d7a3c}}
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; base-uri 'none'; form-action 'none'"
"""What the page may load: its own style, and the empty icon that keeps browsers from asking for one."""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document: a heading, and parts of HTML."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def html_table(heading: Sequence[object], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> str:
    """Rows of anything that prints; columns in `right` hold numbers. Wide tables scroll by themselves."""

    def line(tag: str, cells: Sequence[object]) -> str:
        marks = (' class="n"' if i in right else "" for i in range(len(cells)))
        return "".join(f"<{tag}{mark}>{escape(str(cell))}</{tag}>" for cell, mark in zip(cells, marks, strict=True))

    head = f"<thead><tr>{line('th', heading)}</tr></thead>"
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return scrolling(f"<table>{head}<tbody>{body}</tbody></table>")


def facts(found: Mapping[str, object]) -> str:
    """Names and what they are, in words; long values wrap."""
    lines = (
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{escape(str(_plain(value)))}</td></tr>"
        for name, value in found.items()
    )
    return f'<table class="facts"><tbody>{"".join(lines)}</tbody></table>'


def _plain(value: object) -> object:
    """As a person writes it."""
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items()) or "none"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else value


def scrolling(content: str) -> str:
    """Something that may be wider than the page."""
    return f'<div class="scroll" tabindex="0">{content}</div>'


def figure(picture: str, caption: str = "") -> str:
    """A picture, and what it shows."""
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{scrolling(picture)}{said}</figure>"


def bullets(lines: Iterable[str], *, mark: str = "") -> str:
    """A list, of class `mark`; empty for no lines."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{mark}">{items}</ul>' if items else ""
