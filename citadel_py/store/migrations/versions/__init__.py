"""One file per step, never edited once it was released."""
