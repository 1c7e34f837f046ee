"""A chart that grows in place: `Plotly.react` in a component, so zoom and pan survive every refresh.

Streamlit's own `plotly_chart` remounts for every new figure, which resets the zoom. The component's script is a few
lines; plotly.js itself is served once by the app (`PLOTLY_ROUTE`, from the installed plotly package), so nothing is
fetched from the network and nothing large travels with a refresh.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from dgsgpt.ui import charts, theme

PLOTLY_ROUTE = "/api/plotly.min.js"

_HTML = '<div class="live-chart" role="img"></div>'
_JS = """
const KEY = "__dgsgptPlotly";

function plotly(url) {
  window[KEY] ??= new Promise((resolve, reject) => {
    const tag = document.createElement("script");
    tag.src = url;
    tag.onload = () => resolve(window.Plotly);
    tag.onerror = () => { delete window[KEY]; tag.remove(); reject(new Error("cannot load " + url)); };
    document.head.append(tag);
  });
  return window[KEY];
}

// A click is told once no second one follows: two reset the zoom.
const DOUBLE_MS = 320;

function tell(box, event) {
  clearTimeout(box.waiting);
  if (!box.data_.clicks || !event.points?.length || Date.now() - (box.doubled ?? 0) < DOUBLE_MS) return;
  const { x } = event.points[0];
  box.waiting = setTimeout(() => box.send("clicked", { x, zoom: box.data_.zoom }), DOUBLE_MS);
}

// On the page's own ground, which the chart itself has not: a transparent picture cannot be read everywhere.
function save(box) {
  const layout = { ...box.layout, paper_bgcolor: box.data_.ground, plot_bgcolor: box.data_.ground };
  const size = { width: Math.max(900, box.clientWidth), height: box.clientHeight };
  const options = { format: "png", scale: 2, filename: box.data_.name, ...size };
  window.Plotly.downloadImage({ data: box.data, layout }, options);
}

// Plotly's own uirevision gives a zoom up as soon as the figure brings other ranges, which growing data does.
// So what the reader chose is remembered here: view has a range for each zoomed axis, and the drag mode.
function remember(box, event) {
  if (box.resetting) return;
  for (const axis of ["xaxis", "yaxis"]) {
    const keys = Object.keys(event).filter((key) => key.startsWith(axis + "."));
    if (keys.some((key) => key.startsWith(axis + ".range"))) box.view[axis] = [...box._fullLayout[axis].range];
    else if (keys.includes(axis + ".autorange")) delete box.view[axis];
  }
  if (event.dragmode) box.view.dragmode = event.dragmode;
}

function reset(box) {
  delete box.view.xaxis;
  delete box.view.yaxis;
  box.resetting = true;
  const ranges = {};
  for (const [axis, range] of Object.entries(box.given)) {
    if (range) ranges[axis + ".range"] = [...range];
    else ranges[axis + ".autorange"] = true;
  }
  window.Plotly.relayout(box, ranges)
    .catch((error) => complain(box, error))
    .finally(() => { box.resetting = false; });
}

// Drawing goes on after the call: a chart that has left the page by then was given up, which is no error.
function complain(box, error) {
  if (box.watched) throw error;
}

