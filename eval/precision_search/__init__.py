"""Which modules of a network may go down to which types, found by PQ: `upsnet precision-search`."""
