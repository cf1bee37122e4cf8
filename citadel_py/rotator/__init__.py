"""Renews SVIDs ahead of expiry: a heap of moments and one sleeper. It speaks no protocol and keeps no files."""
