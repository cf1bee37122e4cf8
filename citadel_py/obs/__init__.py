"""What this program tells about itself: logs, metrics, and the outcome of every RPC. It decides nothing."""