function draw(Plotly, box, data) {
  const { data: traces, layout } = JSON.parse(data.figure);
  if (box.zoom !== data.zoom) Object.assign(box, { zoom: data.zoom, view: {} });
  box.given = {};
  for (const axis of ["xaxis", "yaxis"]) {
    box.given[axis] = layout[axis].range ?? null;  // null: plotly finds it
    const range = box.view[axis] ?? box.given[axis];
    if (range) layout[axis] = { ...layout[axis], range: [...range], autorange: false };
  }
  if (box.view.dragmode) layout.dragmode = box.view.dragmode;
  const home = { name: "Reset the zoom", icon: Plotly.Icons.home, click: () => reset(box) };
  const picture = { name: "Save as PNG", icon: Plotly.Icons.camera, click: () => save(box) };
  const config = { ...data.config, doubleClick: false, modeBarButtonsToAdd: [picture, home] };
  // Handed over once: plotly takes buttons that are made anew for another config, and builds the whole chart anew.
  if (box.watched) { Plotly.react(box, traces, layout).catch((error) => complain(box, error)); return; }
  box.watched = true;
  Plotly.newPlot(box, traces, layout, config).catch((error) => complain(box, error));
  box.on("plotly_relayout", (event) => remember(box, event));
  box.on("plotly_doubleclick", () => { box.doubled = Date.now(); clearTimeout(box.waiting); reset(box); });
  box.on("plotly_click", (event) => tell(box, event));
}

export default function ({ parentElement, data, setTriggerValue }) {
  const box = parentElement.querySelector(".live-chart");
  const asked = box.data_ && box.data_.picture !== data.picture;
  Object.assign(box, { data_: data, send: setTriggerValue });
  if (asked && window.Plotly && box.layout) save(box);
  if (box.dataset.revision !== data.revision) {
    box.dataset.revision = data.revision;
    box.style.height = data.height + "px";
    box.setAttribute("aria-label", data.alt);
    plotly(data.url).then((Plotly) => {
      if (!box.isConnected || box.dataset.revision !== data.revision) return;
      draw(Plotly, box, data);
    }, (error) => { box.textContent = "The chart could not be drawn: " + error.message; });
  }
  return () => {
    clearTimeout(box.waiting);
    if (window.Plotly) window.Plotly.purge(box);
    box.watched = false;
    delete box.dataset.revision;
  };
}
"""


@dataclass(frozen=True)
class Drawing:
    """A figure as it is sent: its JSON, a name of its content, and its height; worth keeping while nothing is new."""

    body: str
    revision: str
    height: int


def prepare(figure: go.Figure) -> Drawing:
    """Write a figure down once, for any number of refreshes."""
    body = str(figure.to_json())
    return Drawing(body, hashlib.sha256(body.encode()).hexdigest()[:16], figure.layout.height or charts.MAIN_HEIGHT)


def live(
    drawing: Drawing | go.Figure,
    key: str,
    alt: str,
    zoom: str = "",
    *,
    on_click: Callable[[Any, str], None] | None = None,
    name: str = "",
    picture: int = 0,
) -> None:
    """Draw a figure in place of the one under the same key, keeping the reader's zoom while `zoom` stays the same.

    Pass what gives the axes their meaning as `zoom` (run, x axis, scale): when that changes, zoom starts afresh.
    `on_click` is told the x of a clicked point, and the `zoom` under which it was seen. The picture that the chart
    saves is called `name`; a new number as `picture` makes it save one.
    """
    drawn = prepare(drawing) if isinstance(drawing, go.Figure) else drawing
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    component = st.components.v2.component("dgsgpt_live_chart", html=_HTML, js=_JS, isolate_styles=False)

    def clicked() -> None:
        told = (st.session_state.get(key) or {}).get("clicked")
        if on_click is not None and isinstance(told, dict) and "x" in told:
            on_click(told["x"], str(told.get("zoom") or ""))

    component(
        key=key,
        data={
            "figure": drawn.body,
            "revision": hashlib.sha256((drawn.revision + zoom).encode()).hexdigest()[:16],
            "zoom": zoom or key,
            "height": drawn.height,
            "alt": alt,
            "config": {**charts.CONFIG, "modeBarButtonsToRemove": [*charts.HIDDEN_BUTTONS, "resetScale2d", "toImage"]},
            "url": (f"/{base}" if base else "") + PLOTLY_ROUTE,
            "clicks": on_click is not None,
            "picture": picture,
            "ground": theme.palette()["bg"],
            "name": re.sub(r"[^A-Za-z0-9._-]+", "-", name or key)[:80],
        },
        on_clicked_change=clicked,
    )
