"""What operators and their tools may look at: health and metrics over HTTP. It changes nothing and serves no key."""
