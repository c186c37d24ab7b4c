"""Engines: what lies beside each of them, whether it can run here, and why it cannot."""
