"""Helpers without a subject of their own: what the process runs on, and how it talks to the system."""
