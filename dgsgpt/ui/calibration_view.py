"""Measuring how fast this machine trains, from the Configure page."""

from __future__ import annotations

import time
from contextlib import closing

import streamlit as st

from dgsgpt import calibrate
from dgsgpt.calibrate import Calibration
from dgsgpt.errors import DgsgptError
from dgsgpt.format import ago, percent, scientific
from dgsgpt.hardware import Hardware
from dgsgpt.ui import state
from dgsgpt.ui.atoms import note

BUSY = 0.3  # share of the machine that others used, from which figures are too low


def told(found: Calibration, now: float) -> str:
    """What the calibration found, in one line."""
    rates = [rate.flops_per_s for rate in found.rates]
    span = f"{scientific(min(rates))} to {scientific(max(rates))}"
    busy = f", {percent(found.load, 0)} busy" if found.load > BUSY else ""
    return f"Calibrated {ago(found.measured_at, now)}{busy}: {span} FLOP/s"


def line(found: Calibration | None, machine: Hardware) -> None:
    """The calibration and a button that measures (again); it holds this tab meanwhile."""
    if found is None:
        label, says = "Calibrate this machine (15 s)", ""
    else:
        label, says = "Again", told(found, time.time())
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="calibration"):
        if says:
            note(says)
        pressed = st.button(
            label if found is None else f":blue[{label}]",
            key="calibrate",
            icon=":material/speed:" if found is None else None,
            type="secondary" if found is None else "tertiary",
            width="stretch" if found is None else "content",
            help="Trains two small models for a few seconds in a process of its own; times of runs are estimated from "
            "that. The same as dgsgpt calibrate.",
        )
    if pressed:
        _measure(machine)


def _measure(machine: Hardware) -> None:
    bar = st.progress(0.0, text="Starting")
    try:
        with closing(calibrate.measure(state.root(), machine)) as going:  # also where the page is left meanwhile
            for message, share in going:
                bar.progress(share, text=message.capitalize())
    except DgsgptError as e:
        state.flash_error(str(e))
    st.rerun()
