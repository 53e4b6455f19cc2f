"""Watching a foreign training loop: hooks that write the events and snapshots of a run."""
