"""The composition root: settings become objects, objects become tasks, and they end in order. Only here is wired."""
