"""A chart that grows in place: `Plotly.react` in a component, so zoom and pan survive every refresh.

Streamlit's own `plotly_chart` remounts for every new figure, which resets the zoom. The component's script is a few
lines; plotly.js itself is served once by the app (`PLOTLY_ROUTE`, from the installed plotly package), so nothing is
fetched from the network and nothing large travels with a refresh.
"""

from __future__ import annotations

import hashlib

import plotly.graph_objects as go
import streamlit as st

from dgsgpt.ui import charts

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
  const ranges = { "xaxis.range": [...box.given.xaxis], "yaxis.range": [...box.given.yaxis] };
  window.Plotly.relayout(box, ranges).finally(() => { box.resetting = false; });
}

function draw(Plotly, box, data) {
  const { data: traces, layout } = JSON.parse(data.figure);
  if (box.zoom !== data.zoom) Object.assign(box, { zoom: data.zoom, view: {} });
  box.given = {};
  for (const axis of ["xaxis", "yaxis"]) {
    box.given[axis] = layout[axis].range ?? [0, 1];
    layout[axis] = { ...layout[axis], range: [...(box.view[axis] ?? box.given[axis])] };
  }
  if (box.view.dragmode) layout.dragmode = box.view.dragmode;
  const home = { name: "Reset the zoom", icon: Plotly.Icons.home, click: () => reset(box) };
  const config = { ...data.config, doubleClick: false, modeBarButtonsToAdd: [home] };
  Plotly.react(box, traces, layout, config);
  if (!box.watched) {
    box.watched = true;
    box.on("plotly_relayout", (event) => remember(box, event));
    box.on("plotly_doubleclick", () => reset(box));
  }
}

export default function ({ parentElement, data }) {
  const box = parentElement.querySelector(".live-chart");
  if (box.dataset.revision !== data.revision) {
    box.dataset.revision = data.revision;
    box.style.height = data.height + "px";
    box.setAttribute("aria-label", data.alt);
    plotly(data.url).then((Plotly) => {
      if (!box.isConnected || box.dataset.revision !== data.revision) return;
      draw(Plotly, box, data);
    }, (error) => { box.textContent = "The chart could not be drawn: " + error.message; });
  }
  return () => { if (window.Plotly) window.Plotly.purge(box); };
}
"""


def live(figure: go.Figure, key: str, alt: str, zoom: str = "") -> None:
    """Draw a figure in place of the one under the same key, keeping the reader's zoom while `zoom` stays the same.

    Pass what gives the axes their meaning as `zoom` (run, x axis, scale): when that changes, zoom starts afresh.
    Both axes of the figure must bring their ranges.
    """
    body = figure.to_json()
    revision = hashlib.sha256((body + zoom).encode()).hexdigest()[:16]
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    component = st.components.v2.component("dgsgpt_live_chart", html=_HTML, js=_JS, isolate_styles=False)
    component(
        key=key,
        data={
            "figure": body,
            "revision": revision,
            "zoom": zoom or key,
            "height": figure.layout.height or charts.MAIN_HEIGHT,
            "alt": alt,
            "config": {**charts.CONFIG, "modeBarButtonsToRemove": [*charts.HIDDEN_BUTTONS, "resetScale2d"]},
            "url": (f"/{base}" if base else "") + PLOTLY_ROUTE,
        },
    )
