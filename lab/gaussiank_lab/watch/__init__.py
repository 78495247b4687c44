"""Look at a run while it goes on: a page of this machine, for this machine."""
