"""Citrate Node: a decentralized mentorship node, its protocol and its simulator."""

__version__ = "0.1.0"
