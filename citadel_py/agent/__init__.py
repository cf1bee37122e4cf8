"""The workload side: where certificates are asked for, and how proxies are told to take theirs from here."""
