"""xDS: state of streams without I/O, current secrets, encoding, and the gRPC service on a Unix socket."""
