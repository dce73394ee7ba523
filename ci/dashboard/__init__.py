"""The dashboard: asv's site with local copies of its libraries, and pages of our own that are reached from it."""
