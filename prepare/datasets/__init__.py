"""Readers of other people's datasets: each turns one layout into scenes of ours, and only reads it."""
