"""Launchers that ship with the harness; each is a plugin like any other."""
