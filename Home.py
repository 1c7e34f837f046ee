"""The dashboard: `streamlit run Home.py`, or `dgsgpt dashboard`.

Only starts the server; what a page shows begins in dgsgpt/ui/router.py. The launcher is apart from the router because
Streamlit takes a `pages/` folder beside a plain script for its old menu and then skips the router on deep links.
"""

import streamlit as st

from dgsgpt.ui.app import ROUTER, server_options

app = st.App(ROUTER, **server_options())
