"""The pure domain: values and decisions. No I/O, clock, randomness or logging; only cryptography."""
