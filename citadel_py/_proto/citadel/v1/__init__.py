"""Generated from proto/ by scripts/gen-protos. Never edited."""
