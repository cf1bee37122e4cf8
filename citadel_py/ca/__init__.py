"""The signing service: who calls, what they get, and the listeners they call. Storage is plugged in by app."""
