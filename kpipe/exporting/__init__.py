"""Formats of other runtimes: writing a network in them, checking what was written, and the card that goes with it."""
