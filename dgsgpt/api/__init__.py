"""Trained models behind an address that clients of OpenAI's completions and chat can talk to."""
