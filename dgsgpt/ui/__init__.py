"""The dashboard: router, design kit and charts. The only part of the package that imports streamlit."""
