"""citadel-py: a workload-identity authority that issues and renews SPIFFE X.509 certificates."""

__version__ = "0.1.0"
