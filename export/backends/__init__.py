"""What builds an engine from an exported model: one module for each package, each a `Backend` (backend.py)."""
